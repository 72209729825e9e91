"""The list of projects, a project's start page, and its settings."""

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from app.accounts.access import AdminDep, UserDep
from app.db import SessionDep
from app.models import ModelVersion
from app.projects import queries, service
from app.projects.access import ProjectDep
from app.projects.forms import ModelForm, NewProjectForm, SettingsForm
from app.render import page, redirect
from app.specs import Generation

router = APIRouter()


@router.get("/")
def home(request: Request, user: UserDep, session: SessionDep) -> Response:
    """The list of projects; with only one, that one."""
    projects = queries.active_projects(session)
    if len(projects) == 1:
        return redirect(f"/projects/{projects[0].slug}")
    return page(request, "projects/list.html", projects=projects)


@router.get("/projects")
def project_list(request: Request, user: UserDep, session: SessionDep) -> Response:
    return page(request, "projects/list.html", projects=queries.active_projects(session))


@router.post("/projects")
def create(admin: AdminDep, session: SessionDep, form: Annotated[NewProjectForm, Form()]) -> Response:
    project = service.create(session, name=form.name, description=form.description, actor_id=admin.id)
    return redirect(f"/projects/{project.slug}")


@router.get("/projects/{project_slug}")
def overview(request: Request, user: UserDep, project: ProjectDep, session: SessionDep) -> Response:
    """Where the project stands. htmx asks for the changing part alone while work is under way."""
    template = "projects/_status.html" if "HX-Request" in request.headers else "projects/overview.html"
    return page(request, template, overview=queries.overview(session, project))


@router.get("/projects/{project_slug}/settings")
def settings(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep) -> Response:
    model = session.get(ModelVersion, project.base_model_id) if project.base_model_id else None
    generation = Generation.model_validate(project.generation)
    known = queries.base_models(session)
    return page(request, "projects/settings.html", generation=generation, model=model, known=known)


@router.post("/projects/{project_slug}/settings")
def change_settings(
    admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[SettingsForm, Form()]
) -> Response:
    service.update(session, project, form, admin.id)
    return redirect(f"/projects/{project.slug}/settings")


@router.post("/projects/{project_slug}/model")
def choose_model(
    admin: AdminDep, project: ProjectDep, session: SessionDep, form: Annotated[ModelForm, Form()]
) -> Response:
    service.use_model(session, project, form.model, admin.id)
    return redirect(f"/projects/{project.slug}/settings")
