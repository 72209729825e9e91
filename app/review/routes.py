"""The review queues, one comparison, and a reviewer's decisions about it."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, Request, Response
from sqlalchemy.orm import Session

from app.access.guards import AdminDep, ProjectDep
from app.db import SessionDep
from app.errors import Conflict, Forbidden, InvalidInput
from app.limits import FormRoute
from app.models import Comparison, Project, User
from app.models.prompt import DIFFICULTIES, SPLITS
from app.render import page, redirect
from app.review import queries, queues, service, views
from app.review.forms import DecisionForm, MoreLabelersForm, VerdictForm, Wanted
from app.review.queues import Place
from app.review.relabel_routes import router as relabel

router = APIRouter(prefix="/projects/{project_slug}/review", route_class=FormRoute)
router.include_router(relabel)

WantedDep = Annotated[Wanted, Query()]


@router.get("")
def queue(request: Request, admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: WantedDep) -> Response:
    """Show a queue in review order, starting after a place."""
    start = Place(wanted.key, wanted.after) if wanted.after else None
    rows = queues.page(session, project.id, wanted, start)
    blind = service.blind_for(session, admin, [row.comparison for row in rows])
    return page(
        request,
        "review/queue.html",
        wanted=wanted,
        rows=[views.row(wanted.queue, row, hidden=row.comparison.id in blind) for row in rows],
        waiting=service.waiting(session, project),
        limit=queues.COUNT_LIMIT,
        following=queues.place_of(wanted.queue, rows[-1].comparison) if len(rows) == queues.PAGE else None,
        slices={
            "domain": queries.domains(session, project.id),
            "difficulty": DIFFICULTIES,
            "safety_category": queries.safety_categories(session, project.id),
            "split": SPLITS,
        },
        versions=queries.versions(session, project.id),
    )


@router.get("/next")
def following(admin: AdminDep, project: ProjectDep, session: SessionDep, wanted: WantedDep) -> Response:
    """Redirect to the next comparison after a place, so that "Later" moves on."""
    return _on(session, project, wanted, Place(wanted.key, wanted.after))


@router.get("/{comparison_id}")
def case(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    wanted: WantedDep,
) -> Response:
    return _case(request, session, project, admin, comparison_id, wanted)


@router.post("/{comparison_id}/recuse")
def give_up(
    admin: AdminDep, project: ProjectDep, session: SessionDep, comparison_id: int, wanted: WantedDep
) -> Response:
    service.give_up(session, project, admin, comparison_id)
    return redirect(f"/projects/{project.slug}/review/{comparison_id}?{wanted.query()}")


@router.post("/{comparison_id}/verdict")
def adjudicate(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    wanted: WantedDep,
    form: Annotated[VerdictForm, Form()],
) -> Response:
    def decide() -> Comparison:
        return service.adjudicate(session, project, admin, comparison_id, **form.model_dump())

    return _decide(request, session, project, admin, comparison_id, wanted, form, decide)


@router.post("/{comparison_id}/more")
def ask_more(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    wanted: WantedDep,
    form: Annotated[MoreLabelersForm, Form()],
) -> Response:
    kind, _, id_ = form.who.partition("-")
    asked: dict[str, Any] = form.model_dump(exclude={"who"}) | ({f"{kind}_id": int(id_)} if kind else {})

    def decide() -> Comparison:
        return service.ask_more(session, project, admin, comparison_id, **asked)

    return _decide(request, session, project, admin, comparison_id, wanted, form, decide)


# Actions that need only a note.
ACTIONS: dict[str, Callable[..., Comparison]] = {
    "withdraw": service.withdraw,
    "dismiss-flags": service.dismiss_flags,
    "people-are-right": service.people_are_right,
    "request": service.request,
    "calibrate": service.make_calibration,
}


@router.post("/{comparison_id}/{action}")
def act(
    request: Request,
    admin: AdminDep,
    project: ProjectDep,
    session: SessionDep,
    comparison_id: int,
    action: Annotated[str, Path(pattern=f"^({'|'.join(ACTIONS)})$")],
    wanted: WantedDep,
    form: Annotated[DecisionForm, Form()],
) -> Response:
    def decide() -> Comparison:
        return ACTIONS[action](session, project, admin, comparison_id, **form.model_dump())

    # After a request the reviewer decides at once. A comparison with a verdict is in no queue, so there is no next one.
    stay = action in ("request", "calibrate")
    return _decide(request, session, project, admin, comparison_id, wanted, form, decide, stay=stay)


def _decide(
    request: Request,
    session: Session,
    project: Project,
    admin: User,
    comparison_id: int,
    wanted: Wanted,
    form: DecisionForm,
    decide: Callable[[], Comparison],
    *,
    stay: bool = False,
) -> Response:
    """Redirect to the next comparison; after a refusal, show the same one with the reason and what was typed."""
    try:
        with session.begin_nested():  # undo a decision that is refused halfway
            comparison = decide()
    except (Conflict, InvalidInput) as problem:
        return _case(request, session, project, admin, comparison_id, wanted, problem=problem, form=form)
    if stay:
        return redirect(f"/projects/{project.slug}/review/{comparison_id}?{wanted.query()}")
    return _on(session, project, wanted, queues.place_of(wanted.queue, comparison))


def _on(session: Session, project: Project, wanted: Wanted, after: Place) -> Response:
    base = f"/projects/{project.slug}/review"
    comparison_id = service.following(session, project, wanted, after)
    return redirect(f"{base}/{comparison_id}?{wanted.query()}" if comparison_id else f"{base}?{wanted.query()}")


def _case(
    request: Request,
    session: Session,
    project: Project,
    admin: User,
    comparison_id: int,
    wanted: Wanted,
    *,
    problem: Conflict | InvalidInput | None = None,
    form: DecisionForm | None = None,
) -> Response:
    """Show one comparison with everything about it, unless the viewer may still judge it.

    Args:
        form: a refused decision, to fill in what was typed and chosen.
    """
    try:
        found = service.open_case(session, project, admin, comparison_id)
    except Forbidden as closed:
        context = {"comparison_id": comparison_id, "wanted": wanted, "closed": closed}
        return page(request, "review/closed.html", status=closed.status, **context)
    comparison = found.comparison
    seen = service.as_seen(session, comparison)
    judgments = queries.judgments(session, comparison)
    decisions = queries.decisions(session, comparison_id)
    is_measuring = comparison.purpose in service.MEASURING
    can_ask = comparison.state in ("settled", "in_review") and not is_measuring
    return page(
        request,
        "review/case.html",
        status=problem.status if problem else 200,
        case=found,
        wanted=wanted,
        place=queues.place_of(wanted.queue, comparison),
        live=[said for said in judgments if said.judgment.superseded_at is None],
        superseded=[said for said in judgments if said.judgment.superseded_at is not None],
        skips=queries.skips(session, comparison_id),
        decisions=[(decision, views.decision(decision, found.rubric.strengths)) for decision in decisions],
        seen=seen,
        verdict=queries.verdict(session, comparison_id),
        people=queries.people_to_ask(session, comparison) if can_ask else [],
        groups=queries.groups_to_ask(session, comparison) if can_ask else [],
        waiting=service.waiting(session, project),
        limit=queues.COUNT_LIMIT,
        views=views,
        problem=problem,
        note=form.note if form else "",
        chosen=form.verdict if isinstance(form, VerdictForm) else None,
        is_measuring=is_measuring,
        can_ask=can_ask,
        judged_too=any(said.judgment.labeler_id == admin.id for said in judgments),
    )
