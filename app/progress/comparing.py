"""Two rounds side by side: settings, data, figures, and both policies' answers to the same prompts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.charts import as_csv
from app.domain.intervals import Interval
from app.models import Snapshot
from app.progress import queries
from app.render import counted
from app.rounds import queries as round_queries
from app.rounds import result_queries
from app.rounds.outcomes import RoundRow, WinRate

ANSWERS = 10  # answers on a page


class Line(NamedTuple):
    """A named value in both rounds, as text."""

    name: str
    first: str
    second: str

    @property
    def differs(self) -> bool:
        return self.first != self.second


class Answer(NamedTuple):
    asked: str
    tags: str
    first: str
    second: str


class Compared(NamedTuple):
    first: RoundRow
    second: RoundRow
    settings: list[Line]
    data: list[Line]
    figures: list[Line]
    answers: list[Answer]
    more: bool

    @property
    def changed(self) -> list[Line]:
        return [line for line in self.settings if line.differs]

    @property
    def same(self) -> list[Line]:
        return [line for line in self.settings if not line.differs]


def compare(session: Session, first: RoundRow, second: RoundRow, offset: int) -> Compared:
    """Compare both rounds; `offset`: how many answers to skip."""
    answers: Sequence[Any] = []
    policies = first.round.policy_after_id, second.round.policy_after_id
    if policies[0] and policies[1]:
        answers = queries.answered_by_both(session, *policies, offset, ANSWERS + 1)  # type: ignore[arg-type]
    return Compared(
        first,
        second,
        settings=_settings(first, second),
        data=_data(session, first, second),
        figures=_figures(session, first, second),
        answers=[
            Answer(_asked(row.messages), ", ".join(each for each in (row.split, row.domain) if each), row.a, row.b)
            for row in answers[:ANSWERS]
        ],
        more=len(answers) > ANSWERS,
    )


def compared_csv(compared: Compared) -> str:
    """Return a CSV row for each setting, data count and figure."""
    parts = (("settings", compared.settings), ("data", compared.data), ("figures", compared.figures))
    names = [f"round {each.round.number}" for each in (compared.first, compared.second)]
    return as_csv(["part", "name", *names], [[part, *line] for part, lines in parts for line in lines])


def _asked(messages: Sequence[dict[str, str]]) -> str:
    return messages[-1]["content"] if messages else ""


def _settings(first: RoundRow, second: RoundRow) -> list[Line]:
    a, b = first.round.config, second.round.config
    names = sorted({*a, *b})
    given = [Line("algorithm", first.round.algorithm, second.round.algorithm)]
    return given + [Line(name, _written(a, name), _written(b, name)) for name in names if name != "algorithm"]


def _written(config: dict[str, Any], name: str) -> str:
    value = config.get(name)
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return "–" if value is None else str(value)


def _data(session: Session, first: RoundRow, second: RoundRow) -> list[Line]:
    a, b = (session.get(Snapshot, id_) if (id_ := each.round.snapshot_id) else None for each in (first, second))
    counts = [each.counts if each else {} for each in (a, b)]
    words = {
        "train": "To train on",
        "new": "of which new",
        "heldout": "Held out",
        "judgments": "Judgments",
        "ties": "Ties",
    }
    lines = [Line(word, *(_count(each.get(name)) for each in counts)) for name, word in words.items()]
    if a and b:
        shared = f"{queries.shared_comparisons(session, a.id, b.id):,}"
        lines.append(Line("Comparisons that both read", shared, shared))
    models = round_queries.models_by_id(
        session,
        {id_ for row in (first, second) for id_ in (row.round.policy_before_id, row.round.reference_id)},
    )
    for label, name in (("Began with", "policy_before_id"), ("Reference", "reference_id")):
        lines.append(Line(label, *(models[getattr(row.round, name)].name for row in (first, second))))
    return lines


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


# Metrics of an evaluation: label, name, format.
_MEASURES: tuple[tuple[str, str, str], ...] = (
    ("Tokens a response", "eval_length", ".1f"),
    ("Finished", "eval_finished", ".0%"),
    ("Repetition", "eval_repetition", ".0%"),
    ("Refusals", "eval_refusals", ".0%"),
    ("Formatting, marks for each hundred words", "eval_formatting", ".2f"),
    ("Variety", "eval_variety", ".0%"),
)


def _figures(session: Session, first: RoundRow, second: RoundRow) -> list[Line]:
    rows = (first, second)

    def line(name: str, said: Callable[[RoundRow], str]) -> Line:
        return Line(name, said(first), said(second))

    lines = [
        line("Verdict", lambda row: f"{row.verdict.word}, by {_by(row.verdict.by)}" if row.verdict else "–"),
        line("Win rate over the previous policy", lambda row: _rate(row.wins)),
        line("Win rate over the first policy", lambda row: _rate(row.first)),
        line("Reward less the previous policy's, own reward model", lambda row: _number(row.difference)),
        line("Reward less the reference's, own reward model", lambda row: _gain(row)),
        line("KL to the reference, nats a response", lambda row: "–" if row.kl is None else f"{row.kl:.2f}"),
        line("Reward model's accuracy", lambda row: "–" if row.accuracy is None else f"{row.accuracy:.0%}"),
    ]
    measured = [_evaluation(session, row) for row in rows]
    for label, name, form in _MEASURES:
        if any(name in each for each in measured):
            lines.append(Line(label, *(format(each[name], form) if name in each else "–" for each in measured)))
    return lines


def _by(whom: str) -> str:
    return "people" if whom == "people" else "the reward model"


def _rate(wins: WinRate | None) -> str:
    if wins is None:
        return "–"
    prompts = counted(wins.prompts, "prompt")
    return f"{wins.value:.0%} ({wins.low:.0%} to {wins.high:.0%}) of {prompts}"


def _number(interval: Interval | None) -> str:
    return f"{interval.value:+.2f} ({interval.low:.2f} to {interval.high:.2f})" if interval else "–"


def _gain(row: RoundRow) -> str:
    if row.yardstick is None:
        return "–"
    return _number(row.yardstick.interval) if row.yardstick.interval else f"{row.yardstick.gain:+.2f}"


def _evaluation(session: Session, row: RoundRow) -> dict[str, float]:
    runs = [run.id for run in round_queries.runs_of(session, row.round.id) if run.kind == "evaluate"]
    return {each.name: each.value for each in result_queries.last_values(session, runs) if not each.slice}
