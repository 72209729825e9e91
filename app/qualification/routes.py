"""The training quiz: taking it, and seeing who has passed."""

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import BeforeValidator
from sqlalchemy.orm import Session

from app.access.guards import LabelerDep, ProjectDep, StaffDep
from app.db import SessionDep
from app.errors import NotFound, PrefloopError
from app.limits import FormRoute
from app.models import Project, User
from app.qualification import queries, service, views
from app.render import page, redirect

router = APIRouter(prefix="/projects/{project_slug}/quiz", route_class=FormRoute)
PAGE_SIZE = 100


@router.get("")
def show(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    after: Annotated[int | None, Query()] = None,
) -> Response:
    """Show the labeler's state: the start, the next question, or the result.

    Args:
        after: a question that was just answered; its explanation is shown before the next question.
    """
    return _page(request, session, project, labeler, after=after)


@router.post("")
def begin(project: ProjectDep, labeler: LabelerDep, session: SessionDep) -> Response:
    service.begin(session, project, labeler)
    return redirect(f"/projects/{project.slug}/quiz")


@router.get("/people")
def people(
    request: Request,
    project: ProjectDep,
    staff: StaffDep,
    session: SessionDep,
    version: Annotated[int | None, Query()] = None,
    number: Annotated[int, Query(alias="page", ge=1, le=100_000)] = 1,
) -> Response:
    """Show who has passed the quiz of a version (default: the newest), and which of its questions are hard."""
    versions = queries.versions_with_quiz(session, project.id)
    rubric = next((each for each in versions if version in (None, each.version)), None)
    if versions and rubric is None:
        raise NotFound(f"Version {version} of the rubric has no quiz.", "Choose a version that has a quiz.")
    context: dict[str, Any] = {"rubric": rubric, "versions": versions}
    if rubric:
        # One more than is shown tells whether there is another page.
        results = queries.results(session, rubric, PAGE_SIZE + 1, (number - 1) * PAGE_SIZE)
        context |= {
            "results": results[:PAGE_SIZE],
            "has_more": len(results) > PAGE_SIZE,
            "number": number,
            "totals": queries.totals(session, rubric),
            "figures": views.figures(rubric, queries.first_answers(session, rubric)),
            "shared": [each for each in versions if each.quiz_version == rubric.quiz_version and each.id != rubric.id],
            "needed": service.needed_of(project, len(rubric.quiz)),
            "words": views.WORDS,
        }
    return page(request, "qualification/people.html", **context)


@router.post("/{attempt}/{item}")
def answer(
    request: Request,
    project: ProjectDep,
    labeler: LabelerDep,
    session: SessionDep,
    attempt: int,
    item: int,
    answer: Annotated[int | None, BeforeValidator(lambda sent: sent or None), Form()] = None,
) -> Response:
    """Take an answer and show whether it is right, and why. A refused answer shows the labeler's current question
    again."""
    try:
        service.answer(session, project, labeler, attempt, item, answer)
    except PrefloopError as problem:
        return _page(request, session, project, labeler, problem=problem)
    return redirect(f"/projects/{project.slug}/quiz?after={item}")


def _page(
    request: Request,
    session: Session,
    project: Project,
    labeler: User,
    *,
    after: int | None = None,
    problem: PrefloopError | None = None,
) -> Response:
    try:
        now = service.standing(session, project, labeler)
    except NotFound as none:
        return page(request, "qualification/none.html", status=problem.status if problem else 200, reason=none)
    done = now.attempt.answers if now.attempt else {}
    question = after if str(after) in done else now.next_item
    return page(
        request,
        "qualification/page.html",
        status=problem.status if problem else 200,
        now=now,
        done=len(done),
        question=None if question is None else views.question(now, question),
        choices=views.choices(now.rubric),
        answered=views.answered(now) if now.attempt and question is None else [],
        words=views.WORDS,
        problem=problem,
    )
