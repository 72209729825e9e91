"""The table of all comparisons, and what can be done with many of them at once."""

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, ProjectDep
from app.comparisons import queries, service
from app.comparisons.forms import Action, BulkForm, Wanted
from app.db import SessionDep
from app.errors import InvalidInput
from app.limits import FormRoute
from app.models import Project, User
from app.models.comparison import PURPOSES, STATES
from app.models.prompt import DIFFICULTIES, SPLITS
from app.render import page, redirect
from app.review import queries as review_queries
from app.review import service as review

router = APIRouter(prefix="/projects/{project_slug}/comparisons", route_class=FormRoute)

WantedDep = Annotated[Wanted, Query()]
Count = Annotated[int, Query(ge=0, le=1000)]


@router.get("")
def listing(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: WantedDep,
    did: Action | None = None,
    n: Count = 0,
    left_out: Count = 0,
) -> Response:
    """A page of comparisons; `did`, `n` and `left_out` tell what was just done."""
    return _page(request, session, project, admin, wanted, done=(did, n, left_out) if did else None)


@router.post("")
def act(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    wanted: WantedDep,
    form: Annotated[BulkForm, Form()],
) -> Response:
    try:
        done = service.act(session, project, admin, form)
    except InvalidInput as problem:
        return _page(request, session, project, admin, wanted, problem=problem, form=form)
    told = wanted.query(did=form.do, n=done.n, left_out=done.left_out)
    return redirect(f"/projects/{project.slug}/comparisons?{told}")


def _page(
    request: Request,
    session: Session,
    project: Project,
    admin: User,
    wanted: Wanted,
    *,
    done: tuple[Action, int, int] | None = None,
    problem: InvalidInput | None = None,
    form: BulkForm | None = None,
) -> Response:
    found = queries.page(session, project.id, wanted)
    return page(
        request,
        "comparisons/list.html",
        status=problem.status if problem else 200,
        wanted=wanted,
        found=found,
        blind=review.blind_for(session, admin, [row.comparison for row in found.rows]),
        window=queries.WINDOW,
        states=STATES,
        slices={
            "domain": review_queries.domains(session, project.id),
            "difficulty": DIFFICULTIES,
            "safety_category": review_queries.safety_categories(session, project.id),
            "split": SPLITS,
            "purpose": PURPOSES,
        },
        rounds=queries.rounds(session, project.id),
        done=done,
        problem=problem,
        chosen=set(form.ids) if form else set(),
        note=form.note if form else "",
    )
