"""The project in the address."""

from typing import Annotated, NamedTuple

from fastapi import Depends, Request
from sqlalchemy import exists, select

from app.accounts.access import UserDep
from app.db import SessionDep
from app.errors import NotFound
from app.models import Demonstration, DemonstrationTask, Project


class Offers(NamedTuple):
    """What a project offers its labelers beside comparing, for the navigation.

    to_write: prompts want an answer written. written: the user has written some. red_team: there is a model to attack.
    thumbs: labelers are asked about single responses.
    """

    to_write: bool
    written: bool
    red_team: bool
    thumbs: bool


def project_of_path(request: Request, user: UserDep, session: SessionDep, project_slug: str) -> Project:
    """Also puts the project and what it offers on the request, for the templates' navigation."""
    to_write = exists().where(DemonstrationTask.project_id == Project.id)
    written = exists().where(Demonstration.project_id == Project.id, Demonstration.author_id == user.id)
    found = session.execute(select(Project, to_write, written).where(Project.slug == project_slug)).one_or_none()
    if found is None:
        raise NotFound(f"There is no project “{project_slug}”.", "The list of projects is on the start page.")
    project: Project = found[0]
    request.state.project = project
    asks = bool(project.labeling.get("thumbs"))
    request.state.offers = Offers(found[1], found[2], project.policy_id is not None, asks)
    return project


ProjectDep = Annotated[Project, Depends(project_of_path)]
