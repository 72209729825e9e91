"""What routes depend on: the project in the address for its members alone, and the roles they have there.

A route declares who may use it by what it depends on. `ask` asks all of that at once, before anything that was sent is
parsed (app.limits); the dependencies themselves hand out what was found, and are `async` because FastAPI would hand
others to a thread each. Anyone who is not a member of a project gets the same answer as for a project that does not
exist.
"""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.access import queries
from app.access.queries import Offers
from app.access.sessions import UserDep, signed_in, signed_in_as
from app.errors import Forbidden, NotFound, NotSignedIn
from app.models import Project, ProjectMember, User

SLUG = "project_slug"  # the parameter in every project route's address


class Membership(NamedTuple):
    """The project in the address, and who asks for it. Held by the request, so that `members.roles_in` asks nobody."""

    project: Project
    user: User
    row: ProjectMember

    @property
    def roles(self) -> frozenset[str]:
        return frozenset(self.row.roles)


async def member(request: Request) -> Membership:
    """The membership that the guards have found."""
    found: Membership = request.state.member
    return found


MemberDep = Annotated[Membership, Depends(member)]


async def project_of(member: MemberDep) -> Project:
    return member.project


ProjectDep = Annotated[Project, Depends(project_of)]


class HasRole:
    """Lets in members of the project in the address who have one of the roles there."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

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
OperatorDep = Annotated[User, Depends(HasRole("operator"))]
StaffDep = Annotated[User, Depends(HasRole("admin", "operator"))]


async def administrator(user: UserDep) -> User:
    return user


AdministratorDep = Annotated[User, Depends(administrator)]


# ---- asked before a route begins -------------------------------------------------------------------------------------


def is_guard(call: Any) -> bool:
    """Whether a dependency asks who somebody is, and what they may do."""
    return call in (signed_in, member, administrator) or isinstance(call, HasRole)


def ask(request: Request, session: Session, guards: Iterable[Any]) -> None:
    """Finds out who asks and whether the route's guards let them in, in one statement. Puts the user, the project, the
    roles and what the project offers on the request, for the dependencies and the templates.

    Raises:
        NotSignedIn: nobody is signed in.
        NotFound: there is no such project, or the user is no member of it.
        Forbidden: they lack the role that the route is for.
    """
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
