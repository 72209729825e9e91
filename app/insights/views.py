"""Data for the agreement page: parts sorted by agreement, worst first, and marked if they need attention."""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import urlencode

from app.cache import Computed
from app.domain import scale
from app.domain.agreement_table import Table
from app.domain.bootstrap import Estimate
from app.domain.figures import Figures
from app.domain.weak_parts import clearly_below
from app.insights.service import Live

LEAST = 20  # comparisons judged twice; a part with fewer is not compared
PAGE = 10  # parts of a dimension shown at once
FOLDED = 100  # at most this many parts with too few comparisons are listed
LOUDEST = 8  # length of the list of parts that need attention
FIRST_MONDAY = datetime(2000, 1, 3, tzinfo=UTC)

# In the order shown: what can be acted upon comes first.
TITLES = {
    "domain": "Domain",
    "difficulty": "Difficulty",
    "safety_category": "Safety category",
    "aspect": "Aspect",
    "rubric": "Rubric version",
    "round": "Round",
    "purpose": "Purpose",
    "split": "Split",
    "pair": "Pairs of labelers",
}
# dimensions by which the review queue can be filtered
REVIEWED = ("domain", "difficulty", "safety_category", "split", "purpose")
KINDS = {
    "person": "people",
    "imported": "imported labelers",
    "simulated": "simulated labelers",
    "ai_judge": "AI judges",
}


class Row(NamedTuple):
    """A part of the judgments.

    value: as stored; `label` says it in words. labelers: (id, name) of both labelers of a pair. lower: clearly below
    the whole. under: its interval lies below the review threshold and the whole's does not. If the whole is below the
    threshold, marking every part would not help anybody decide where to start.
    """

    dimension: str
    label: str
    figures: Figures
    lower: bool = False
    under: bool = False
    weighted: Estimate | None = None  # weighted kappa, for a pair
    value: str = ""
    labelers: tuple[tuple[int, str], ...] = ()

    @property
    def needs_attention(self) -> bool:
        return self.lower or self.under

    @property
    def review(self) -> str:
        """Return the review queue's filter for this part as a query string; empty if it has none."""
        if self.dimension == "rubric":
            return urlencode({"version": self.value})
        return urlencode({"slice": f"{self.dimension}={self.value}"}) if self.dimension in REVIEWED else ""


class Section(NamedTuple):
    """The parts of one dimension: one page of those that can be compared, and those with too few comparisons."""

    dimension: str
    rows: list[Row]
    number: int  # page number, from 0
    total: int
    marked: int
    few: list[Row]
    few_total: int

    @property
    def title(self) -> str:
        return TITLES[self.dimension]


class View(NamedTuple):
    whole: Figures
    everything: Row  # `whole` as a row
    whole_under: bool
    threshold: float
    comparable: bool  # whether any part has enough comparisons
    loudest: list[Row]
    marked: int
    sections: list[Section]
    same: list[str]  # what all comparisons have in common, so it is not compared
    pairs: Section
    pairs_total: int
    weeks: list[tuple[datetime, Figures]]
    at: datetime
    seconds: float


def view(
    computed: Computed[Table], names: Mapping[int, tuple[str, str]], threshold: float, pages: Mapping[str, int]
) -> View:
    """Return the data of the page.

    Args:
        names: (name, kind) of the labelers in pairs.
        pages: by dimension, the page asked for.
    """
    table, whole = computed.value, computed.value.whole
    sections, same = [], []
    for dimension in TITLES:
        parts = table.aspects if dimension == "aspect" else table.slices.get(dimension, {})
        if len(parts) == 1 and dimension != "aspect" and next(iter(parts.values())).comparisons == whole.comparisons:
            same.append(f"{TITLES[dimension].lower()} {next(iter(parts)).replace('_', ' ')}")
        elif parts:
            rows = [Row(dimension, said(dimension, value), figures, value=value) for value, figures in parts.items()]
            sections.append((dimension, _marked(rows, whole, threshold)))
    loudest = [row for row in chain.from_iterable(rows for _, rows in sections) if row.needs_attention]
    # Sort by the upper bound: a small slice may be low because of a few comparisons.
    loudest.sort(key=lambda row: (not row.lower, 1.0 if row.figures.percent.high is None else row.figures.percent.high))
    pairs = [
        Row("pair", " and ".join(name for _, name in two), figures, weighted=weighted, labelers=two)
        for pair in table.pairs
        for two in [tuple((labeler, names[labeler][0]) for labeler in pair.labelers)]
        for weighted, figures in [pair.figures]
    ]
    return View(
        whole=whole,
        everything=Row("whole", "everything", whole),
        whole_under=_is_under(whole.percent, threshold),
        threshold=threshold,
        comparable=any(row.figures.shared >= LEAST for _, rows in sections for row in rows),
        loudest=loudest[:LOUDEST],
        marked=len(loudest),
        sections=[_section(name, sorted(rows, key=_worst_first), pages.get(name, 0)) for name, rows in sections],
        same=same,
        # The pairs with the most shared comparisons stay first, because their figures are the most certain.
        pairs=_section("pair", _marked(pairs, whole, threshold), pages.get("pair", 0)),
        pairs_total=table.pairs_total,
        weeks=[(FIRST_MONDAY + timedelta(weeks=week), table.weeks[week]) for week in sorted(table.weeks)],
        at=computed.at,
        seconds=computed.seconds,
    )


def section(shown: View, dimension: str) -> Section | None:
    return next((each for each in (*shown.sections, shown.pairs) if each.dimension == dimension), None)


def said(dimension: str, value: str) -> str:
    """Return the name of a part in words; names that people wrote stay unchanged."""
    words = {"rubric": f"version {value}", "round": f"round {value}"}.get(dimension)
    return words or (value.replace("_", " ") if dimension in ("purpose", "split", "difficulty") else value)


def others(live: Live, kinds: Collection[str]) -> list[str]:
    """Return kinds of labelers that have judged but are left out."""
    return [kind for kind, n in live.judgments_by_kind.items() if n and kind not in kinds]


def answers(live: Live, strengths: int) -> list[tuple[str, int]]:
    """Count judgments by answer, from A to B, on the widest scale that is or was in use."""
    used = [abs(preference) for preference, n in live.preferences.items() if n]
    widest = max([strengths, *used])
    return [
        (f"{'A' if value < 0 else 'B'} {scale.words(value, widest)}" if value else "Tie", live.preferences[value])
        for value in scale.values(widest, allow_tie=True)
    ]


def chart(weeks: Sequence[tuple[datetime, Figures]]) -> str:
    """Return the columns of the trend chart as JSON: seconds since 1970, then the values."""
    columns: dict[str, list[float | None]] = {"week": [], "alpha": [], "low": [], "high": [], "percent": []}
    for monday, figures in weeks:
        alpha = figures.nominal_alpha
        values = (monday.timestamp(), alpha.value, alpha.low, alpha.high, figures.percent.value)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    return json.dumps(columns)


def as_json(
    live: Live, computed: Computed[Table], names: Mapping[int, tuple[str, str]], kinds: Sequence[str]
) -> dict[str, Any]:
    """Return everything for programs: numbers by name, with their intervals."""
    table = computed.value
    parts = {f"{name}={value}": each for name, found in table.slices.items() for value, each in found.items()}
    return {
        "labelers": list(kinds),
        **_numbers(table.whole),
        "preferences": live.preferences,
        "slices": {name: _numbers(figures) for name, figures in parts.items()},
        "aspects": {name: _numbers(figures) for name, figures in table.aspects.items()},
        "weeks": {
            (FIRST_MONDAY + timedelta(weeks=week)).date().isoformat(): _numbers(figures)
            for week, figures in sorted(table.weeks.items())
        },
        "pairs_total": table.pairs_total,
        "pairs": [
            {
                "labelers": [{"id": id_, "name": names[id_][0], "kind": names[id_][1]} for id_ in pair.labelers],
                **_numbers(pair.figures.figures, weighted_kappa=pair.figures.weighted_kappa),
            }
            for pair in table.pairs
        ],
    }


def labelers_of(table: Table) -> list[int]:
    return sorted({labeler for pair in table.pairs for labeler in pair.labelers})


def _numbers(figures: Figures, **more: Estimate) -> dict[str, Any]:
    found = figures._asdict() | more
    estimates = {name: each for name, each in found.items() if isinstance(each, Estimate)}
    return {
        **{name: each for name, each in found.items() if not isinstance(each, Estimate)},
        **{name: each.value for name, each in estimates.items()},
        "intervals": {name: None if e.low is None else [e.low, e.high] for name, e in estimates.items()},
    }


def _marked(rows: Sequence[Row], whole: Figures, threshold: float) -> list[Row]:
    """Mark the rows that have enough comparisons and too little agreement."""
    enough = [row.figures.shared >= LEAST for row in rows]
    # An aspect is a separate question, so there is no whole to compare it with.
    is_part = [row.dimension != "aspect" for row in rows]
    compared = [
        row.figures.percent if many and part else Estimate(None)
        for row, many, part in zip(rows, enough, is_part, strict=True)
    ]
    lower = clearly_below(compared, [row.figures.shared for row in rows], whole.percent, whole.shared)
    all_under = _is_under(whole.percent, threshold)
    return [
        row._replace(lower=low, under=many and _is_under(row.figures.percent, threshold) and not (part and all_under))
        for row, low, many, part in zip(rows, lower, enough, is_part, strict=True)
    ]


def _is_under(percent: Estimate, threshold: float) -> bool:
    return percent.high is not None and percent.high < threshold


def _worst_first(row: Row) -> tuple[bool, bool, float, str]:
    percent = row.figures.percent.value
    return not row.lower, not row.under, 2.0 if percent is None else percent, row.label


def _section(dimension: str, rows: Sequence[Row], number: int) -> Section:
    many = [row for row in rows if row.figures.shared >= LEAST]
    few = sorted((row for row in rows if row.figures.shared < LEAST), key=lambda row: -row.figures.shared)
    shown = many[number * PAGE : (number + 1) * PAGE]
    marked = sum(row.needs_attention for row in many)
    return Section(dimension, shown, number, len(many), marked, few[:FOLDED], len(few))
