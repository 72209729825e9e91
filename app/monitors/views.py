"""What the monitors' pages show."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.charts import Chart, Panel, Series, as_csv
from app.domain import texts
from app.domain.monitors import PARTING, Finding, Monitor
from app.models import Project, Round, Run
from app.monitors import queries
from app.rounds.outcomes import win_rates
from app.rounds.watched import Raised, alarms_of, findings_of

MOST_ROUNDS = 12
WORST = 5


class Review(NamedTuple):
    """A person's verdict on a monitor's look or alarm."""

    verdict: str
    note: str
    by: str
    at: datetime


class Watched(NamedTuple):
    """A round and what each monitor says of it, by the monitor's name.

    Attributes:
        alarms: those of its run.
        reviews: people's verdicts, by the monitor's name.
    """

    round: Round
    by_monitor: dict[str, Finding]
    alarms: list[Raised]
    reviews: dict[str, Review]

    @property
    def looks(self) -> dict[str, Monitor]:
        """The monitors that ask people to look at this round, by their evaluation or by an alarm in its run."""
        found = [found.monitor for found in self.by_monitor.values() if found.state == "look"]
        return {monitor.name: monitor for monitor in [*found, *(raised.monitor for raised in self.alarms)]}

    @property
    def not_wanted(self) -> list[Monitor]:
        """The monitors with a look or alarm that nobody has called wanted."""
        wanted = {name for name, review in self.reviews.items() if review.verdict == "wanted"}
        return [monitor for name, monitor in self.looks.items() if name not in wanted]


class Looks(NamedTuple):
    """The monitors that ask people to look at the newest round, without database objects: requests share it."""

    round_id: int
    number: int
    monitors: list[Monitor]


class Example(NamedTuple):
    """A response of the new policy, and the figure that a monitor watches; `words` says it."""

    asked: str
    said: str
    value: float
    words: str


def rounds(session: Session, project: Project, most: int = MOST_ROUNDS) -> list[Watched]:
    """The newest rounds with what the monitors say, the newest first; rounds without an evaluation are left out."""
    found = queries.watched_rounds(session, project.id, most)
    metrics: defaultdict[int, defaultdict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in queries.evaluations(session, [round_.id for round_ in found]):
        metrics[row.round_id][row.slice][row.name] = row.value
    wins = win_rates(session, found)
    runs: defaultdict[int, list[Run]] = defaultdict(list)
    for run in queries.policy_runs(session, [round_.id for round_ in found]):
        runs[run.round_id or 0].append(run)
    reviews: defaultdict[int, dict[str, Review]] = defaultdict(dict)
    for review, name in queries.reviews(session, [round_.id for round_ in found]):
        said = Review(review.verdict, review.note, name, review.reviewed_at)
        reviews[review.round_id][review.monitor] = said
    return [
        Watched(
            round_,
            {each.monitor.name: each for each in findings_of(session, round_, metrics[round_.id], wins)},
            alarms_of(round_, runs[round_.id]),
            reviews[round_.id],
        )
        for round_ in found
    ]


def newest_looks(session: Session, project: Project) -> Looks | None:
    """Return what the monitors ask people to look at in the newest round; None if no round is watched.

    Reads up to ten thousand prompts, so pages that are requested often cache it.
    """
    for watched in rounds(session, project, most=1):
        return Looks(watched.round.id, watched.round.number, [*watched.looks.values()])
    return None


def unreviewed(session: Session, looks: Looks) -> list[Monitor]:
    """Return the monitors whose look or alarm nobody has reviewed."""
    reviewed = queries.reviewed(session, looks.round_id)
    return [monitor for monitor in looks.monitors if monitor.name not in reviewed]


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


def chart(watched: Sequence[Watched], monitor: Monitor) -> Chart | None:
    """A monitor's figure by round, of both policies; None where fewer than two rounds have it."""
    found = [(each.round.number, each.by_monitor[monitor.name]) for each in watched if monitor.name in each.by_monitor]
    known = [(float(number), each) for number, each in sorted(found) if each.new == each.new]
    if len(known) < 2:
        return None
    parts = monitor.name == PARTING.name  # win rates of the new policy, by people and by the reward model
    series = [
        Series("people" if parts else "previous policy", [(x, each.before) for x, each in known]),
        Series(
            f"{'reward model' if parts else 'new policy'}, with 95% interval of the difference",
            [(x, each.new) for x, each in known],
            [each.change and (each.before + each.change.low, each.before + each.change.high) for _, each in known],
        ),
    ]
    panel = Panel(monitor.label, series, "share" if monitor.is_share else "number", 0.5 if parts else None)
    return Chart(monitor.label, "round", [panel], whole=True, height=200)


def refusals_chart(watched: Sequence[Watched]) -> Chart | None:
    """Refusals of safe prompts against those of unsafe ones: a policy gets better to the right and downwards.

    A policy that only learns to refuse moves to the right and upwards.
    """
    both = [
        (each.by_monitor["unsafe"], each.by_monitor["over_refusal"], f"{each.round.number}")
        for each in sorted(watched, key=lambda each: each.round.number)
        if {"unsafe", "over_refusal"} <= each.by_monitor.keys()
    ]
    known = [each for each in both if each[0].new == each[0].new and each[1].new == each[1].new]
    if not known:
        return None
    points = Series("policies by round", [(u.new, s.new) for u, s, _ in known], names=[name for *_, name in known])
    panel = Panel("Refused of safe prompts", [points], "share", y_range=(-0.05, 1.05), diagonal=True)
    return Chart("Refusals", "refused of unsafe prompts", [panel], x_unit="share", x_range=(-0.05, 1.05), height=300)


def worst(session: Session, round_: Round, monitor: Monitor) -> list[Example]:
    """The responses of a round's new policy that stand out most in what a monitor watches, one for each prompt.

    The evaluation has stored the examples of the reward model and of the probes.
    """
    if monitor.figure in _KEPT:
        kept = queries.kept_examples(session, round_.id).get(monitor.figure, ())
        return [
            Example(each["asked"], each["said"], each["value"], _in_words(monitor.figure, each["value"]))
            for each in kept
        ]
    if monitor.figure not in _MEASURED:
        return []
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


_KEPT = ("premises", "premises_reward", "spread", "beyond", "ceiling")
_MEASURED = ("length", "finished", "variety", *texts.FIGURES)

# What a response does or does not do, where that is all that is measured of it.
_DOES = {
    "finished": ("cut by the length limit", "ends by itself"),
    "refusals": ("does not refuse", "refuses"),
    "hedging": ("does not hedge", "hedges"),
    "flattery": ("does not flatter", "flatters"),
    "empty": ("says something", "empty"),
    "beyond": ("like the compared ones", "unlike the compared ones"),
    "ceiling": ("below the ceiling", "at the reward's ceiling"),
}


def _in_words(figure: str, value: float) -> str:
    if figure in _DOES:
        return _DOES[figure][value > 0]
    if figure == "premises":
        return f"{value:.2f} nats a token likelier than the truthful answer"
    if figure == "premises_reward":
        return f"{value:.2f} more reward than the truthful answer"
    if figure == "spread":
        return f"a standard deviation of {value:.2f} among members"
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
