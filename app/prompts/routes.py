"""Browsing prompts, typing and changing them, and one prompt with its completions and comparisons."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, ProjectDep
from app.db import SessionDep
from app.errors import NotFound, PrefloopError
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.limits import FormRoute
from app.models import Project
from app.models.prompt import DIFFICULTIES, SPLITS, WITHDRAWN
from app.prompts import editing, queries
from app.prompts.forms import PromptFilter, PromptForm, SplitForm, TagsForm
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/prompts", route_class=FormRoute)


@router.get("")
def listing(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: Annotated[PromptFilter, Query()],
) -> Response:
    return page(
        request,
        "prompts/list.html",
        wanted=wanted,
        listing=queries.listing(session, project, wanted),
        domains=queries.domains(session, project),
        splits=(*SPLITS, WITHDRAWN),
        difficulties=DIFFICULTIES,
    )


@router.get("/new")
def new(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep) -> Response:
    return _form(request, session, project, PromptForm().model_dump())


@router.post("")
def write(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, typed: TypedDep) -> Response:
    """Adds a prompt. A form that is refused comes back as it was typed."""
    try:
        prompt = editing.write(session, project, admin, PromptForm.model_validate(typed))
    except ValidationError as error:
        return _form(request, session, project, typed, problem=not_accepted(reasons_of(error)))
    except PrefloopError as problem:
        return _form(request, session, project, typed, problem=problem)
    return redirect(f"{_base(project)}/{prompt.id}")


@router.get("/{prompt_id}")
def detail(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int) -> Response:
    prompt = queries.in_project(session, project, prompt_id)
    if prompt is None:
        raise NotFound(f"This project has no prompt {prompt_id}.", "Go back to the list of prompts.")
    retired = prompt.split == WITHDRAWN
    return page(
        request,
        "prompts/detail.html",
        prompt=prompt,
        completions=queries.completions_of(session, prompt),
        comparisons=queries.comparisons_of(session, prompt),
        shown=queries.SHOWN,
        splits=SPLITS,
        is_retired=retired,
        can_return=retired and queries.was_retired(session, project.id, prompt.id),
    )


@router.get("/{prompt_id}/edit")
def edit(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int) -> Response:
    prompt = queries.in_project(session, project, prompt_id)
    if prompt is None or prompt.split == WITHDRAWN:
        raise NotFound("This prompt cannot be edited.", "Go back to the list of prompts.")
    by_role = {message["role"]: message["content"] for message in prompt.messages}
    values = {name: getattr(prompt, name) or "" for name in ("split", "difficulty", "domain", "safety_category")}
    values |= {"text": by_role.get("user", ""), "system": by_role.get("system", "")}
    return _form(request, session, project, values, prompt_id=prompt_id)


@router.post("/{prompt_id}/edit")
def change(
    request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int, typed: TypedDep
) -> Response:
    kind: type[PromptForm | TagsForm] = PromptForm if "text" in typed else TagsForm
    try:
        editing.change(session, project, admin, prompt_id, kind.model_validate(typed))
    except ValidationError as error:
        problem: PrefloopError = not_accepted(reasons_of(error))
    except NotFound:
        raise
    except PrefloopError as refused:
        problem = refused
    else:
        return redirect(f"{_base(project)}/{prompt_id}")
    return _form(request, session, project, PromptForm().model_dump() | typed, prompt_id=prompt_id, problem=problem)


@router.post("/{prompt_id}/retire")
def retire(admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int) -> Response:
    editing.retire(session, project, admin, prompt_id)
    return redirect(f"{_base(project)}/{prompt_id}")


@router.post("/{prompt_id}/bring-back")
def bring_back(
    admin: AdminDep, project: ProjectDep, session: SessionDep, prompt_id: int, form: Annotated[SplitForm, Form()]
) -> Response:
    editing.bring_back(session, project, admin, prompt_id, form.split)
    return redirect(f"{_base(project)}/{prompt_id}")


def _base(project: Project) -> str:
    return f"/projects/{project.slug}/prompts"


def _form(
    request: Request,
    session: Session,
    project: Project,
    values: dict[str, str],
    *,
    prompt_id: int | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    """The form of a new prompt, or of one that exists; with what was typed and the reason, where it was refused."""
    prompt = queries.in_project(session, project, prompt_id) if prompt_id is not None else None
    is_dialogue = prompt is not None and sum(each["role"] != "system" for each in prompt.messages) > 1
    return page(
        request,
        "prompts/form.html",
        status=problem.status if problem else 200,
        values=PromptForm().model_dump() | values,
        prompt=prompt,
        # The text of a conversation with several turns is not one field.
        tags_only=prompt is not None and (is_dialogue or queries.is_used(session, prompt.id)),
        domains=queries.domains(session, project),
        splits=SPLITS,
        difficulties=DIFFICULTIES,
        problem=problem,
    )
