"""SQL of settling: the judgments of open comparisons, and the changes that settling makes."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Double,
    Select,
    SmallInteger,
    Text,
    and_,
    any_,
    bindparam,
    case,
    column,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, aggregate_order_by
from sqlalchemy.orm import Session

from app.db import prepared
from app.labeling.eligibility import left_of_kept
from app.models import Comparison, Judgment, Rubric


class Answered(NamedTuple):
    """An open comparison and its live judgments in the order they were given; a preference of None is "cannot judge".

    could_answer: how many of the people it is kept for can still answer; None if it is open to everybody.
    """

    id: int
    project_id: int
    purpose: str
    gold: int | None
    overlap: int
    overlap_max: int | None
    grown: int
    judgment_count: int
    ranking_id: int | None
    offered: bool
    flagged: bool
    could_answer: int | None
    strengths: int
    labelers: list[int]
    preferences: list[int | None]

    @property
    def said(self) -> list[tuple[int, int]]:
        """Return (labeler, preference) of the judgments that have a preference."""
        both = zip(self.labelers, self.preferences, strict=True)
        return [(labeler, preference) for labeler, preference in both if preference is not None]

    @property
    def decided(self) -> list[int]:
        return [preference for _, preference in self.said]

    @property
    def values(self) -> dict[str, Any]:
        """Return the current values of the columns that settling may change."""
        unchanged = {"id": self.id, "overlap": self.overlap, "grown": self.grown, "state": "open"}
        return unchanged | dict.fromkeys(("review_reason", "agreement", "consensus", "p_b", "p_tie"))


def lock(session: Session, comparison_ids: Sequence[int]) -> list[int]:
    """Lock the open comparisons among these and their rankings; return their ids.

    This is a statement of its own, because only the next statement sees judgments committed while it waited for locks.
    """
    named = _one_of(comparison_ids)
    rankings = session.scalars(select(Comparison.ranking_id).where(Comparison.id == named, Comparison.ranking_id > 0))
    if of_rankings := set(rankings):
        pairs = session.scalars(select(Comparison.id).where(Comparison.ranking_id == _one_of(of_rankings)))
        named = _one_of({*comparison_ids, *pairs})
    locked = select(Comparison.id).where(Comparison.id == named, Comparison.state == "open").order_by(Comparison.id)
    return list(session.scalars(locked.with_for_update(key_share=True)))


_OWN = [getattr(Comparison, name) for name in Answered._fields[: Answered._fields.index("could_answer")]]
_IDS = bindparam("ids", type_=ARRAY(BigInteger))


def _answered() -> Select[Any]:
    said = (
        select(
            Judgment.comparison_id,
            func.array_agg(aggregate_order_by(Judgment.labeler_id, Judgment.id)).label("labelers"),
            func.array_agg(aggregate_order_by(Judgment.preference, Judgment.id)).label("preferences"),
        )
        .where(Judgment.comparison_id == any_(_IDS), Judgment.superseded_at.is_(None))
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    found = select(*_OWN, left_of_kept(), Rubric.strengths, said.c.labelers, said.c.preferences)
    found = found.join(said, said.c.comparison_id == Comparison.id).join(Rubric, Rubric.id == Comparison.rubric_id)
    return found.where(Comparison.state == "open").order_by(Comparison.id)


_ANSWERED = prepared(_answered())  # built once, because it runs with every answer


def answered(session: Session, comparison_ids: Sequence[int]) -> list[Answered]:
    """Return the comparisons among these, which are locked, that are open and that somebody has judged."""
    return [Answered._make(row) for row in session.execute(_ANSWERED, {"ids": [*comparison_ids]})]


def _one_of(ids: Iterable[int | None]) -> Any:
    return any_(literal([*ids], ARRAY(BigInteger)))  # one parameter, however many ids


class Moves(NamedTuple):
    """The effect of another review threshold: how many comparisons it settles, and how many it sends to review."""

    settled: int
    to_review: int


_SPLIT = (Comparison.state == "in_review", func.coalesce(Comparison.review_reason, "split") == "split")


def moves(session: Session, project_id: int, threshold: float) -> Moves:
    """Count the comparisons that `move` would settle and send to review."""
    settles = and_(*_SPLIT, Comparison.agreement >= threshold, ~Comparison.flagged)
    splits = and_(Comparison.state == "settled", Comparison.agreement < threshold)
    counts = select(func.count().filter(settles), func.count().filter(splits))
    return Moves(*session.execute(counts.where(Comparison.project_id == project_id)).one())


def move(session: Session, project_id: int, threshold: float) -> None:
    """Apply a new review threshold to comparisons that were decided by another one.

    A comparison in review for a reason other than a split stays there; a flagged one keeps waiting for its flag. Rows
    are locked by ascending id, as in settling.
    """
    was_split = and_(*_SPLIT, Comparison.agreement >= threshold)
    # A flag sends a comparison to review only if a split does not: see app.domain.overlap.why_review.
    is_split = and_(
        or_(
            Comparison.state == "settled", and_(Comparison.state == "in_review", Comparison.review_reason == "flagged")
        ),
        Comparison.agreement < threshold,
    )
    found = select(Comparison.id, is_split).where(Comparison.project_id == project_id, or_(was_split, is_split))
    rows = session.execute(found.order_by(Comparison.id).with_for_update(of=Comparison, key_share=True)).all()
    state = case((Comparison.flagged, "in_review"), else_="settled")
    settled_at = case((~Comparison.flagged, func.now()))
    reason = case((Comparison.flagged, "flagged"))
    for split, values in (
        (True, {"state": "in_review", "review_reason": "split", "settled_at": None}),
        (False, {"state": state, "review_reason": reason, "settled_at": settled_at}),
    ):
        ids = _one_of(row[0] for row in rows if bool(row[1]) is split)
        session.execute(
            update(Comparison).where(Comparison.id == ids).values(**values),
            execution_options={"synchronize_session": False},
        )


def write(session: Session, changes: list[dict[str, Any]]) -> None:
    """Write the changes. Each one holds a comparison's id and all values that settling decides."""
    if not changes:
        return
    new = (
        func.jsonb_to_recordset(literal(changes, JSONB))
        .table_valued(
            column("id", BigInteger),
            column("overlap", BigInteger),
            column("grown", SmallInteger),
            column("state", Text),
            column("review_reason", Text),
            column("agreement", Double),
            column("consensus", Double),
            column("p_b", Double),
            column("p_tie", Double),
            name="new",
        )
        .render_derived(with_types=True)
    )
    values = {name: new.c[name] for name in changes[0] if name != "id"}
    settled_at = case((new.c.state == "settled", func.now()))
    session.execute(
        update(Comparison).where(Comparison.id == new.c.id).values(**values, settled_at=settled_at),
        execution_options={"synchronize_session": False},
    )
