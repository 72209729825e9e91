"""SQL of labelers' answers: the answer to one lease, which answers may still change, and a labeler's history."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, ColumnElement, Row, Select, Uuid, bindparam, case, cast, exists, func, select, update
from sqlalchemy.orm import Session

from app.access import gate_queries
from app.access.gate_queries import Gate
from app.db import prepared
from app.labeling.conditions import is_whole_answer
from app.labeling.queries import lock_comparison
from app.models import Comparison, Judgment, Lease, Prompt, Rubric, Snapshot

# Labelers' answers alone put a comparison into review for these reasons, so another answer may open it again. Reviews
# that a person or the reward model asked for stay.
BY_ITSELF = ("split", "unjudgeable", "flagged")


def lock_pairs(session: Session, comparison_id: int) -> list[Comparison]:
    """Return the locked comparison. If it belongs to a ranking, return all its pairs, the offered one first."""
    return lock_with_ranking(session, lock_comparison(session, comparison_id))


def lock_with_ranking(session: Session, comparison: Comparison) -> list[Comparison]:
    """Return the given comparison, which the caller holds locked.

    If it belongs to a ranking, lock and return all its pairs, the offered one first.
    """
    if comparison.ranking_id is None:
        return [comparison]
    pairs = select(Comparison).where(Comparison.ranking_id == comparison.ranking_id).order_by(Comparison.id)
    return list(session.scalars(pairs.with_for_update(key_share=True), execution_options={"populate_existing": True}))


class SoFar(NamedTuple):
    """What decides whether a labeler's answer to a locked comparison is accepted.

    leases: the labeler's leases on it, each with its age in milliseconds. rubric: the comparison's rubric. is_judged:
    the labeler has judged it. sent_before_id: a judgment sent earlier with the same key, on any comparison. gate: the
    labeler's standing in the project.
    """

    leases: list[tuple[Lease, int]]
    rubric: Rubric
    is_judged: bool
    sent_before_id: int | None
    gate: Gate


def _so_far() -> Select[Any]:
    comparison_id, labeler_id = bindparam("comparison_id", type_=BigInteger), bindparam("labeler_id", type_=BigInteger)
    age = cast(func.extract("epoch", func.now() - Lease.created_at) * 1000, BigInteger)
    judged = exists().where(
        Judgment.comparison_id == comparison_id, Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None)
    )
    sent = select(Judgment.id).where(Judgment.idempotency_key == bindparam("key", type_=Uuid)).scalar_subquery()
    standing = gate_queries.standing_of(bindparam("project_id", type_=BigInteger), labeler_id)
    own: Select[Any] = select(Lease, age, Rubric, judged, sent, *standing)
    own = own.join(Comparison, Comparison.id == Lease.comparison_id).join(Rubric, Rubric.id == Comparison.rubric_id)
    return own.where(Lease.comparison_id == comparison_id, Lease.labeler_id == labeler_id)


_SO_FAR = prepared(_so_far())


def so_far(session: Session, comparison: Comparison, labeler_id: int, idempotency_key: UUID) -> SoFar:
    """Read all this for a labeler who has or had a lease on the comparison."""
    values: dict[str, Any] = {"comparison_id": comparison.id, "project_id": comparison.project_id}
    values |= {"labeler_id": labeler_id, "key": idempotency_key}
    rows = session.execute(_SO_FAR, values, execution_options={"populate_existing": True}).all()
    _, _, rubric, is_judged, sent_before_id, *gate = rows[0]
    return SoFar([(row[0], row[1]) for row in rows], rubric, is_judged, sent_before_id, Gate(*gate))


def judgment_by_key(session: Session, idempotency_key: UUID) -> Judgment | None:
    return session.scalars(select(Judgment).where(Judgment.idempotency_key == idempotency_key)).one_or_none()


def said_on(session: Session, judgment: Judgment) -> list[Judgment]:
    """Return all judgments of the answer that this judgment belongs to.

    For a pair that is the judgment itself. For a ranking it is the judgments on all its pairs, including pairs that a
    reviewer has since taken out of the ranking.
    """
    same = select(Judgment).where(
        Judgment.labeler_id == judgment.labeler_id,
        Judgment.created_at == judgment.created_at,  # has an index
        Judgment.lease_id == judgment.lease_id,
        Judgment.superseded_at.is_not_distinct_from(judgment.superseded_at),
    )
    return list(session.scalars(same.order_by(Judgment.comparison_id))) or [judgment]


def ranked_pairs(session: Session, judgment: Judgment) -> dict[tuple[int, int], int | None]:
    """Return the judgment's whole ranking: (completion A, completion B) -> preference towards B."""
    parts = {part.comparison_id: part.preference for part in said_on(session, judgment)}
    pairs = select(Comparison.id, Comparison.completion_a_id, Comparison.completion_b_id)
    rows = session.execute(pairs.where(Comparison.id.in_(parts)))
    return {(row.completion_a_id, row.completion_b_id): parts[row.id] for row in rows}


def find_judgment(session: Session, project_id: int, judgment_id: int) -> Judgment | None:
    of_project = Judgment.comparison_id.in_(select(Comparison.id).where(Comparison.project_id == project_id))
    return session.scalars(select(Judgment).where(Judgment.id == judgment_id, of_project)).one_or_none()


def last_answer(session: Session, project_id: int, labeler_id: int) -> Judgment | None:
    """Return the labeler's newest answer from the labeling page that still stands.

    For a ranking, this is the judgment on the offered pair.
    """
    mine = (
        select(Judgment)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None), Judgment.lease_id.is_not(None))
        .where(Comparison.project_id == project_id, is_whole_answer())
        .order_by(Judgment.created_at.desc(), Judgment.id.desc())
    )
    return session.scalars(mine.limit(1)).one_or_none()


def undone(session: Session, comparison_id: int, labeler_id: int, lease_id: UUID) -> Judgment | None:
    """Return the labeler's answer on this lease from before they took it back, or None."""
    said = select(Judgment).where(
        Judgment.comparison_id == comparison_id,
        Judgment.labeler_id == labeler_id,
        Judgment.lease_id == lease_id,
        Judgment.superseded_for == "undone",
    )
    return session.scalars(said.order_by(Judgment.id.desc()).limit(1)).one_or_none()


def live_judgments(session: Session, comparison_ids: Collection[int], labeler_id: int) -> list[Judgment]:
    own = Judgment.labeler_id == labeler_id, Judgment.superseded_at.is_(None), Judgment.lease_id.is_not(None)
    return list(session.scalars(select(Judgment).where(Judgment.comparison_id.in_(comparison_ids), *own)))


def changeable(session: Session, judgments: Sequence[Judgment], since: timedelta) -> set[int]:
    """Return ids of the comparisons whose judgment the labeler can still change.

    The judgment must be one of `judgments`, must stand, must not be older than `since`, and must be newer than the
    project's last snapshot. No reviewer may have touched the comparison.

    Nothing else counts: neither other labelers' answers nor whether the comparison is closed. Otherwise labelers could
    learn how others answered, or which of their answers was to a calibration item, because items never close.
    """
    frozen = exists().where(Snapshot.project_id == Comparison.project_id, Snapshot.created_at > Judgment.created_at)
    found = (
        select(Judgment.comparison_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(
            Judgment.id.in_([judgment.id for judgment in judgments]),
            Judgment.superseded_at.is_(None),
            Judgment.created_at >= func.now() - since,
            Comparison.state.in_(("open", "settled", "in_review")),
            func.coalesce(Comparison.review_reason, BY_ITSELF[0]).in_(BY_ITSELF),
            ~frozen,
            ~_is_apart(),
        )
    )
    return set(session.scalars(found))


def _is_apart() -> ColumnElement[bool]:
    """Condition on judgments of a ranking: a reviewer has since asked more people about this pair alone."""
    ranked = exists().where(Lease.id == Judgment.lease_id, func.jsonb_typeof(Lease.shown) == "array")
    return Comparison.ranking_id.is_(None) & ranked


def is_taken_apart(session: Session, parts: Sequence[Judgment]) -> bool:
    """Tell whether a reviewer has asked more people about a pair of this answer alone."""
    apart = select(Judgment.id).join(Comparison, Comparison.id == Judgment.comparison_id).where(_is_apart())
    return bool(session.scalar(select(apart.where(Judgment.id.in_([part.id for part in parts])).exists())))


def supersede(session: Session, judgments: Sequence[Judgment], reason: str) -> None:
    rows = update(Judgment).where(Judgment.id.in_([judgment.id for judgment in judgments]))
    session.execute(rows.values(superseded_at=func.now(), superseded_for=reason))


def reopen(session: Session, comparison_ids: Collection[int], at_least: int) -> None:
    """Reopen comparisons whose answer was taken back, and undo the overlap that the answer had added.

    Added places that somebody has already taken stay, and one place stays for the answer that replaces this one.

    Args:
        comparison_ids: one comparison, or the pairs of one ranking, locked.
        at_least: the overlap that adaptive overlap starts with.
    """
    of_them = Comparison.id.in_(comparison_ids)
    closed = update(Comparison).where(of_them, Comparison.state != "open")
    nothing = dict.fromkeys(("settled_at", "agreement", "consensus", "p_b", "p_tie", "review_reason"))
    session.execute(closed.values(state="open", **nothing))
    could_judge = (
        select(func.count(Judgment.preference).label("n"))
        .where(Judgment.comparison_id.in_(comparison_ids), Judgment.superseded_at.is_(None))
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    # A labeler who left some responses of a ranking unranked could judge it, so the best-judged pair counts.
    could_not = Comparison.judgment_count - func.coalesce(select(func.max(could_judge.c.n)).scalar_subquery(), 0)
    wanted = case(
        (Comparison.overlap_max.is_not(None), func.least(Comparison.overlap, at_least)),
        else_=Comparison.overlap - func.greatest(Comparison.grown - could_not, 0),
    )
    overlap = func.greatest(wanted, Comparison.judgment_count + Comparison.lease_count + 1)
    grown = func.greatest(Comparison.grown - (Comparison.overlap - overlap), 0)
    grew = update(Comparison).where(of_them, Comparison.gold.is_(None), Comparison.overlap > overlap)
    session.execute(grew.values(overlap=overlap, grown=grown), execution_options={"synchronize_session": False})


def flag(session: Session, comparison_ids: Collection[int]) -> None:
    """Send comparisons to review for their content, even if earlier flags were dismissed."""
    session.execute(update(Comparison).where(Comparison.id.in_(comparison_ids)).values(flagged=True))


def unflag(session: Session, comparison_ids: Collection[int]) -> None:
    """Clear the flag of comparisons on which no standing judgment carries a content flag any more."""
    flagged = exists().where(
        Judgment.comparison_id == Comparison.id,
        Judgment.superseded_at.is_(None),
        func.jsonb_array_length(Judgment.flags) > 0,
    )
    session.execute(update(Comparison).where(Comparison.id.in_(comparison_ids), ~flagged).values(flagged=False))


def states(session: Session, comparison_ids: Collection[int]) -> set[str]:
    """Return the comparisons' states, with `requested` for a review that a person or the reward model asked for."""
    requested = (Comparison.state == "in_review") & Comparison.review_reason.not_in(BY_ITSELF)
    said = case((requested, "requested"), else_=Comparison.state)
    return set(session.scalars(select(said).where(Comparison.id.in_(comparison_ids))))


def _answers(project_id: int, labeler_id: int) -> Select[Judgment]:
    """Select one judgment per answer: for a ranking, the judgment on the offered pair."""
    return (
        select(Judgment)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(Judgment.labeler_id == labeler_id, Comparison.project_id == project_id, is_whole_answer())
    )


def history(session: Session, project_id: int, labeler_id: int, before: int | None, limit: int) -> list[Row]:
    """Return the labeler's judgments, newest first, including superseded ones.

    Rows are (Judgment, Comparison, Prompt.messages, Rubric.strengths).
    """
    found = (
        _answers(project_id, labeler_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Judgment.rubric_id)
        .with_only_columns(Judgment, Comparison, Prompt.messages, Rubric.strengths)
    )
    if before is not None:
        found = found.where(Judgment.id < before)
    return list(session.execute(found.order_by(Judgment.id.desc()).limit(limit)))
