"""Rounds in the browser: the list, starting one, watching it, its samples, and the loop over all of them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import JSONResponse

from app.accounts.access import OperatorDep, StaffDep
from app.db import SessionDep
from app.errors import NotFound
from app.models import Round, Run
from app.projects.access import ProjectDep
from app.render import page, redirect
from app.rounds import queries, service, views
from app.rounds.forms import Algorithm, RoundConfig
from app.specs import Generation

router = APIRouter(prefix="/projects/{project_slug}")
SAMPLES_PER_PAGE = 50


def round_of_path(project: ProjectDep, session: SessionDep, number: int) -> Round:
    round_ = queries.by_number(session, project.id, number) if number < 2**31 else None
    if round_ is None:
        raise NotFound(f"The project has no round {number}.", "The list of rounds is on the Rounds page.")
    return round_


def run_of_path(project: ProjectDep, session: SessionDep, run_id: int) -> Run:
    run = session.get(Run, run_id) if run_id < 2**63 else None
    if run is None or run.project_id != project.id or run.round_id is not None:
        raise NotFound("The project has no such sampling run.", "Those there are stand on the Rounds page.")
    return run


RoundDep = Annotated[Round, Depends(round_of_path)]
RunDep = Annotated[Run, Depends(run_of_path)]


@router.get("/rounds")
def list_rounds(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    return page(
        request,
        "rounds/list.html",
        rows=views.loop(session, project).rows[::-1],
        sampling=queries.sampling_runs(session, project.id),
        preview=service.preview(session, project),
    )


@router.get("/rounds/new")
def new_round(
    request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep, algorithm: Algorithm = "dpo"
) -> Response:
    """What a round would read, and its settings."""
    config = RoundConfig.defaults(algorithm, Generation.model_validate(project.generation))
    return page(request, "rounds/new.html", preview=service.preview(session, project), config=config)


@router.post("/rounds")
def start(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    session: SessionDep,
    form: Annotated[RoundConfig, Form()],
) -> Response:
    round_ = service.start(session, request.app.state.store, project, operator, form)
    return redirect(_address(project.slug, round_))


@router.get("/rounds/{number}")
def show(request: Request, staff: StaffDep, round_: RoundDep, session: SessionDep) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        return status(staff, round_, session)
    return page(request, "rounds/page.html", view=views.page(session, round_))


@router.get("/rounds/{number}/status")
def status(staff: StaffDep, round_: RoundDep, session: SessionDep) -> Response:
    """Where the round stands, as JSON."""
    return JSONResponse(views.status(round_, queries.runs_of(session, round_.id)))


@router.get("/rounds/{number}/metrics")
def metrics(staff: StaffDep, round_: RoundDep, session: SessionDep, after: str = "") -> Response:
    """The status and the metrics recorded since `after`, the cursor of the last answer, as JSON."""
    return JSONResponse(views.metrics(session, round_, after))


@router.post("/rounds/{number}/cancel")
def cancel(operator: OperatorDep, project: ProjectDep, round_: RoundDep, session: SessionDep) -> Response:
    service.cancel(session, round_, operator)
    return redirect(_address(project.slug, round_))


@router.post("/rounds/{number}/retry")
def retry(operator: OperatorDep, project: ProjectDep, round_: RoundDep, session: SessionDep) -> Response:
    service.retry(session, round_, operator)
    return redirect(_address(project.slug, round_))


@router.get("/rounds/{number}/samples")
def round_samples(
    request: Request, staff: StaffDep, project: ProjectDep, round_: RoundDep, session: SessionDep, offset: int = 0
) -> Response:
    return _samples_page(request, project, session, round_=round_, split=None, offset=offset)


@router.get("/rounds/{number}/samples.jsonl")
def round_samples_file(staff: StaffDep, project: ProjectDep, round_: RoundDep, session: SessionDep) -> Response:
    return _samples_file(project, session, round_=round_, split=None)


@router.get("/samples")
def samples(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    session: SessionDep,
    split: views.Split | None = None,
    offset: int = 0,
) -> Response:
    return _samples_page(request, project, session, round_=None, split=split, offset=offset)


@router.get("/samples.jsonl")
def samples_file(
    staff: StaffDep, project: ProjectDep, session: SessionDep, split: views.Split | None = None
) -> Response:
    """All sampled responses with prompt and model version, one JSON object a line."""
    return _samples_file(project, session, round_=None, split=split)


@router.post("/sampling")
def begin_sampling(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    service.begin_sampling(session, request.app.state.store, project)
    return redirect(f"/projects/{project.slug}/rounds")


@router.post("/sampling/{run_id}/cancel")
def cancel_sampling(operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    service.cancel_run(session, run, operator)
    return redirect(f"/projects/{project.slug}/rounds")


@router.post("/sampling/{run_id}/retry")
def retry_sampling(operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    service.retry_run(session, run, operator)
    return redirect(f"/projects/{project.slug}/rounds")


@router.get("/loop")
def loop(request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep) -> Response:
    """Reward-model accuracy, KL, reward and human win rate over the rounds."""
    return page(request, "rounds/loop.html", view=views.loop(session, project))


def _address(slug: str, round_: Round) -> str:
    return f"/projects/{slug}/rounds/{round_.number}"


def _samples_page(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    *,
    round_: Round | None,
    split: str | None,
    offset: int,
) -> Response:
    offset = min(max(offset, 0), 2**31)
    query = queries.samples(session, project.id, split=split, round_id=round_.id if round_ else None)
    rows = session.execute(query.offset(offset).limit(SAMPLES_PER_PAGE + 1)).all()
    return page(
        request,
        "rounds/samples.html",
        round=round_,
        split=split,
        offset=offset,
        step=SAMPLES_PER_PAGE,
        rows=rows[:SAMPLES_PER_PAGE],
        more=len(rows) > SAMPLES_PER_PAGE,
    )


def _samples_file(project: ProjectDep, session: SessionDep, *, round_: Round | None, split: str | None) -> Response:
    name = f"{project.slug}-{f'round-{round_.number}-' if round_ else ''}samples.jsonl"
    # Read here, where the request's session is open, and not while the answer is being sent.
    lines = "".join(views.sample_lines(session, project.id, split=split, round_id=round_.id if round_ else None))
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(lines, media_type="application/jsonl", headers=headers)
