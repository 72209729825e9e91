"""A round's life as a table: which stage follows which, and what the worker runs in each.

    algorithm      stages, in order
    sft            freezing           -> policy -> sampling -> evaluating    if there is a reward model, or suites
    sft            freezing           -> policy -> sampling                  if there is neither
    every other    freezing -> reward -> policy -> sampling -> evaluating

A round begins in `freezing`, where the worker writes what the round reads, and ends in `done`; every stage may also end
in `failed` or `cancelled`. A failed round is retried in the stage that failed, so what succeeded before is kept.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

# How a round can train its policy, with the name on pages; the recommended one first. The run's kind has the same name.
ALGORITHMS = {
    "on_policy_dpo": "On-policy DPO",
    "dpo": "DPO",
    "best_of_n": "Best-of-n",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "ppo": "PPO",
    "sft": "SFT",
}
# Algorithms that sample answers to the train prompts while they train.
SAMPLING_ALGORITHMS = ("on_policy_dpo", "best_of_n", "rloo", "grpo", "ppo")

Stage = Literal["freezing", "reward", "policy", "sampling", "evaluating"]
Event = Literal["started", "succeeded", "failed", "cancelled"]

STAGES: tuple[Stage, ...] = ("freezing", "reward", "policy", "sampling", "evaluating")
ACTIVE = STAGES
FINAL = ("done", "failed", "cancelled")

# Which stage a kind of run belongs to; every other kind trains the policy.
_STAGE_OF: dict[str, Stage] = {
    "freeze": "freezing",
    "reward": "reward",
    "sample": "sampling",
    "evaluate": "evaluating",
}


class ImpossibleTransition(ValueError):
    """The table has no such step."""


def plan(algorithm: str, is_evaluated: bool) -> tuple[Stage, ...]:
    """The stages of a round. `is_evaluated` counts for fine-tuning only: the other algorithms train a reward model."""
    if algorithm != "sft":
        return STAGES
    return ("freezing", "policy", "sampling", "evaluating") if is_evaluated else ("freezing", "policy", "sampling")


def after(state: str, event: Event, stages: Sequence[Stage] = STAGES) -> str:
    """The state that follows. A run that starts again in its own stage (a retry, a dead worker) changes nothing.

    Args:
        stages: the round's plan.

    Raises:
        ImpossibleTransition: the table has no such step, for instance out of `done`.
    """
    path = [*stages, "done"]
    if state in path[:-1]:
        if event in ("failed", "cancelled"):
            return event
        return state if event == "started" else path[path.index(state) + 1]
    raise ImpossibleTransition(f"A round that is {state} cannot see its run {event}.")


def run_kind(state: str, algorithm: str) -> str | None:
    """The kind of run that a state needs; none where nothing runs."""
    return algorithm if state == "policy" else next((kind for kind, its in _STAGE_OF.items() if its == state), None)


def stage_of(kind: str) -> Stage:
    """The stage a kind of run belongs to."""
    return _STAGE_OF.get(kind, "policy")


def run_seed(seed: int, kind: str, number: int) -> int:
    """Return the seed (63 bits) of the run of one kind in round `number`: other kinds and rounds never share it.

    `seed` is the round's setting. With sums of the two, one run would draw again what another had drawn.
    """
    digest = hashlib.blake2b(f"{kind}/{number}/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
