"""The assignment page: whom open comparisons are kept for, and a form to change it."""

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, ProjectDep
from app.assignments import queries, service
from app.assignments.forms import AssignForm
from app.db import SessionDep
from app.errors import PrefloopError
from app.form_fields import TypedDep, not_accepted, reasons_of
from app.limits import FormRoute
from app.models import Project
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/assignment", route_class=FormRoute)

LABELS = {
    "held": "Reserved now",
    "purpose": "Purpose",
    "slice": "Slice",
    "value": "Value of the slice",
    "ids": "Comparison numbers",
    "most": "Comparisons, at most",
    "owner": "Reserve for",
    "priority": "Priority",
}


@router.get("")
def show(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    changed: int | None = None,
    on_desks: int = 0,
) -> Response:
    return _page(request, session, project, {}, changed=changed, on_desks=on_desks)


@router.post("")
def assign(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, typed: TypedDep) -> Response:
    try:
        form = AssignForm.model_validate({name: typed[name] for name in LABELS if name in typed})
        done = service.assign(session, project, admin, form)
    except ValidationError as error:
        problem = not_accepted({LABELS.get(name, name): reason for name, reason in reasons_of(error).items()})
        return _page(request, session, project, typed, problem)
    except PrefloopError as error:
        return _page(request, session, project, typed, error)
    on_desks = f"&on_desks={done.on_desks}" if done.on_desks else ""
    return redirect(f"/projects/{project.slug}/assignment?changed={done.changed}{on_desks}")


def _page(
    request: Request,
    session: Session,
    project: Project,
    typed: dict[str, str],
    error: PrefloopError | None = None,
    *,
    changed: int | None = None,
    on_desks: int = 0,
) -> Response:
    """Show the page; after a refusal, with the error and what was typed."""
    return page(
        request,
        "assignments/page.html",
        status=error.status if error else 200,
        held=queries.held(session, project.id),
        priorities=queries.priorities(session, project.id),
        labelers=queries.labelers(session, project.id),
        groups=queries.groups(session, project.id),
        values=dict.fromkeys(LABELS, "") | typed,
        changed=changed,
        on_desks=on_desks,
        error=error,
    )
