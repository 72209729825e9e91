"""The page where people give thumbs: one response at a time."""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response

from app.access import gate
from app.access.guards import LabelerDep, ProjectDep
from app.db import SessionDep
from app.limits import FormRoute
from app.render import page, redirect
from app.rubrics import service as rubrics
from app.thumbs import queries, service
from app.thumbs.forms import MAX_RATIONALE, ThumbForm

router = APIRouter(prefix="/projects/{project_slug}/thumbs", route_class=FormRoute)


@router.get("")
def desk(
    request: Request,
    labeler: LabelerDep,
    project: ProjectDep,
    session: SessionDep,
    turn: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    last: bool = False,
    given: str = "",
) -> Response:
    """Show the next response; with `last`, show the response that got the labeler's last thumb, to change it."""
    asks = service.asks(project)
    closed = gate.closed(session, project, labeler)
    before = queries.last(session, project.id, labeler.id)
    response, thumb = before if last and before else (None, None)
    if asks and not closed and response is None:
        seed = service.order(request.app.state.settings.signing_key, labeler, turn)
        response = queries.next_response(session, project.id, labeler.id, seed)
    answer = page(
        request,
        "thumbs/page.html",
        asks=asks,
        closed=closed,
        response=response if asks and not closed else None,
        digest=hashlib.sha256(response.text.encode()).hexdigest() if response else "",
        thumb=thumb,
        turn=turn,
        given={"up": "Thumb up", "down": "Thumb down"}.get(given, ""),
        has_last=before is not None,
        done=queries.given_today(session, project.id, labeler.id),
        rubric=rubrics.current(session, project) if asks and not closed and response else None,
        max_rationale=MAX_RATIONALE,
    )
    answer.headers["Cache-Control"] = "no-store"
    return answer


@router.post("")
def give(labeler: LabelerDep, project: ProjectDep, session: SessionDep, form: Annotated[ThumbForm, Form()]) -> Response:
    service.give(session, project, labeler, form)
    return redirect(f"/projects/{project.slug}/thumbs?given={'up' if form.liked else 'down'}")
