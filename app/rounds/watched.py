"""Monitors of a round: those of its evaluation, those that need people's word or the prompts, and alarms of its run."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.domain.monitors import Finding, Monitor, by_name, findings, in_order, parting, shift
from app.domain.watching import Alarm
from app.models import Round, Run
from app.rounds import result_queries
from app.rounds.outcomes import Rivals

Metrics = Mapping[str, Mapping[str, float]]
"""By slice and name, of a round's evaluation."""


class Raised(NamedTuple):
    """An alarm that a monitor gave while a round's policy was trained."""

    monitor: Monitor
    alarm: Alarm
    stopped: bool  # it ended the run


def findings_of(
    session: Session, round_: Round, metrics: Metrics, wins: Mapping[tuple[int, str], Rivals]
) -> list[Finding]:
    """What all monitors say of a round, those to look at first; empty if its evaluation compared no policies.

    Args:
        wins: as `outcomes.win_rates` finds them, of this round at least.
    """
    found = findings(metrics)
    if not found:
        return []
    people = {
        name: (rivals.before.interval, rivals.before.prompts)
        for (round_id, name), rivals in wins.items()
        if round_id == round_.id and rivals.before and rivals.before.interval
    }
    apart = parting(metrics, people)
    moved = shift(*result_queries.prompts_of(session, round_))
    return in_order([*found, *(each for each in (apart, moved) if each)])


def alarms_of(round_: Round, runs: Sequence[Run]) -> list[Raised]:
    """The alarms of a round's policy run, in the order in which they were given."""
    mode = round_.config.get("monitors")
    found: list[Raised] = []
    for run in runs:
        for given in _of_run(run):
            monitor = by_name(given["monitor"])
            if monitor is not None:
                found.append(Raised(monitor, Alarm(**given), mode == "stop"))
    return found


def _of_run(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (run.result or {}).get("alarms", [])
    return found
