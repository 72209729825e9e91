"""Recusal: a labeler who has seen other people's judgments can no longer judge a comparison."""

from collections.abc import Collection

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.access import gate_queries
from app.labeling import answer_queries
from app.models import Lease


def recused_from(session: Session, comparison_ids: Collection[int], labeler_id: int) -> set[int]:
    """Return the comparisons that the labeler is recused from."""
    given_up = select(Lease.comparison_id).where(Lease.comparison_id.in_(comparison_ids), Lease.state == "recused")
    return set(session.scalars(given_up.where(Lease.labeler_id == labeler_id)))


def is_recused(session: Session, comparison_id: int, labeler_id: int) -> bool:
    return bool(recused_from(session, [comparison_id], labeler_id))


def recuse(session: Session, comparison_id: int, labeler_id: int) -> None:
    """Recuse the labeler: take back their task on the comparison and never offer it to them again.

    For a pair of a ranking, this covers the whole ranking. A judgment that they gave before stands, but they can no
    longer edit it. Repeating changes nothing.
    """
    if is_recused(session, comparison_id, labeler_id):
        return
    gate_queries.lock_labeler(session, labeler_id)
    ids = {pair.id for pair in answer_queries.lock_pairs(session, comparison_id)}
    own = Lease.comparison_id.in_(ids), Lease.labeler_id == labeler_id
    # Expired and released leases too, because an answer may still come on one.
    unanswered = Lease.state.in_(("live", "expired", "released"))
    session.execute(update(Lease).where(*own, unanswered).values(state="recused"))
    if others := ids - recused_from(session, ids, labeler_id):
        values = {"labeler_id": labeler_id, "swapped": False, "state": "recused"}
        rows = [{"comparison_id": id_, **values} for id_ in sorted(others)]
        session.execute(insert(Lease).values(expires_at=func.now()), rows)
