"""Rounds in the browser: the list, starting a round, watching it, and its samples."""

import pathlib
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app import scratch
from app.access.guards import OperatorDep, ProjectDep, StaffDep
from app.cache import Cache
from app.charts import chart_csv, svg
from app.db import SessionDep
from app.domain.intervals import FEWEST
from app.domain.strengths import STRENGTHS
from app.domain.verdicts import LEAST_PROMPTS
from app.errors import NotFound, PrefloopError
from app.form_fields import Number, TypedDep, not_accepted, reasons_of
from app.labelers import service as labelers
from app.limits import FormRoute
from app.models import ModelVersion, Project, Round, Run
from app.render import attachment, page, redirect
from app.rounds import curves, outcomes, queries, sample_queries, service, views
from app.rounds.adoption import difference_of
from app.rounds.controls import form_fields
from app.rounds.forms import RECOMMENDED, Algorithm, RoundConfig, dependent
from app.rounds.training_samples import PROMPTS_PER_PAGE, STEPS_PER_PAGE, read_training_samples, side_by_side
from app.specs import Generation

router = APIRouter(prefix="/projects/{project_slug}", route_class=FormRoute)
SAMPLES_PER_PAGE = 50
FileName = Annotated[str, Path(pattern=r"^(metrics\.csv|curve-[0-9]{1,2}\.(svg|csv))$")]


def round_of_path(project: ProjectDep, session: SessionDep, number: int) -> Round:
    round_ = queries.by_number(session, project.id, number) if number < 2**31 else None
    if round_ is None:
        raise NotFound(f"The project has no round {number}.", "The list of rounds is on the Rounds page.")
    return round_


def run_of_path(project: ProjectDep, session: SessionDep, run_id: int) -> Run:
    run = session.get(Run, run_id) if run_id < 2**63 else None
    if run is None or run.project_id != project.id or run.round_id is not None or run.kind != "sample":
        raise NotFound("The project has no such sampling run.", "The Rounds page lists those it has.")
    return run


RoundDep = Annotated[Round, Depends(round_of_path)]
RunDep = Annotated[Run, Depends(run_of_path)]


@router.get("/rounds")
def list_rounds(
    request: Request, staff: StaffDep, project: ProjectDep, session: SessionDep, before: Number = None
) -> Response:
    """The newest rounds, or those before a number."""
    rows = outcomes.progress(session, project, outcomes.SHOWN, before).rows[::-1]
    return page(
        request,
        "rounds/list.html",
        rows=rows,
        older=bool(rows) and rows[-1].round.number > 1,
        sampling=queries.sampling_runs(session, project.id),
        policy=session.get(ModelVersion, project.policy_id) if project.policy_id else None,
    )


@router.get("/rounds/new")
def new_round(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    session: SessionDep,
    algorithm: Algorithm | None = None,
    like: Number = None,
) -> Response:
    """Show what a round would read, and its settings, which are expanded if an algorithm was chosen.

    Args:
        like: the number of a round whose settings the form begins with.
    """
    if like is not None:
        config = RoundConfig.of(round_of_path(project, session, like).config)
        return _new_page(request, project, session, config.model_dump())
    rank = queries.adapter_rank(session, project.policy_id)
    config = RoundConfig.defaults(algorithm or RECOMMENDED, Generation.model_validate(project.generation), rank)
    return _new_page(request, project, session, _shown(config), is_open=algorithm is not None)


@router.get("/rounds/preview")
def preview(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    """Return parts of the form's page: what a round with the query's settings would read and cost; empty if one is
    invalid."""
    try:
        config = RoundConfig.of(dict(request.query_params))
    except ValidationError:
        return Response(status_code=204)
    return page(request, "rounds/_preview.html", **_before_the_start(request, project, session, config))


def _before_the_start(request: Request, project: Project, session: Session, config: RoundConfig) -> dict[str, Any]:
    """Return what the form shows about a round with these settings.

    Every change of the form asks again, so the available data is cached for all users, and reloaded after the user's
    own changes.
    """
    cache: Cache[service.Available] = request.app.state.available_to_rounds
    since = labelers.changed_at(session, project, request.state.user)
    there = cache.get(project.id, lambda: service.Available.of(session, project), since).value
    seen = service.preview(session, project, config, there)
    if lost := service.lost_policy(session, request.app.state.store, project):
        seen = seen._replace(warnings=(*seen.warnings, str(lost)), can_start=False)
    cost = service.estimate(session, request.app.state.store, project, config, seen.counts)
    return {"preview": seen, "cost": cost, "algorithm": config.algorithm}


def _shown(config: RoundConfig) -> dict[str, Any]:
    """Return settings as the form begins with them, without those whose default depends on others."""
    return config.model_dump(exclude=set(dependent(type(config))))


@router.post("/rounds")
def start(
    request: Request,
    operator: OperatorDep,
    project: ProjectDep,
    session: SessionDep,
    typed: TypedDep,
) -> Response:
    """Start a round. A refused form comes back as it was typed, with the reason."""
    try:
        config = RoundConfig.of(typed)
        with session.begin_nested():  # a refused round leaves nothing behind
            round_ = service.start(session, request.app.state.store, project, operator, config)
    except ValidationError as error:
        reasons = reasons_of(error)
        problem: PrefloopError = not_accepted(reasons)
    except PrefloopError as error:
        reasons, problem = {}, error
    else:
        return redirect(_address(project.slug, round_))
    if "application/json" in request.headers.get("accept", ""):
        raise problem
    return _new_page(request, project, session, typed, reasons, problem)


def _new_page(
    request: Request,
    project: Project,
    session: Session,
    values: dict[str, Any],
    reasons: dict[str, str] | None = None,
    problem: PrefloopError | None = None,
    is_open: bool = True,
) -> Response:
    """Show the form of a new round; after a refusal, with the problem and what was typed."""
    generation = Generation.model_validate(project.generation)
    algorithm: Algorithm = values["algorithm"] if values.get("algorithm") in get_args(Algorithm) else RECOMMENDED
    try:
        config = RoundConfig.of(values)
    except ValidationError:
        rank = queries.adapter_rank(session, project.policy_id)
        config = RoundConfig.defaults(algorithm, generation, rank)
    return page(
        request,
        "rounds/new.html",
        status=problem.status if problem else 200,
        **_before_the_start(request, project, session, config),
        strength=values.get("strength", getattr(config, "strength", None)),
        strengths=STRENGTHS if hasattr(config, "strength") else {},
        groups=form_fields(algorithm, _shown(config) | values, reasons or {}),
        is_open=is_open and (problem is None or bool(reasons)),
        recommended=RECOMMENDED,
        problem=problem,
    )


@router.get("/rounds/{number}")
def show(request: Request, staff: StaffDep, round_: RoundDep, session: SessionDep) -> Response:
    if "application/json" in request.headers.get("accept", ""):
        return status(staff, round_, session)
    return page(
        request,
        "rounds/page.html",
        view=views.page(session, request.app.state.store, round_),
        difference_of=difference_of,
        least_prompts=LEAST_PROMPTS,
        fewest_prompts=FEWEST,
    )


@router.get("/rounds/{number}/status")
def status(staff: StaffDep, round_: RoundDep, session: SessionDep) -> Response:
    """Return the round's status as JSON."""
    return JSONResponse(views.status(session, round_, queries.runs_of(session, round_.id)))


@router.get("/rounds/{number}/metrics")
def metrics(staff: StaffDep, round_: RoundDep, session: SessionDep, after: str = "") -> Response:
    """Return the status and the metrics recorded since `after`, the cursor of the last response, as JSON."""
    return JSONResponse(views.metrics(session, round_, after))


@router.get("/rounds/{number}/files/{name}")
def round_file(staff: StaffDep, project: ProjectDep, round_: RoundDep, session: SessionDep, name: FileName) -> Response:
    """Download all metrics as CSV, or one of the page's curves as SVG or CSV."""
    if name == "metrics.csv":
        return attachment(f"{project.slug}-round-{round_.number}-{name}", curves.metrics_csv(session, round_))
    place, _, ending = name.removeprefix("curve-").partition(".")
    chart = curves.chart(session, round_, int(place))
    if chart is None:
        raise NotFound(f"Round {round_.number} has no such curves.", "The round's page shows its curves.")
    content = str(svg(chart, standalone=True)) if ending == "svg" else chart_csv(chart)
    return attachment(f"{project.slug}-round-{round_.number}-{name}", content)


@router.post("/rounds/{number}/cancel")
def cancel(operator: OperatorDep, project: ProjectDep, round_: RoundDep, session: SessionDep) -> Response:
    service.cancel(session, round_, operator)
    return redirect(_address(project.slug, round_))


@router.post("/rounds/{number}/retry")
def retry(
    request: Request, operator: OperatorDep, project: ProjectDep, round_: RoundDep, session: SessionDep
) -> Response:
    state = request.app.state
    service.retry(session, state.store, round_, operator, state.settings.sampling_server)
    return redirect(_address(project.slug, round_))


@router.post("/rounds/{number}/checkpoints/discard")
def discard_checkpoints(
    request: Request, operator: OperatorDep, project: ProjectDep, round_: RoundDep, session: SessionDep
) -> Response:
    service.discard_checkpoints(session, request.app.state.store, round_, operator)
    return redirect(_address(project.slug, round_))


@router.get("/rounds/{number}/samples")
def round_samples(
    request: Request,
    staff: StaffDep,
    project: ProjectDep,
    round_: RoundDep,
    session: SessionDep,
    shown: Literal["training", "queue"] | None = None,
    slice: str = "",
    offset: int = 0,
    steps: int = 0,
) -> Response:
    """Show the new policy's responses for the queue, or its responses during training if these exist."""
    path = views.training_samples_of(session, request.app.state.store, round_)
    if shown == "queue" or (shown is None and path is None):
        return _samples_page(request, project, session, round_=round_, offset=offset)
    offset, steps = min(max(offset, 0), 2**31), min(max(steps, 0), 2**31)
    samples = read_training_samples(path) if path else []
    return page(
        request,
        "rounds/training_samples.html",
        round=round_,
        view=side_by_side(samples, slice, offset, steps),
        slice=slice,
        prompt_offset=offset,
        prompts_per_page=PROMPTS_PER_PAGE,
        step_offset=steps,
        steps_per_page=STEPS_PER_PAGE,
    )


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
    after: Number = None,
) -> Response:
    """What policies answered the same prompts, side by side."""
    found = sample_queries.side_by_side(session, project.id, split, after or 0)
    return page(request, "rounds/samples_by_prompt.html", found=found, split=split, after=after)


@router.get("/samples.jsonl")
def samples_file(
    staff: StaffDep, project: ProjectDep, session: SessionDep, split: views.Split | None = None
) -> Response:
    """Download all sampled responses with prompt and model version, one JSON object per line."""
    return _samples_file(project, session, round_=None, split=split)


@router.post("/sampling")
def begin_sampling(request: Request, operator: OperatorDep, project: ProjectDep, session: SessionDep) -> Response:
    state = request.app.state
    service.begin_sampling(session, state.store, project, state.settings.sampling_server)
    return redirect(f"/projects/{project.slug}/rounds")


@router.post("/sampling/{run_id}/cancel")
def cancel_sampling(operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep) -> Response:
    service.cancel_run(session, run, operator)
    return redirect(f"/projects/{project.slug}/rounds")


@router.post("/sampling/{run_id}/retry")
def retry_sampling(
    request: Request, operator: OperatorDep, project: ProjectDep, run: RunDep, session: SessionDep
) -> Response:
    service.retry_run(session, run, operator, request.app.state.settings.sampling_server)
    return redirect(f"/projects/{project.slug}/rounds")


def _address(slug: str, round_: Round) -> str:
    return f"/projects/{slug}/rounds/{round_.number}"


def _samples_page(
    request: Request,
    project: ProjectDep,
    session: SessionDep,
    *,
    round_: Round,
    offset: int,
) -> Response:
    offset = min(max(offset, 0), 2**31)
    query = queries.samples(session, project.id, split=None, round_id=round_.id)
    rows = session.execute(query.offset(offset).limit(SAMPLES_PER_PAGE + 1)).all()
    return page(
        request,
        "rounds/samples.html",
        round=round_,
        offset=offset,
        step=SAMPLES_PER_PAGE,
        rows=rows[:SAMPLES_PER_PAGE],
        more=len(rows) > SAMPLES_PER_PAGE,
    )


def _samples_file(project: ProjectDep, session: SessionDep, *, round_: Round | None, split: str | None) -> Response:
    name = f"{project.slug}-{f'round-{round_.number}-' if round_ else ''}samples.jsonl"
    lines = views.sample_lines(session, project.id, split=split, round_id=round_.id if round_ else None)

    def write(path: pathlib.Path) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(lines)

    return scratch.download(name, "application/jsonl", write)
