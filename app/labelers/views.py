"""Data for the labelers' pages: figures with intervals, and the reasons why somebody needs attention.

A share gets attention if a 99.9% interval rules out chance. With 500 labelers, a 95% interval would flag about two
dozen by chance. Cells show the 95% interval.
"""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from math import isnan
from typing import NamedTuple

import numpy as np

from app.documents import Calibration
from app.domain.labelers import STREAK, Figures, others_consensus
from app.domain.labelers import UNSAID as UNSAID_SIDE
from app.domain.proportions import wilson
from app.labelers.queries import Labeler, Read
from app.labelers.service import Overview

Z_SURE = 3.2905  # 99.9%
KINDS = {"person": "People", "imported": "Imported", "simulated": "Simulated", "ai_judge": "AI judges"}
MACHINES = ("simulated", "ai_judge")  # their speed says nothing
KIND_NAMES = {"imported": "imported", "simulated": "simulated", "ai_judge": "AI judge"}

# Reasons for attention, by severity; the highest number is the worst.
CALIBRATION, AGREEMENT, SIDE, FAST, CONSISTENCY, DRIFT, UNSAID = 7, 6, 5, 4, 3, 2, 1
AGREEMENT_GAP = 0.10  # agreement this far below others of their kind
LEAST_CONSISTENT = 0.7
DRIFT_GAP = 0.10
DRIFT_WEEKS = 3  # the last weeks, compared with the earlier ones
LEAST_DRIFT = 20  # answers needed in both periods
MUCH_UNSAID = 0.3


class Share(NamedTuple):
    """A share with its 95% interval; `marked` if it says something about the labeler."""

    hits: float
    n: float
    low: float
    high: float
    marked: bool = False

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def words(self) -> str:
        return f"{self.value:.0%} ({self.low * 100:.0f}–{self.high * 100:.0f})"


class Week(NamedTuple):
    begins: datetime
    judgments: int
    agreement: Share | None


class Drift(NamedTuple):
    """Agreement with others over the weeks.

    before, now: None unless both are known. points: the line as an SVG's points.
    """

    points: str
    before: float | None
    now: float | None
    marked: bool = False

    @property
    def words(self) -> str:
        if self.before is None or self.now is None:
            return ""
        change = round((self.now - self.before) * 100)
        return "→ 0" if change == 0 else f"{'↗' if change > 0 else '↘'} {change:+d}"


class Reason(NamedTuple):
    severity: int
    words: str


class Row(NamedTuple):
    """A labeler on the list. None means that nothing was counted."""

    labeler: Labeler
    judgments: int
    answers: int
    unsaid: int
    agreement: Share | None
    calibration: Share | None
    consistency: Share | None
    left: Share | None
    low: float | None  # of the reliability; so is `high`
    high: float | None
    seconds: float | None
    streaks: int
    fast: int
    drift: Drift | None
    reasons: tuple[Reason, ...]

    @property
    def kind_name(self) -> str:
        return KIND_NAMES.get(self.labeler.kind, "")

    @property
    def order(self) -> tuple[int, int, int, int, int]:
        """Sort key: labelers with a reason for attention first, by severity; removed labelers last."""
        worst = max((reason.severity for reason in self.reasons), default=0)
        place = {"removed": 2}.get(self.labeler.state, 0 if self.reasons else 1)
        return place, -worst, -len(self.reasons), -self.judgments, self.labeler.id


class Listing(NamedTuple):
    """kind: the kind shown, or all. kinds: number of labelers by kind. left: the share of left over all rows.
    attention: rows with a reason."""

    kind: str
    rows: list[Row]
    kinds: dict[str, int]
    judgments: int
    agreement: Share | None
    left: Share | None
    attention: int


def share(hits: float, n: float, *, z: float = 1.959964) -> Share | None:
    bounds = wilson(hits, n, z)
    return Share(float(hits), float(n), *bounds) if bounds else None


def listing(found: Overview, calibration: Calibration, kind: str | None) -> Listing:
    """List the labelers of a kind (or all), those who need attention first. Each is compared with others of the same
    kind.

    Without a kind, list people: machines' judgments are never counted as people's.
    """
    counted = Counter(labeler.kind for labeler in found.labelers)
    kinds = {name: counted[name] for name in KINDS if counted[name]}
    kind = kind or next(iter(kinds), "all")
    shown = [labeler for labeler in found.labelers if kind in ("all", labeler.kind)]
    crowd = {name: _agreement_of(found, name) for name in kinds}
    rows = sorted((row(found, labeler, calibration, crowd[labeler.kind]) for labeler in shown), key=lambda r: r.order)
    places = [found.row_of[labeler.id] for labeler in shown if labeler.id in found.row_of]
    figures = found.figures
    return Listing(
        kind=kind,
        rows=rows,
        kinds=kinds,
        judgments=int(figures.judgments[places].sum()),
        agreement=share(figures.agreed[places].sum(), figures.compared[places].sum()),
        left=_sided(share(figures.left[places].sum(), figures.sided[places].sum())),
        attention=sum(bool(each.reasons) and each.labeler.state != "removed" for each in rows),
    )


def _agreement_of(found: Overview, kind: str) -> float | None:
    """Return the pooled agreement of labelers of one kind with the others."""
    places = [found.row_of[each.id] for each in found.labelers if each.kind == kind and each.id in found.row_of]
    compared = float(found.figures.compared[places].sum())
    return float(found.figures.agreed[places].sum()) / compared if compared else None


def row(found: Overview, labeler: Labeler, calibration: Calibration, crowd: float | None) -> Row:
    """Return one labeler's row; `crowd` is the agreement of labelers of the same kind."""
    i, figures = found.row_of.get(labeler.id), found.figures
    consistency = share(*found.consistency.get(labeler.id, (0, 0)))
    fitted = labeler.fitted
    row_ = Row(
        labeler, 0, 0, 0, None, None, consistency, None, fitted.get("low"), fitted.get("high"), None, 0, 0, None, ()
    )
    if i is not None:
        seconds = float(figures.median_ms[i]) / 1000
        row_ = row_._replace(
            judgments=int(figures.judgments[i]),
            answers=int(figures.answers[i]),
            unsaid=int(figures.unsaid[i]),
            agreement=share(figures.agreed[i], figures.compared[i]),
            calibration=share(figures.right[i], figures.measured[i]),
            left=_sided(share(figures.left[i], figures.sided[i])),
            seconds=None if isnan(seconds) else seconds,
            streaks=int(figures.streaks[i]),
            fast=int(figures.fast[i]),
            drift=drift(figures, i),
        )
    return row_._replace(reasons=tuple(sorted(_reasons(row_, calibration, crowd), reverse=True)))


def _sided(left: Share | None) -> Share | None:
    return left and left._replace(marked=not left.low <= 0.5 <= left.high)


def _reasons(row_: Row, calibration: Calibration, crowd: float | None) -> Iterator[Reason]:
    """Say why an admin should look at a labeler."""
    if row_.labeler.state == "paused":
        yield Reason(CALIBRATION + 1, "is paused and needs your decision")
    known = row_.calibration
    if known and known.n >= calibration.least and known.value < calibration.threshold:
        yield Reason(CALIBRATION, f"right on {known.hits:.0f} of {known.n:.0f} calibration items, {known.words}")
    agreed = row_.agreement
    if agreed and crowd is not None and _bounds(agreed)[1] < crowd - AGREEMENT_GAP:
        yield Reason(AGREEMENT, f"agrees with others in {agreed.words}; usual is {crowd:.0%}")
    left = row_.left
    if left and not _bounds(left)[0] <= 0.5 <= _bounds(left)[1]:
        side, picked = ("left", left) if left.value > 0.5 else ("right", _other(left))
        yield Reason(SIDE, f"picks the {side} response in {picked.words}")
    if row_.streaks and row_.labeler.kind not in MACHINES:
        runs = "one run" if row_.streaks == 1 else f"{row_.streaks} runs"
        yield Reason(FAST, f"{row_.fast} answers too fast, in {runs} of {STREAK} or more")
    steady = row_.consistency
    if steady and _bounds(steady)[1] < LEAST_CONSISTENT:
        yield Reason(CONSISTENCY, f"gives the same answer to repeats in {steady.words}")
    if row_.drift and row_.drift.marked:
        yield Reason(DRIFT, f"agreement fell from {row_.drift.before:.0%} to {row_.drift.now:.0%}")
    unsaid = share(row_.unsaid, row_.answers)
    if unsaid and _bounds(unsaid)[0] > MUCH_UNSAID:
        yield Reason(UNSAID, f"says “cannot judge” in {unsaid.words}")


def _bounds(of: Share) -> tuple[float, float]:
    return wilson(of.hits, of.n, Z_SURE) or (0.0, 1.0)


def _other(of: Share) -> Share:
    return Share(of.n - of.hits, of.n, 1 - of.high, 1 - of.low)


def drift(figures: Figures, i: int) -> Drift | None:
    """Return the labeler's agreement over time; None if no week has a comparison that others judged too."""
    agreed, compared = figures.agreed_by_week[i], figures.compared_by_week[i]
    some = np.flatnonzero(compared)
    if not len(some):
        return None
    width = max(len(compared) - 1, 1)
    # A line 60 wide and 16 high, with 1 at the top.
    points = " ".join(f"{60 * w / width:.1f},{1 + 14 * (1 - agreed[w] / compared[w]):.1f}" for w in some)
    later = some[-DRIFT_WEEKS:]
    earlier = some[:-DRIFT_WEEKS]
    n_before, n_now = compared[earlier].sum(), compared[later].sum()
    if min(n_before, n_now) < LEAST_DRIFT:
        return Drift(points, None, None)
    before, now = agreed[earlier].sum() / n_before, agreed[later].sum() / n_now
    pooled = (agreed[earlier].sum() + agreed[later].sum()) / (n_before + n_now)
    error = np.sqrt(pooled * (1 - pooled) * (1 / n_before + 1 / n_now))
    marked = before - now > max(DRIFT_GAP, Z_SURE * error)
    return Drift(points, float(before), float(now), bool(marked))


def weeks(figures: Figures, i: int) -> list[Week]:
    """Return the labeler's weeks with judgments, newest first."""
    found = [
        Week(
            datetime.fromtimestamp(int(begins), UTC),
            int(figures.by_week[i, w]),
            share(figures.agreed_by_week[i, w], figures.compared_by_week[i, w]),
        )
        for w, begins in enumerate(figures.week)
        if figures.by_week[i, w]
    ]
    return found[::-1]


class Slice(NamedTuple):
    name: str
    value: str
    judgments: int
    agreement: Share | None


def slices(read: Read, i: int, tags: dict[int, tuple[str, str]]) -> list[Slice]:
    """Return the agreement of labeler `i` with others by domain and difficulty."""
    mine = np.flatnonzero(read.judged.labeler == i)
    others = others_consensus(read.judged)[mine]
    side, weight = read.judged.side[mine], read.judged.weight[mine]
    compared = (others != UNSAID_SIDE) & (side != UNSAID_SIDE)
    of = [tags.get(int(id_), ("", "")) for id_ in read.comparison_ids[read.judged.comparison[mine]]]
    found = []
    for place, name in enumerate(("domain", "difficulty")):
        values = np.array([tag[place] for tag in of], dtype=object)
        for value in sorted({value for value in values if value}):
            n = compared * weight * (values == value)
            agreement = share(n[others == side].sum(), n.sum())
            found.append(Slice(name, value, int((values == value).sum()), agreement))
    return found
