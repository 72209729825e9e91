"""Members of a project: adding them, changing their roles, and ending what they hold when they leave."""

from collections.abc import Collection

from sqlalchemy.orm import Session

from app.access import members
from app.accounts import service as accounts
from app.labelers import service as labelers
from app.models import Project, User


def add(session: Session, project: Project, admin: User, email: str, roles: Collection[str]) -> None:
    """Add somebody who has an account; roles that a member already has stay.

    Raises:
        NotFound: no account that can sign in has this address.
        InvalidInput: no role.
    """
    members.join(session, project.id, accounts.by_address(session, email).id, roles, admin.id)


def set_roles(session: Session, project: Project, admin: User, user_id: int, roles: Collection[str]) -> None:
    """Change a member's roles, and end what they hold through a role that they lose.

    Raises:
        InvalidInput: no role.
        NotFound: they are not a member.
        Conflict: it would leave the project without an admin.
    """
    _end(session, project, admin, user_id, members.set_roles(session, project, admin.id, user_id, roles))


def remove(session: Session, project: Project, admin: User, user_id: int) -> None:
    """Remove a member. Their judgments and texts stay: `app.labelers.service.remove` removes those.

    Raises:
        NotFound: they are not a member.
        Conflict: it would leave the project without an admin.
    """
    _end(session, project, admin, user_id, members.remove(session, project, admin.id, user_id))


def _end(session: Session, project: Project, admin: User, user_id: int, lost: frozenset[str]) -> None:
    if "admin" in lost:
        accounts.end_invitations(session, admin.id, project.id, user_id)
    if "labeler" in lost:
        labelers.leave(session, project, user_id)
