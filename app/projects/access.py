"""The project in the address."""

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select

from app.accounts.access import UserDep
from app.db import SessionDep
from app.errors import NotFound
from app.models import Project


def project_of_path(request: Request, user: UserDep, session: SessionDep, project_slug: str) -> Project:
    """Also puts the project on the request for the templates' navigation."""
    project = session.scalars(select(Project).where(Project.slug == project_slug)).one_or_none()
    if project is None:
        raise NotFound(f"There is no project “{project_slug}”.", "The list of projects is on the start page.")
    request.state.project = project
    return project


ProjectDep = Annotated[Project, Depends(project_of_path)]
