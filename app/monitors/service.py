"""Reviews of what monitors found."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from app.audit import audit
from app.errors import Conflict
from app.models import Round, User
from app.monitors import queries
from app.monitors.forms import ReviewForm


def review(
    session: Session, round_: Round, monitor: str, looks: Collection[str], reviewer: User, form: ReviewForm
) -> None:
    """Store a person's verdict on a monitor's look or alarm, instead of an earlier verdict.

    Args:
        looks: names of the monitors that ask for a look at the round.

    Raises:
        Conflict: the monitor asks for no look at this round.
    """
    if monitor not in looks:
        raise Conflict(
            f"This monitor asks for no look at round {round_.number}.",
            "Only a monitor that says look, or that gave an alarm in the run, is reviewed.",
        )
    queries.store_review(session, round_.id, monitor, form.verdict, form.note, reviewer.id)
    audit(
        session,
        reviewer.id,
        "monitor.reviewed",
        round_.project_id,
        round=round_.number,
        monitor=monitor,
        verdict=form.verdict,
        note=form.note,
    )
