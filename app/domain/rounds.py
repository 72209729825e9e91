"""The state machine of a round: the order of stages, and the kind of run in each.

    algorithm      stages, in order
    sft            freezing           -> policy -> sampling -> evaluating    if there is a reward model, or suites
    sft            freezing           -> policy -> sampling                  if there is neither
    every other    freezing -> reward -> policy -> sampling -> evaluating

A round begins in `freezing`, in which the worker writes the round's snapshots, and ends in `done`. Every stage may also
end in `failed` or `cancelled`. A failed round is retried in the stage that failed, so results of earlier stages are
kept.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

# Algorithms for a round's policy with their names on pages, the recommended one first. The run's kind has the same key.
ALGORITHMS = {
    "on_policy_dpo": "On-policy DPO",
    "dpo": "DPO",
    "best_of_n": "Best-of-n",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "ppo": "PPO",
    "sft": "SFT",
}
# Algorithms that sample answers to training prompts during training.
SAMPLING_ALGORITHMS = ("on_policy_dpo", "best_of_n", "rloo", "grpo", "ppo")

Stage = Literal["freezing", "reward", "policy", "sampling", "evaluating"]
Event = Literal["started", "succeeded", "failed", "cancelled"]

STAGES: tuple[Stage, ...] = ("freezing", "reward", "policy", "sampling", "evaluating")
ACTIVE = STAGES
FINAL = ("done", "failed", "cancelled")

# The stage of each kind of run; all other kinds train the policy.
_STAGE_OF: dict[str, Stage] = {
    "freeze": "freezing",
    "reward": "reward",
    "sample": "sampling",
    "evaluate": "evaluating",
}


class ImpossibleTransition(ValueError):
    """The state machine has no such transition."""


def plan(algorithm: str, is_evaluated: bool) -> tuple[Stage, ...]:
    """Return the stages of a round. `is_evaluated` matters only for SFT: the others always train a reward model."""
    if algorithm != "sft":
        return STAGES
    return ("freezing", "policy", "sampling", "evaluating") if is_evaluated else ("freezing", "policy", "sampling")


def after(state: str, event: Event, stages: Sequence[Stage] = STAGES) -> str:
    """Return the next state. If a run starts again in its own stage (a retry, a dead worker), the state stays the same.

    Args:
        stages: the round's plan.

    Raises:
        ImpossibleTransition: there is no such transition, for example from `done`.
    """
    path = [*stages, "done"]
    if state in path[:-1]:
        if event in ("failed", "cancelled"):
            return event
        return state if event == "started" else path[path.index(state) + 1]
    raise ImpossibleTransition(f"A round that is {state} cannot see its run {event}.")


def run_kind(state: str, algorithm: str) -> str | None:
    """Return the kind of run that a state needs; None if nothing runs in it."""
    return algorithm if state == "policy" else next((kind for kind, its in _STAGE_OF.items() if its == state), None)


def stage_of(kind: str) -> Stage:
    """Return the stage that a kind of run belongs to."""
    return _STAGE_OF.get(kind, "policy")


def run_seed(seed: int, kind: str, number: int) -> int:
    """Return the seed (63 bits) of the run of one kind in round `number`; other kinds and rounds have other seeds.

    `seed` is the round's setting. A sum of seed and number would give two runs the same seed.
    """
    digest = hashlib.blake2b(f"{kind}/{number}/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
