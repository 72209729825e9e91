"""A round's life as a table: which stage follows which, and what the worker runs in each.

    frozen -> reward -> policy -> sampling -> evaluating -> done
       \\________\\_________\\__________\\___________\\____-> failed, cancelled

A round is `frozen` from the moment its snapshot exists until the worker takes its first run. A failed round is retried
in the stage that failed, so what succeeded before it is kept.
"""

from typing import Literal

Stage = Literal["reward", "policy", "sampling", "evaluating"]
Event = Literal["started", "succeeded", "failed", "cancelled"]

STAGES: tuple[Stage, ...] = ("reward", "policy", "sampling", "evaluating")
ACTIVE = ("frozen", *STAGES)
FINAL = ("done", "failed", "cancelled")

# (state, what happened to the state's run) -> new state. What is not here cannot happen.
TRANSITIONS: dict[tuple[str, Event], str] = {
    ("frozen", "started"): "reward",
    ("reward", "succeeded"): "policy",
    ("policy", "succeeded"): "sampling",
    ("sampling", "succeeded"): "evaluating",
    ("evaluating", "succeeded"): "done",
    **{(state, "failed"): "failed" for state in ACTIVE},
    **{(state, "cancelled"): "cancelled" for state in ACTIVE},
}

_STAGE_OF_RUN: dict[str, Stage] = {
    "reward": "reward",
    "dpo": "policy",
    "ppo": "policy",
    "sample": "sampling",
    "evaluate": "evaluating",
}


class ImpossibleTransition(ValueError):
    """The table has no such step."""


def after(state: str, event: Event) -> str:
    """The state that follows. A run that starts again in its own stage (a retry, a dead worker) changes nothing.

    Raises:
        ImpossibleTransition: the table has no such step, for instance out of `done`.
    """
    if event == "started" and state in STAGES:
        return state
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise ImpossibleTransition(f"A round that is {state} cannot see its run {event}.") from None


def run_kind(stage: str, algorithm: str) -> str | None:
    """The kind of run that a stage needs; none in states where nothing runs. A frozen round waits for its first."""
    kinds = {
        "frozen": "reward",
        "reward": "reward",
        "policy": algorithm,
        "sampling": "sample",
        "evaluating": "evaluate",
    }
    return kinds.get(stage)


def stage_of(kind: str) -> Stage:
    """The stage a kind of run belongs to; a retry goes back there."""
    return _STAGE_OF_RUN[kind]
