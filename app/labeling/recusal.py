"""Giving up a comparison: whoever has seen what others judged cannot judge it themselves any more."""

from collections.abc import Collection

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from app.labeling import queries
from app.models import Lease


def recused_from(session: Session, comparison_ids: Collection[int], labeler_id: int) -> set[int]:
    """Those of the comparisons that the labeler has given up."""
    given_up = select(Lease.comparison_id).where(Lease.comparison_id.in_(comparison_ids), Lease.state == "recused")
    return set(session.scalars(given_up.where(Lease.labeler_id == labeler_id)))


def is_recused(session: Session, comparison_id: int, labeler_id: int) -> bool:
    return bool(recused_from(session, [comparison_id], labeler_id))


def recuse(session: Session, comparison_id: int, labeler_id: int) -> None:
    """They are not offered the comparison again, and a task they still have of it is taken back.

    A judgment they gave before stands; they cannot edit it any more. Twice changes nothing.
    """
    if is_recused(session, comparison_id, labeler_id):
        return
    queries.lock_labeler(session, labeler_id)
    queries.lock_comparison(session, comparison_id)
    own = Lease.comparison_id == comparison_id, Lease.labeler_id == labeler_id
    # Not only live ones: an answer may come on a lease that ran out.
    unanswered = Lease.state.in_(("live", "expired", "released"))
    session.execute(update(Lease).where(*own, unanswered).values(state="recused"))
    if not is_recused(session, comparison_id, labeler_id):
        values = {"comparison_id": comparison_id, "labeler_id": labeler_id, "swapped": False, "state": "recused"}
        session.execute(insert(Lease).values(**values, expires_at=func.now()))
