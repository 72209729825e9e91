"""SQL of red-team attempts. An attempt's state follows from its row and its run."""

from collections.abc import Collection
from datetime import timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session

from app.domain.slices import MOST_LISTED
from app.models import Completion, ModelVersion, Project, Prompt, RedTeamAttempt, Run, User
from app.queue import has_worker
from app.red_team.forms import AttemptFilter

PAGE = 50

# A run that has ended without storing an answer never will.
_STATE = case(
    (RedTeamAttempt.withdrawn_at.is_not(None), "withdrawn"),
    (RedTeamAttempt.prompt_id.is_not(None), "accepted"),
    (RedTeamAttempt.severity.is_not(None), "rated"),
    (RedTeamAttempt.answer.is_not(None), "answered"),
    (Run.state.not_in(("queued", "running")), "failed"),
    else_="waiting",
)


def lock_author(session: Session, author_id: int) -> None:
    """Serialize the requests of one author, from two tabs or a double click."""
    session.execute(select(User.id).where(User.id == author_id).with_for_update(key_share=True))


def by_key(session: Session, idempotency_key: object) -> RedTeamAttempt | None:
    found = select(RedTeamAttempt).where(RedTeamAttempt.idempotency_key == idempotency_key)
    return session.scalars(found).one_or_none()


def count_waiting(session: Session, author_id: int) -> int:
    """Count the author's attempts that wait for an answer, in all projects, because they share one queue."""
    waiting = (
        select(func.count())
        .select_from(RedTeamAttempt)
        .join(Run, Run.id == RedTeamAttempt.run_id)
        .where(RedTeamAttempt.author_id == author_id, _STATE == "waiting")
    )
    return session.scalar(waiting) or 0


def count_lately(session: Session, author_id: int) -> int:
    """Count the author's attempts in the last hour."""
    lately = RedTeamAttempt.created_at > func.now() - timedelta(hours=1)
    return session.scalar(select(func.count()).where(RedTeamAttempt.author_id == author_id, lately)) or 0


def lock(session: Session, project_id: int, attempt_id: int) -> RedTeamAttempt | None:
    found = select(RedTeamAttempt).where(RedTeamAttempt.id == attempt_id, RedTeamAttempt.project_id == project_id)
    return session.scalars(found.with_for_update(), execution_options={"populate_existing": True}).one_or_none()


def count_samples(session: Session, run_id: int | None, prompt_id: int) -> int:
    """How many responses a run has given to a prompt."""
    given = Completion.run_id == run_id, Completion.prompt_id == prompt_id
    return session.scalar(select(func.count()).where(*given)) or 0


def lock_many(session: Session, project_id: int, ids: Collection[int]) -> list[RedTeamAttempt]:
    found = select(RedTeamAttempt).where(RedTeamAttempt.id.in_(ids), RedTeamAttempt.project_id == project_id)
    locked = found.order_by(RedTeamAttempt.id).with_for_update()
    return list(session.scalars(locked, execution_options={"populate_existing": True}))


class Seen(NamedTuple):
    """An attempt with its state: waiting, failed, answered, rated, accepted or withdrawn."""

    attempt: RedTeamAttempt
    state: str
    run: Run | None
    author: str
    model: str

    @property
    def text(self) -> str:
        return self.attempt.messages[-1]["content"]


def _seen(conditions: Collection[ColumnElement[bool]], limit: int, *, before: int | None = None) -> Select[Any]:
    query = (
        select(RedTeamAttempt, _STATE, Run, User.name, ModelVersion.name)
        .outerjoin(Run, Run.id == RedTeamAttempt.run_id)
        .join(User, User.id == RedTeamAttempt.author_id)
        .join(ModelVersion, ModelVersion.id == RedTeamAttempt.model_version_id)
        .where(*conditions)
        .order_by(RedTeamAttempt.id.desc())
        .limit(limit)
    )
    return query if before is None else query.where(RedTeamAttempt.id < before)


def attempt(session: Session, project_id: int, attempt_id: int) -> Seen | None:
    own = (RedTeamAttempt.id == attempt_id, RedTeamAttempt.project_id == project_id)
    row = session.execute(_seen(own, 1)).one_or_none()
    return Seen(*row) if row else None


class Listing(NamedTuple):
    rows: list[Seen]
    total: int
    following: int | None  # `before` of the next page


def _page(session: Session, conditions: Collection[ColumnElement[bool]], before: int | None) -> Listing:
    counted = select(func.count()).select_from(RedTeamAttempt).outerjoin(Run, Run.id == RedTeamAttempt.run_id)
    total = session.scalar(counted.where(*conditions)) or 0
    rows = [Seen(*row) for row in session.execute(_seen(conditions, PAGE + 1, before=before))]
    return Listing(rows[:PAGE], total, rows[PAGE - 1].attempt.id if len(rows) > PAGE else None)


def own(session: Session, project_id: int, author_id: int, before: int | None) -> Listing:
    """Return one page of a person's attempts, newest first."""
    return _page(session, (RedTeamAttempt.project_id == project_id, RedTeamAttempt.author_id == author_id), before)


def listing(session: Session, project_id: int, wanted: AttemptFilter) -> Listing:
    """Return one page of all attempts, newest first. `text` matches in the prompt, the answer and the goal."""
    conditions = [RedTeamAttempt.project_id == project_id]
    if wanted.state:
        # Accepted attempts are rated too.
        states = ("rated", "accepted") if wanted.state == "rated" else (wanted.state,)
        conditions.append(_STATE.in_(states))
    if wanted.category:
        conditions.append(RedTeamAttempt.safety_category == wanted.category)
    if wanted.severity is not None:
        conditions.append(RedTeamAttempt.severity == wanted.severity)
    if wanted.model is not None:
        conditions.append(RedTeamAttempt.model_version_id == wanted.model)
    if words := wanted.text.strip():
        places = (
            RedTeamAttempt.messages[-1]["content"].astext,
            func.coalesce(RedTeamAttempt.answer["text"].astext, ""),
            RedTeamAttempt.goal,
        )
        conditions.append(or_(*(func.strpos(func.lower(place), words.lower()) > 0 for place in places)))
    return _page(session, conditions, wanted.before)


class Outcome(NamedTuple):
    """Number of rated attempts on one model version in one safety category, by severity 0 to 3."""

    model_id: int
    model: str
    safety_category: str
    by_severity: tuple[int, int, int, int]


def outcomes(session: Session, project_id: int) -> list[Outcome]:
    """Return outcomes, newest model first, then by category."""
    counts = [func.count().filter(RedTeamAttempt.severity == severity) for severity in range(4)]
    found = (
        select(ModelVersion.id, ModelVersion.name, RedTeamAttempt.safety_category, *counts)
        .join(ModelVersion, ModelVersion.id == RedTeamAttempt.model_version_id)
        .where(RedTeamAttempt.project_id == project_id, RedTeamAttempt.severity.is_not(None))
        .where(RedTeamAttempt.withdrawn_at.is_(None))
        .group_by(ModelVersion.id, RedTeamAttempt.safety_category)
        .order_by(ModelVersion.id.desc(), RedTeamAttempt.safety_category)
    )
    return [Outcome(row[0], row[1], row[2], tuple(row[3:])) for row in session.execute(found)]


class Model(NamedTuple):
    id: int
    name: str


def models(session: Session, project_id: int) -> list[Model]:
    """Return models that attempts were made on, newest first."""
    asked = exists().where(RedTeamAttempt.model_version_id == ModelVersion.id)
    found = select(ModelVersion.id, ModelVersion.name).where(ModelVersion.project_id == project_id, asked)
    return [Model(*row) for row in session.execute(found.order_by(ModelVersion.id.desc()))]


def categories(session: Session, project_id: int) -> list[str]:
    """Return safety categories of the project's prompts and attempts."""
    of_prompts = select(Prompt.safety_category).where(Prompt.project_id == project_id, Prompt.safety_category != "")
    of_attempts = select(RedTeamAttempt.safety_category).where(RedTeamAttempt.project_id == project_id)
    both = of_prompts.union(of_attempts).order_by("safety_category").limit(MOST_LISTED)
    return sorted(session.scalars(both))


def domains(session: Session, project_id: int) -> list[str]:
    found = select(Prompt.domain).where(Prompt.project_id == project_id, Prompt.domain != "")
    return list(session.scalars(found.distinct().order_by(Prompt.domain).limit(MOST_LISTED)))


def count_states(session: Session, project: Project) -> dict[str, int]:
    counts = (
        select(_STATE, func.count())
        .select_from(RedTeamAttempt)
        .outerjoin(Run, Run.id == RedTeamAttempt.run_id)
        .where(RedTeamAttempt.project_id == project.id)
        .group_by(_STATE)
    )
    return dict(session.execute(counts).all())


class Busy(NamedTuple):
    """What an attempt waits for. Nothing is revealed about another project's run.

    run: this project's run that the worker is processing. elsewhere: the worker is processing another project's run.
    ahead: attempts of this project before this one. worker: a worker is running.
    """

    run: Run | None
    elsewhere: bool
    ahead: int
    worker: bool


def busy(session: Session, attempt_: RedTeamAttempt) -> Busy:
    of_project = Run.project_id == attempt_.project_id
    other = and_(Run.state == "running", Run.id != attempt_.run_id)
    first = select(Run).where(other).order_by(of_project.desc(), Run.started_at).limit(1)
    running = session.scalars(first).one_or_none()
    elsewhere = running is not None and running.project_id != attempt_.project_id
    before = and_(Run.kind == "red_team", Run.state == "queued", Run.id < attempt_.run_id, of_project)
    ahead = session.scalar(select(func.count()).where(before)) or 0
    return Busy(None if elsewhere else running, elsewhere, ahead, has_worker(session))
