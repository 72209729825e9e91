"""The gate before every task: comparing, ranking, writing, thumbs and red teaming check here whether a person may work.

Giving a task back and reading one's own work need no gate.
"""

from typing import Literal, NamedTuple

from sqlalchemy.orm import Session

from app.access import gate_queries
from app.access.gate_queries import Gate
from app.errors import Forbidden
from app.models import Project, User


class Closed(NamedTuple):
    """Why somebody may not work.

    paused: by an admin, or for their calibration answers. removed: by an admin, or because they are no longer a labeler
    of the project. quiz: they have not passed the newest rubric's quiz. message: what they are told while paused.
    """

    reason: Literal["paused", "removed", "quiz"]
    message: str = ""


def closed(session: Session, project: Project, labeler: User, *, begun: bool = False) -> Closed | None:
    """Return why this person may not work in the project now; None if they may. One query.

    Args:
        begun: the task was given to them before. They may finish it even if a newer quiz is due.
    """
    return _closed(gate_queries.gate(session, project.id, labeler.id), begun)


def _closed(found: Gate, begun: bool) -> Closed | None:
    if found.state == "paused":
        return Closed("paused", found.reason)
    if found.state == "removed" or not found.is_labeler:
        return Closed("removed")
    return Closed("quiz") if found.needs_quiz and not begun else None


def require(session: Session, project: Project, labeler: User, *, begun: bool = False) -> None:
    """Raise Forbidden, with a message for the person, if they may not work in the project now; see `closed`."""
    require_open(gate_queries.gate(session, project.id, labeler.id), begun=begun)


def require_open(found: Gate, *, begun: bool = False) -> None:
    """Like `require`, for a gate that was read together with something else."""
    why = _closed(found, begun)
    if why is None:
        return
    if why.reason == "paused":
        raise Forbidden("You are paused in this project, so nothing was saved.", why.message)
    if why.reason == "removed":
        raise Forbidden(
            "You are no longer a labeler of this project, so nothing was saved.",
            "An admin of the project can tell you why.",
        )
    raise Forbidden(
        "You have not passed this project's training quiz, so nothing was saved.",
        "Pass the quiz first, then send this again.",
    )
