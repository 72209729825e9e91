"""Dependencies of routes: the project in the address, open only to its members, and the user's roles there.

A route declares who may use it by its dependencies. `ask` checks all of them at once, before any sent data is parsed
(app.limits). The dependencies only return what it found; they are `async` because FastAPI would run others in threads.
Anyone who is not a member of a project gets the same answer as for a project that does not exist.
"""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.access import queries
from app.access.queries import Offers
from app.access.sessions import SAFE_METHODS, UserDep, signed_in, signed_in_as
from app.errors import Conflict, Forbidden, NotFound, NotSignedIn
from app.models import Project, ProjectMember, User

SLUG = "project_slug"  # the parameter in every project route's address


class Membership(NamedTuple):
    """The project in the address and the user's membership. The request holds it, so `members.roles_in`
    needs no query."""

    project: Project
    user: User
    row: ProjectMember

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.row.roles)


async def member(request: Request) -> Membership:
    """Return the membership that the guards have found."""
    found: Membership = request.state.member
    return found


MemberDep = Annotated[Membership, Depends(member)]


async def project_of(member: MemberDep) -> Project:
    return member.project


ProjectDep = Annotated[Project, Depends(project_of)]


class HasRole:
    """Admits members who have one of the roles in the project in the address."""

    def __init__(self, *roles: str, even_archived: bool = False) -> None:
        self.roles = roles
        self.even_archived = even_archived  # it may change an archived project

    async def __call__(self, member: MemberDep) -> User:
        return member.user

    def check(self, roles: frozenset[str]) -> None:
        if roles.isdisjoint(self.roles):
            needed = " or ".join(self.roles)
            raise Forbidden(
                f"This page is for people with the role {needed} in this project.",
                "An admin of the project can give you that role.",
            )


LabelerDep = Annotated[User, Depends(HasRole("labeler"))]
AdminDep = Annotated[User, Depends(HasRole("admin"))]
AdminOfArchivedDep = Annotated[User, Depends(HasRole("admin", even_archived=True))]
OperatorDep = Annotated[User, Depends(HasRole("operator"))]
StaffDep = Annotated[User, Depends(HasRole("admin", "operator"))]


async def administrator(user: UserDep) -> User:
    return user


AdministratorDep = Annotated[User, Depends(administrator)]


# ---- checked before a route runs -------------------------------------------------------------------------------------


def is_guard(call: Any) -> bool:
    """Tell whether a dependency checks who somebody is and what they may do."""
    return call in (signed_in, member, administrator) or isinstance(call, HasRole)


def ask(request: Request, session: Session, guards: Iterable[Any]) -> None:
    """Find out who sends a request and check the route's guards, in one statement.

    Stores the user, the project, the roles and what the project offers on the request, for dependencies and templates.

    Raises:
        NotSignedIn: nobody is signed in.
        NotFound: there is no such project, or the user is not a member of it.
        Forbidden: they lack the role that the route needs.
        Conflict: the project is archived, and the route would change it.
    """
    guards = list(guards)
    state, token_hash, slug = request.state, signed_in_as(request), request.path_params.get(SLUG)
    if slug is None:
        user = queries.user_by_session(session, token_hash) if token_hash else None
    else:
        found = queries.member_by_session(session, token_hash, slug) if token_hash else None
        user = found.user if found else None
    state.user = user
    if user is None:
        raise NotSignedIn("This page needs a sign-in.", "Sign in and you will come back here.")
    if slug is not None:
        if found is None or found.project is None or found.row is None:
            raise NotFound(f"You have no project “{slug}”.", "The list of your projects is on the start page.")
        state.member = Membership(found.project, user, found.row)
        state.project, state.roles = found.project, state.member.roles
        offers = {"red_team": found.project.policy_id is not None, "thumbs": bool(found.project.labeling.get("thumbs"))}
        state.offers = Offers(found.to_write, found.written, **offers)
    for guard in guards:
        if guard is administrator and not user.is_admin:
            raise Forbidden(
                "This page is for administrators of the service.", "An administrator can give you that right."
            )
        if isinstance(guard, HasRole):
            guard.check(state.roles)
    if slug is not None and state.project.archived_at is not None:
        _check_archived(request, [guard for guard in guards if isinstance(guard, HasRole)])


def _check_archived(request: Request, guards: list[HasRole]) -> None:
    """Refuses what would change an archived project, or ask its labelers for work."""
    changes = request.method not in SAFE_METHODS or any(guard.roles == ("labeler",) for guard in guards)
    if changes and not any(guard.even_archived for guard in guards):
        raise Conflict("This project is archived.", "An admin can restore it on its Settings page.")
