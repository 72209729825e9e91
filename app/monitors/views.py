"""What the monitors' pages show."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.charts import as_csv
from app.domain import texts
from app.domain.monitors import MONITORS, Finding, Monitor, findings
from app.models import Project, Round
from app.monitors import queries

MOST_ROUNDS = 12
WORST = 5


class Watched(NamedTuple):
    """A round and what each monitor says of it, by the monitor's name."""

    round: Round
    by_monitor: dict[str, Finding]


class Example(NamedTuple):
    """A response of the new policy, and the figure that a monitor watches; `words` says it."""

    asked: str
    said: str
    value: float
    words: str


def rounds(session: Session, project: Project) -> list[Watched]:
    """The newest rounds with what the monitors say, the newest first; rounds without an evaluation are left out."""
    found = queries.evaluated_rounds(session, project.id, MOST_ROUNDS)
    metrics: defaultdict[int, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in queries.evaluations(session, [round_.id for round_ in found]):
        metrics[row.round_id][row.slice][row.name] = row.value
    return [
        Watched(round_, {each.monitor.name: each for each in findings(metrics[round_.id])})
        for round_ in found
        if round_.id in metrics
    ]


def figures_csv(watched: Sequence[Watched]) -> str:
    """A row for each round and monitor, shares from 0 to 1; empty where nothing was measured."""
    columns = ["round", "monitor", "figure", "slice", "state", "previous", "new", "change", "change_low", "change_high"]
    rows = []
    for each in watched:
        for found in each.by_monitor.values():
            monitor = found.monitor
            numbers = [value if value == value else None for value in (found.before, found.new)]
            given = [each.round.number, monitor.name, monitor.figure, monitor.slice, found.state]
            rows.append([*given, *numbers, *(found.change or (None, None, None))])
    return as_csv(columns, rows)


def monitor_by_name(name: str) -> Monitor | None:
    return next((monitor for monitor in MONITORS if monitor.name == name), None)


def worst(session: Session, round_: Round, monitor: Monitor) -> list[Example]:
    """The responses of a round's new policy that stand out most in what a monitor watches, one for each prompt."""
    of_prompts: dict[int, Example] = {}
    rows = [row for row in queries.responses(session, round_.id) if _is_watched(row, monitor)]
    for row, value in zip(rows, _figures(rows, monitor.figure), strict=True):
        known = of_prompts.get(row.prompt_id)
        if known is None or monitor.worse * value > monitor.worse * known.value:
            of_prompts[row.prompt_id] = Example(
                texts.asked_in(row.messages), row.text, value, _in_words(monitor.figure, value)
            )
    ordered = sorted(of_prompts.values(), key=lambda example: -monitor.worse * example.value)
    # A share has worst examples only where there are any.
    if monitor.is_share and monitor.worse == 1:
        ordered = [example for example in ordered if example.value > 0]
    if monitor.is_share and monitor.worse == -1:
        ordered = [example for example in ordered if example.value < 1]
    return ordered[:WORST]


# What a response does or does not do, where that is all that is measured of it.
_DOES = {
    "finished": ("cut by the length limit", "ends by itself"),
    "refusals": ("does not refuse", "refuses"),
    "hedging": ("does not hedge", "hedges"),
    "flattery": ("does not flatter", "flatters"),
    "empty": ("says something", "empty"),
}


def _in_words(figure: str, value: float) -> str:
    if figure in _DOES:
        return _DOES[figure][value > 0]
    if figure == "length":
        return f"{value:.0f} tokens"
    if figure == "formatting":
        return f"{value:.0f} marks for each hundred words"
    return f"{value:.0%}"


def _is_watched(row: Any, monitor: Monitor) -> bool:
    name, _, value = monitor.slice.partition("=")
    return not name or getattr(row, name) == value


def _figures(rows: Sequence[Any], figure: str) -> list[float]:
    """As `trainer.evaluation.figures` measures them."""
    if figure == "length":
        return [float(row.n_tokens or 0) for row in rows]
    if figure == "finished":
        return [float(row.finish_reason != "length") for row in rows]
    if figure == "variety":
        by_prompt: defaultdict[int, list[str]] = defaultdict(list)
        for row in rows:
            by_prompt[row.prompt_id].append(row.text)
        of_prompt = {prompt_id: texts.variety(said) for prompt_id, said in by_prompt.items()}
        return [of_prompt[row.prompt_id] for row in rows]
    return [float(texts.FIGURES[figure](texts.asked_in(row.messages), row.text)) for row in rows]
