"""What routes depend on: the project in the address for its members alone, and the roles they have there.

Anyone who is not a member of a project gets the same answer as for a project that does not exist.
"""

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from app.access import queries
from app.access.queries import Offers
from app.access.sessions import UserDep, signed_in, visitor
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


def member(request: Request, user: UserDep, session: SessionDep, project_slug: str) -> Membership:
    """Also puts the project, the roles and what the project offers on the request, for the templates.

    Raises:
        NotFound: there is no such project, or the user is no member of it.
    """
    if getattr(request.state, "session", None) is session:
        return request.state.member  # asked already, before the form was parsed: app.limits
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


MemberDep = Annotated[Membership, Depends(member)]


def project_of(member: MemberDep) -> Project:
    return member.project


ProjectDep = Annotated[Project, Depends(project_of)]


class HasRole:
    """Lets in members of the project in the address who have one of the roles there."""

    def __init__(self, *roles: str) -> None:
        self.roles = roles

    def __call__(self, member: MemberDep) -> User:
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


def administrator(user: UserDep) -> User:
    if not user.is_admin:
        raise Forbidden("This page is for administrators of the service.", "One of them can make you another.")
    return user


AdministratorDep = Annotated[User, Depends(administrator)]


# ---- before a form is parsed -----------------------------------------------------------------------------------------


def is_guard(call: Any) -> bool:
    """Whether a dependency asks who somebody is, and what they may do."""
    return call in (signed_in, member, administrator) or isinstance(call, HasRole)


def ask(request: Request, session: Session, guards: Iterable[Any]) -> None:
    """Asks a route's guards, as FastAPI would do after it has parsed the form; raises what they raise."""
    user = signed_in(visitor(request, session))
    member_ = member(request, user, session, request.path_params[SLUG]) if SLUG in request.path_params else None
    for guard in guards:
        if guard is administrator:
            administrator(user)
        elif isinstance(guard, HasRole):
            assert member_ is not None, "a role belongs to a project"
            guard(member_)
