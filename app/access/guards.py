"""What routes depend on: the project in the address for its members alone, and the roles they have there.

Anyone who is not a member of a project gets the same answer as for a project that does not exist.
"""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.access import queries
from app.access.queries import Offers
from app.access.sessions import UserDep, ask_visitor, need_user, signed_in
from app.db import SessionDep
from app.errors import Forbidden, NotFound
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


def ask_member(request: Request, user: User, session: Session, project_slug: str) -> Membership:
    """Also puts the project, the roles and what the project offers on the request, for the templates.

    Raises:
        NotFound: there is no such project, or the user is no member of it.
    """
    found = queries.membership(session, project_slug, user.id)
    if found is None:
        raise NotFound(f"You have no project “{project_slug}”.", "The list of your projects is on the start page.")
    asked = Membership(found.project, user, found.row)
    request.state.member, request.state.project, request.state.roles = asked, asked.project, asked.roles
    request.state.offers = Offers(
        found.to_write,
        found.written,
        red_team=asked.project.policy_id is not None,
        thumbs=bool(asked.project.labeling.get("thumbs")),
    )
    return asked


async def member(request: Request, user: UserDep, session: SessionDep, project_slug: str) -> Membership:
    """As `ask_member`, unless the guards have asked before: app.limits."""
    if getattr(request.state, "session", None) is not session:
        await run_in_threadpool(ask_member, request, user, session, project_slug)
    asked: Membership = request.state.member
    return asked


MemberDep = Annotated[Membership, Depends(member)]


async def project_of(member: MemberDep) -> Project:
    return member.project


ProjectDep = Annotated[Project, Depends(project_of)]


class HasRole:
    """Lets in members of the project in the address who have one of the roles there."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    async def __call__(self, member: MemberDep) -> User:
        return self.check(member)

    def check(self, member: Membership) -> User:
        if member.roles.isdisjoint(self.roles):
            needed = " or ".join(self.roles)
            raise Forbidden(
                f"This page is for people with the role {needed} in this project.",
                "An admin of the project can give you that role.",
            )
        return member.user


LabelerDep = Annotated[User, Depends(HasRole("labeler"))]
AdminDep = Annotated[User, Depends(HasRole("admin"))]
OperatorDep = Annotated[User, Depends(HasRole("operator"))]
StaffDep = Annotated[User, Depends(HasRole("admin", "operator"))]


def need_administrator(user: User) -> User:
    if not user.is_admin:
        raise Forbidden("This page is for administrators of the service.", "One of them can make you another.")
    return user


async def administrator(user: UserDep) -> User:
    return need_administrator(user)


AdministratorDep = Annotated[User, Depends(administrator)]


# ---- before a form is parsed -----------------------------------------------------------------------------------------


def is_guard(call: Any) -> bool:
    """Whether a dependency asks who somebody is, and what they may do."""
    return call in (signed_in, member, administrator) or isinstance(call, HasRole)


def ask(request: Request, session: Session, guards: Iterable[Any]) -> None:
    """Asks a route's guards in one go and raises what they raise; FastAPI asks them one by one, after it has parsed the
    form."""
    user = need_user(ask_visitor(request, session))
    member_ = ask_member(request, user, session, request.path_params[SLUG]) if SLUG in request.path_params else None
    for guard in guards:
        if guard is administrator:
            need_administrator(user)
        elif isinstance(guard, HasRole):
            assert member_ is not None, "a role belongs to a project"
            guard.check(member_)
