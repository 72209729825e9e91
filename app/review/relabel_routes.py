"""Choosing which comparisons to ask again after a rubric edit, and showing the effect."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError

from app.access.guards import AdminDep, ProjectDep
from app.db import SessionDep
from app.form_fields import not_accepted, reasons_of
from app.limits import FormRoute
from app.models.prompt import DIFFICULTIES, SPLITS
from app.render import page, redirect
from app.review import queries, relabel_queries, relabeling
from app.review.forms import RelabelForm

router = APIRouter(prefix="/relabel", route_class=FormRoute)


@router.get("")
def choose(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    rubric: Annotated[int | None, Query()] = None,
    asked: Annotated[int | None, Query()] = None,
) -> Response:
    """Show which comparisons match and how much work they are. The conditions are in the address, so looking changes
    nothing."""
    newest = relabeling.target(session, project, rubric)
    typed = {name: value for name, value in request.query_params.items() if name in RelabelForm.model_fields and value}
    form, error = RelabelForm(rubric=newest.id), None
    try:
        form = RelabelForm.model_validate(typed | {"rubric": newest.id})
    except ValidationError as refused:
        error = not_accepted(reasons_of(refused))
    return page(
        request,
        "review/relabel.html",
        status=error.status if error else 200,
        rubric=newest,
        values={"slice": "", "flag": "", "aspect": "", "agreement": "", "sample": "", "overlap": project.overlap}
        | typed,
        form=form,
        plan=None if error else relabeling.plan(session, project, form),
        at_once=relabeling.AT_ONCE,
        asked=asked,
        done=relabeling.relabeled(session, newest),
        error=error,
        slices={
            "domain": queries.domains(session, project.id),
            "difficulty": DIFFICULTIES,
            "safety_category": queries.safety_categories(session, project.id),
            "split": SPLITS,
            "purpose": relabel_queries.PURPOSES,
        },
        flags=relabel_queries.flags(session, project.id),
        aspects=relabel_queries.aspects(session, project.id),
    )


@router.post("")
def ask_again(
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[RelabelForm, Form()],
    expected: Annotated[int, Query(ge=0)],
) -> Response:
    asked = relabeling.relabel(session, project, admin, form, expected)
    return redirect(f"/projects/{project.slug}/review/relabel?rubric={form.rubric}&asked={asked}")
