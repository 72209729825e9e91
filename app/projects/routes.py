"""The list of projects, a project's start page, and its settings."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, AdministratorDep, AdminOfArchivedDep, MemberDep, ProjectDep
from app.access.queries import own_projects
from app.access.sessions import UserDep
from app.cache import Cache
from app.db import SessionDep
from app.documents import LabelingSettings
from app.errors import Conflict, PrefloopError
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.labelers import service as labelers
from app.labeling.settling_queries import Moves
from app.limits import FormRoute
from app.models import ModelVersion, Project, User
from app.monitors import views as monitors
from app.navigation import queries as navigation
from app.projects import ending, home, labeling_form, queries, service
from app.projects.forms import DeleteForm, ModelForm, NewProjectForm, SettingsForm
from app.render import page, redirect
from app.review import service as review
from app.rounds import service as rounds
from app.specs import Generation

router = APIRouter(route_class=FormRoute)


@router.get("/")
def start(request: Request, user: UserDep, session: SessionDep) -> Response:
    """The list of one's projects; with only one, that one."""
    mine = [each for each in own_projects(session, user.id) if each.project.archived_at is None]
    return redirect(f"/projects/{mine[0].project.slug}") if len(mine) == 1 else _list(request, session, user)


@router.get("/projects")
def project_list(request: Request, user: UserDep, session: SessionDep) -> Response:
    return _list(request, session, user)


@router.post("/projects")
def create(
    request: Request, admin: AdministratorDep, session: SessionDep, form: Annotated[NewProjectForm, Form()]
) -> Response:
    try:
        project = service.create(session, name=form.name, description=form.description, actor_id=admin.id)
    except PrefloopError as error:
        return _list(request, session, admin, form, error)
    return redirect(f"/projects/{project.slug}")


def _list(
    request: Request,
    session: Session,
    user: User,
    form: NewProjectForm = NewProjectForm(),
    error: PrefloopError | None = None,
) -> Response:
    """The list; with what was typed for a new project and the error, where it was refused."""
    mine = own_projects(session, user.id)
    return page(
        request,
        "projects/list.html",
        status=error.status if error else 200,
        projects=[each.project for each in mine if each.project.archived_at is None],
        archived=[each.project for each in mine if each.project.archived_at is not None],
        labels=any("labeler" in each.roles for each in mine),
        form=form,
        error=error,
    )


@router.get("/projects/{project_slug}")
def overview(request: Request, member: MemberDep, session: SessionDep) -> Response:
    """What the person can do next, and where the project stands. htmx asks for the changing part alone."""
    template = "projects/_status.html" if "HX-Request" in request.headers else "projects/overview.html"
    project, user, roles = member.project, member.user, member.roles
    is_admin, is_staff = "admin" in roles, bool({"admin", "operator"} & roles)
    found = queries.overview(session, project)
    counts = _counts(request, session, project, user) if is_staff else queries.Counts({}, 0, 0)
    reviews = review.waiting(session, project) if is_admin else {}
    waits = navigation.waiting(session, project.id, user.id, roles)
    looks = _looks(request, session, project) if is_staff and found.last_round is not None else None
    return page(
        request,
        template,
        is_staff=is_staff,
        overview=found,
        counts=counts,
        own=labelers.done(session, project, user) if "labeler" in roles else None,
        tasks=[]
        if project.archived_at
        else home.tasks(session, project, user, roles, found, counts, waits, reviews, looks),
        steps=home.first_steps(found, counts, roles) if is_admin and project.archived_at is None else [],
        paused=queries.paused_by_calibration(session, project.id) if is_admin else [],
    )


def _counts(request: Request, session: Session, project: Project, user: User) -> queries.Counts:
    """Counted at most once in twenty times that it takes, for all who look; again after what the user did."""
    cache: Cache[queries.Counts] = request.app.state.project_counts
    since = labelers.changed_at(session, project, user)
    return cache.get(project.id, lambda: queries.counts(session, project.id), since).value


def _looks(request: Request, session: Session, project: Project) -> monitors.Looks | None:
    """As `_counts`; what was reviewed since is read each time."""
    cache: Cache[monitors.Looks | None] = request.app.state.newest_looks
    return cache.get(project.id, lambda: monitors.newest_looks(session, project)).value


@router.get("/projects/{project_slug}/settings")
def settings(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, saved: str = "") -> Response:
    return _settings(request, project, session, {}, saved=saved)


@router.post("/projects/{project_slug}/settings")
def change_settings(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, typed: TypedDep
) -> Response:
    try:
        form = SettingsForm.model_validate(typed)
    except ValidationError as error:
        return _settings(request, project, session, typed, not_accepted(reasons_of(error)))
    if conflict := _changed_meanwhile(typed, _own(project)):
        return _settings(request, project, session, typed, conflict)
    if moves := service.moved_by(session, project, form):
        return _settings(request, project, session, typed, moves=moves)
    service.update(session, project, form, admin.id)
    return redirect(f"/projects/{project.slug}/settings?saved=project")


@router.post("/projects/{project_slug}/settings/labeling")
def change_labeling(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, typed: TypedDep
) -> Response:
    try:
        wanted = labeling_form.read(typed)
    except ValidationError as error:
        problem = not_accepted(labeling_form.problems(error))
        return _settings(request, project, session, {}, problem, labeling_form.NOTHING | typed)
    if conflict := _changed_meanwhile(typed, project.labeling):
        return _settings(request, project, session, {}, conflict, labeling_form.NOTHING | typed)
    service.update_labeling(session, project, wanted, admin.id)
    return redirect(f"/projects/{project.slug}/settings?saved=labeling#labeling")


@router.post("/projects/{project_slug}/model")
def choose_model(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[ModelForm, Form()],
) -> Response:
    try:
        service.use_model(session, request.app.state.store, project, form.model, admin.id)
    except PrefloopError as error:
        return _settings(request, project, session, form.model_dump(), error)
    return redirect(f"/projects/{project.slug}/settings")


@router.post("/projects/{project_slug}/settings/archive")
def archive(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep) -> Response:
    try:
        ending.archive(session, project, admin)
    except PrefloopError as error:
        return _settings(request, project, session, {}, error)
    return redirect(f"/projects/{project.slug}/settings")


@router.post("/projects/{project_slug}/settings/restore")
def restore(admin: AdminOfArchivedDep, project: ProjectDep, session: SessionDep) -> Response:
    ending.restore(session, project, admin)
    return redirect(f"/projects/{project.slug}")


@router.post("/projects/{project_slug}/settings/delete")
def delete(
    request: Request,
    admin: AdminOfArchivedDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[DeleteForm, Form()],
) -> Response:
    try:
        ending.delete(session, project, admin, form.address)
    except PrefloopError as error:
        return _settings(request, project, session, {}, error)
    return redirect("/projects")


def _own(project: Project) -> dict[str, Any]:
    """What the first form of the settings shows."""
    own = {name: getattr(project, name) for name in SettingsForm.model_fields if hasattr(project, name)}
    own["review_threshold"] = f"{100 * project.review_threshold:g}"
    return own | Generation.model_validate(project.generation).model_dump()


def _digest(settings: Mapping[str, Any]) -> str:
    """A fingerprint of the settings that a form shows, to tell whether they have changed since."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _changed_meanwhile(typed: Mapping[str, str], settings: Mapping[str, Any]) -> Conflict | None:
    """Why a form is refused that would undo a change by somebody else or in another tab."""
    if typed.get("seen", "") in ("", _digest(settings)):
        return None
    return Conflict(
        "These settings were changed after you opened this page, by somebody else or in another tab.",
        "Nothing was saved. Your settings are shown below: save again to replace the present settings with yours.",
    )


def _settings(
    request: Request,
    project: Project,
    session: Session,
    typed: dict[str, str],
    error: PrefloopError | None = None,
    labeling: dict[str, str] | None = None,
    saved: str = "",
    moves: Moves | None = None,
) -> Response:
    """The settings; with what was typed and the error, where it was refused.

    Args:
        moves: what the review threshold that was typed would do; it is not saved yet.
        labeling: what was typed into the form of the labeling settings.
        saved: which of the forms has just been saved.
    """
    shown = labeling or labeling_form.values(LabelingSettings.model_validate(project.labeling))
    return page(
        request,
        "projects/settings.html",
        status=error.status if error else 200,
        values=_own(project) | {"model": ""} | typed,
        seen={"project": _digest(_own(project)), "labeling": _digest(project.labeling)},
        groups=labeling_form.GROUPS,
        rule_names=labeling_form.RULE_NAMES,
        rules=labeling_form.rows(shown),
        labeling=shown,
        base_model=session.get(ModelVersion, project.base_model_id) if project.base_model_id else None,
        can_change_model=not queries.has_used_model(session, project.id) and not rounds.is_busy(session, project),
        known=queries.base_models(session, request.state.user.id),
        error=error,
        saved=saved,
        moves=moves,
    )
