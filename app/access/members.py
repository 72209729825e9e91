"""Members of a project and their roles: joining, changing, leaving. Every change is audited.

A project always keeps an admin who can sign in. A change that takes an admin away locks the project's admins first, so
two admins cannot remove each other at the same time.
"""

from collections.abc import Collection, Sequence

from sqlalchemy.orm import Session

from app.access import queries
from app.audit import audit
from app.errors import Conflict, InvalidInput, NotFound
from app.models import Project, ProjectMember, User
from app.models.member import ROLES


def in_order(roles: Collection[str]) -> list[str]:
    """Return the roles as they are stored: each once, in the order of ROLES.

    Raises:
        InvalidInput: no role, or an unknown one.
    """
    if unknown := sorted(set(roles) - set(ROLES)):
        raise InvalidInput(f"“{unknown[0]}” is not a role.", f"Roles are {', '.join(ROLES)}.")
    if not roles:
        raise InvalidInput("No role is chosen.", "Choose at least one.")
    return [role for role in ROLES if role in roles]


def roles_in(session: Session, project_id: int, user: User) -> frozenset[str]:
    """Return a user's roles in a project; empty if they are not a member."""
    found = session.get(ProjectMember, {"project_id": project_id, "user_id": user.id})
    return frozenset(found.roles if found else ())


def join(session: Session, project_id: int, user_id: int, roles: Collection[str], added_by: int | None) -> None:
    """Make somebody a member. An existing member gets these roles in addition to their own.

    Raises:
        InvalidInput: no role, or an unknown one.
    """
    wanted = in_order(roles)
    if queries.add_member(session, project_id, user_id, wanted, added_by):
        audit(session, added_by, "member.added", project_id, user_id=user_id, roles=wanted)
        return
    row = queries.lock_member(session, project_id, user_id)
    if row is None:  # removed at this moment
        raise Conflict("Somebody changed the members of this project at the same moment.", "Try it again.")
    united = in_order({*row.roles, *wanted})
    if united != row.roles:
        row.roles = united
        session.flush()
        audit(session, added_by, "member.roles_set", project_id, user_id=user_id, roles=united)


def set_roles(
    session: Session, project: Project, actor_id: int, user_id: int, roles: Collection[str]
) -> frozenset[str]:
    """Change what a member may do; return the roles that they lost.

    Raises:
        InvalidInput: no role, or an unknown one.
        NotFound: they are not a member.
        Conflict: it would leave the project without an admin.
    """
    wanted = in_order(roles)
    row = _locked(session, project, user_id, keeps_admin="admin" in wanted)
    lost = frozenset(row.roles) - frozenset(wanted)
    if row.roles != wanted:
        row.roles = wanted
        session.flush()
        audit(session, actor_id, "member.roles_set", project.id, user_id=user_id, roles=wanted)
    return lost


def remove(session: Session, project: Project, actor_id: int, user_id: int) -> frozenset[str]:
    """Remove a member; return the roles that they had.

    Raises:
        NotFound: they are not a member.
        Conflict: it would leave the project without an admin.
    """
    row = _locked(session, project, user_id, keeps_admin=False)
    had = frozenset(row.roles)
    session.delete(row)
    session.flush()
    audit(session, actor_id, "member.removed", project.id, user_id=user_id, roles=in_order(had))
    return had


def _locked(session: Session, project: Project, user_id: int, *, keeps_admin: bool) -> ProjectMember:
    if not keeps_admin:
        queries.lock_admins(session, [project.id])
    row = queries.lock_member(session, project.id, user_id) if user_id < 2**63 else None
    if row is None:
        raise NotFound("This project has no such member.", "The Members page lists all members.")
    if "admin" in row.roles and not keeps_admin:
        require_other_admin(session, [project.id], user_id)
    return row


def require_other_admin(session: Session, project_ids: Sequence[int], user_id: int) -> None:
    """Check that these projects keep an admin without this person. Lock the admins first: `queries.lock_admins`.

    Raises:
        Conflict: one of these projects has no other admin who can sign in.
    """
    if left := queries.without_other_admin(session, project_ids, user_id):
        names = ", ".join(f"“{project.name}”" for project in left)
        raise Conflict(f"This is the last admin of {names}.", "Make somebody else an admin there first.")


def first_members(session: Session, project: Project, actor_id: int | None) -> None:
    """Add a new project's first members: its creator, or all administrators if the service created it."""
    for user_id in queries.administrators(session) if actor_id is None else [actor_id]:
        join(session, project.id, user_id, ROLES, actor_id)
