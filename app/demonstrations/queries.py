"""SQL of demonstrations: writing, reading and reviewing them.

Order of locks: the labeler's own row, then one task or demonstration.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, column, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from app.access.queries import projects_of
from app.demonstrations.forms import AskForm, DemonstrationFilter
from app.domain.slices import MOST_LISTED
from app.models import Completion, Demonstration, DemonstrationEvent, DemonstrationTask, Project, Prompt, Rubric, User

PAGE = 50
EXCERPT = 200  # characters


# ---- writing ---------------------------------------------------------------------------------------------------------


def is_free() -> ColumnElement[bool]:
    """Condition on a task: nobody is writing for it now."""
    return or_(DemonstrationTask.labeler_id.is_(None), DemonstrationTask.expires_at < func.now())


def _skipped_by(labeler_id: int) -> ColumnElement[bool]:
    return DemonstrationTask.skips.contains([{"labeler": labeler_id}])


def renew(session: Session, project_id: int, labeler_id: int, lasting: timedelta) -> int | None:
    """Extend the labeler's hold on their task in this project, even if it had expired; return the task's id."""
    own = (DemonstrationTask.project_id == project_id, DemonstrationTask.labeler_id == labeler_id)
    held = update(DemonstrationTask).where(*own).values(expires_at=func.now() + lasting)
    return session.scalar(held.returning(DemonstrationTask.id))


def give_back(session: Session, project_id: int, labeler_id: int) -> None:
    """Release the task that the labeler has in this project, so that somebody else may take it."""
    own = (DemonstrationTask.project_id == project_id, DemonstrationTask.labeler_id == labeler_id)
    session.execute(update(DemonstrationTask).where(*own).values(labeler_id=None, expires_at=None))


def claim(session: Session, project_id: int, labeler_id: int, lasting: timedelta, *, skipped: bool) -> int | None:
    """Give the labeler the next free task; None if there is none.

    skipped: choose among tasks that they have skipped, instead of the others.
    """
    skip = _skipped_by(labeler_id)
    found = (
        select(DemonstrationTask.id)
        .where(DemonstrationTask.project_id == project_id, is_free(), skip if skipped else ~skip)
        .order_by(DemonstrationTask.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    task_id = session.scalar(found)
    if task_id is not None:
        held = update(DemonstrationTask).where(DemonstrationTask.id == task_id)
        session.execute(held.values(labeler_id=labeler_id, expires_at=func.now() + lasting))
    return task_id


class Waiting(NamedTuple):
    """Counts of a project's tasks: all, those free for a labeler, and the free ones that they have skipped."""

    total: int
    free: int
    skipped: int


def waiting(session: Session, project_id: int, labeler_id: int) -> Waiting:
    skipped = and_(is_free(), _skipped_by(labeler_id))
    counts = select(func.count(), func.count().filter(is_free()), func.count().filter(skipped))
    return Waiting(*session.execute(counts.where(DemonstrationTask.project_id == project_id)).one())


def written_today(session: Session, labeler_id: int) -> int:
    """Count what the labeler has written since midnight, UTC, in all projects."""
    midnight = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    mine = select(func.count()).where(Demonstration.author_id == labeler_id, Demonstration.created_at >= midnight)
    return session.scalar(mine) or 0


class Desk(NamedTuple):
    """The task a labeler is writing for. `sample` is the text to start from; None to start from an empty editor."""

    task_id: int
    prompt: Prompt
    sample: str | None


def desk(session: Session, task_id: int) -> Desk:
    found = (
        select(DemonstrationTask.id, Prompt, Completion.text)
        .join(Prompt, Prompt.id == DemonstrationTask.prompt_id)
        .outerjoin(Completion, Completion.id == DemonstrationTask.completion_id)
        .where(DemonstrationTask.id == task_id)
    )
    return Desk(*session.execute(found).one())


class Locked(NamedTuple):
    task: DemonstrationTask
    is_free: bool


def lock_task(session: Session, project_id: int, task_id: int) -> Locked | None:
    found = select(DemonstrationTask, is_free()).where(
        DemonstrationTask.id == task_id, DemonstrationTask.project_id == project_id
    )
    row = session.execute(found.with_for_update(), execution_options={"populate_existing": True}).one_or_none()
    return Locked(*row) if row else None


def has_rubric(session: Session, project_id: int, rubric_id: int) -> bool:
    return bool(session.scalar(select(exists().where(Rubric.id == rubric_id, Rubric.project_id == project_id))))


def with_text(session: Session, prompt_id: int, digest: str) -> Demonstration | None:
    same = select(Demonstration).where(Demonstration.prompt_id == prompt_id, Demonstration.digest == digest)
    return session.scalars(same).one_or_none()


class ProjectTasks(NamedTuple):
    project: Project
    tasks: int


def projects_with_tasks(session: Session, labeler_id: int) -> list[ProjectTasks]:
    """Return the labeler's projects with prompts they could write for, and how many."""
    found = (
        select(Project, func.count())
        .join(DemonstrationTask, DemonstrationTask.project_id == Project.id)
        .where(Project.id.in_(projects_of(labeler_id, "labeler")), Project.archived_at.is_(None))
        .where(or_(is_free(), DemonstrationTask.labeler_id == labeler_id))
        .group_by(Project.id)
        .order_by(Project.id)
    )
    return [ProjectTasks(*row) for row in session.execute(found)]


# ---- reading and reviewing -------------------------------------------------------------------------------------------


class Listed(NamedTuple):
    """A demonstration in a list, with its texts shortened."""

    demonstration_id: int
    state: str
    question: str
    excerpt: str
    is_edited: bool
    ai_revised: bool
    author: str | None
    source: str
    review_note: str
    created_at: datetime
    domain: str
    split: str


def _listed() -> Select[Any]:
    question = Prompt.messages[-1]["content"].astext
    return (
        select(
            Demonstration.id,
            Demonstration.state,
            func.left(question, EXCERPT),
            func.left(Demonstration.text, EXCERPT),
            Demonstration.written.is_not(None),
            Demonstration.ai_revised,
            User.name,
            Demonstration.source,
            Demonstration.review_note,
            Demonstration.created_at,
            Prompt.domain,
            Prompt.split,
        )
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .outerjoin(User, User.id == Demonstration.author_id)
    )


class Listing(NamedTuple):
    rows: list[Listed]
    total: int
    following: int | None  # `before` of the next page


def _page(session: Session, conditions: Sequence[ColumnElement[bool]], before: int | None) -> Listing:
    counted = select(func.count()).select_from(Demonstration).join(Prompt, Prompt.id == Demonstration.prompt_id)
    total = session.scalar(counted.where(*conditions)) or 0
    query = _listed().where(*conditions).order_by(Demonstration.id.desc()).limit(PAGE + 1)
    if before is not None:
        query = query.where(Demonstration.id < before)
    rows = [Listed(*row) for row in session.execute(query)]
    return Listing(rows[:PAGE], total, rows[PAGE - 1].demonstration_id if len(rows) > PAGE else None)


def listing(session: Session, project_id: int, wanted: DemonstrationFilter) -> Listing:
    """Return one page of the project's demonstrations, newest first. `text` matches in the answer and
    the conversation."""
    conditions = [Demonstration.project_id == project_id]
    if wanted.state:
        conditions.append(Demonstration.state == wanted.state)
    if wanted.author is not None:
        conditions.append(Demonstration.author_id == wanted.author)
    conditions += of_slice(wanted)
    if words := wanted.text.strip():
        conditions.append(or_(_holds(Demonstration.text, words), _in_conversation(words)))
    return _page(session, conditions, wanted.before)


def own(session: Session, project_id: int, author_id: int, before: int | None) -> Listing:
    mine = (Demonstration.project_id == project_id, Demonstration.author_id == author_id)
    return _page(session, mine, before)


def of_slice(wanted: DemonstrationFilter | AskForm) -> list[ColumnElement[bool]]:
    """Conditions on a prompt: it has the wanted split and tags."""
    names = ("split", "domain", "difficulty", "safety_category")
    return [getattr(Prompt, name) == value for name in names if (value := getattr(wanted, name))]


def _holds(text: Any, words: str) -> ColumnElement[bool]:
    return func.strpos(func.lower(text), words.lower()) > 0


def _in_conversation(words: str) -> ColumnElement[bool]:
    message = func.jsonb_array_elements(Prompt.messages).table_valued(column("value", JSONB), name="message")
    return exists(select(1).select_from(message).where(_holds(message.c.value.op("->>")("content"), words)))


def states(session: Session, project_id: int) -> dict[str, int]:
    counts = select(Demonstration.state, func.count()).where(Demonstration.project_id == project_id)
    return dict(session.execute(counts.group_by(Demonstration.state)).all())


class Author(NamedTuple):
    id: int
    name: str


def authors(session: Session, project_id: int) -> list[Author]:
    wrote = exists().where(Demonstration.author_id == User.id, Demonstration.project_id == project_id)
    return [Author(*row) for row in session.execute(select(User.id, User.name).where(wrote).order_by(User.name))]


class Slices(NamedTuple):
    """The tag values that occur in the project's prompts."""

    domain: list[str]
    safety_category: list[str]


def slices(session: Session, project_id: int) -> Slices:
    def values(tag: InstrumentedAttribute[str] | InstrumentedAttribute[str | None]) -> list[str]:
        found = (
            select(tag).where(Prompt.project_id == project_id, tag != "").distinct().order_by(tag).limit(MOST_LISTED)
        )
        return [value for value in session.scalars(found) if value]

    return Slices(values(Prompt.domain), values(Prompt.safety_category))


class Case(NamedTuple):
    """A demonstration with everything that its reviewer or author sees."""

    demonstration: Demonstration
    prompt: Prompt
    author: str | None
    reviewer: str | None
    sample: str | None
    rubric_version: int | None


def case(session: Session, project_id: int, demonstration_id: int) -> Case | None:
    author, reviewer = aliased(User), aliased(User)
    found = (
        select(Demonstration, Prompt, author.name, reviewer.name, Completion.text, Rubric.version)
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .outerjoin(author, author.id == Demonstration.author_id)
        .outerjoin(reviewer, reviewer.id == Demonstration.reviewer_id)
        .outerjoin(Completion, Completion.id == Demonstration.completion_id)
        .outerjoin(Rubric, Rubric.id == Demonstration.rubric_id)
        .where(Demonstration.id == demonstration_id, Demonstration.project_id == project_id)
    )
    row = session.execute(found).one_or_none()
    return Case(*row) if row else None


def lock(session: Session, project_id: int, demonstration_id: int) -> Demonstration | None:
    found = select(Demonstration).where(Demonstration.id == demonstration_id, Demonstration.project_id == project_id)
    return session.scalars(found.with_for_update(), execution_options={"populate_existing": True}).one_or_none()


def next_pending(session: Session, project_id: int, after: int) -> int | None:
    """Return the next demonstration to review after this one; at the end, continue with the first."""
    pending = select(Demonstration.id).where(Demonstration.project_id == project_id, Demonstration.state == "pending")
    order = ((Demonstration.id <= after), Demonstration.id)
    return session.scalar(pending.where(Demonstration.id != after).order_by(*order).limit(1))


MOST_EVENTS = 20  # each is shown with its full text change, and authors may change a text as often as they like


class Event(NamedTuple):
    """What was done to a demonstration, by whom, and the text before it."""

    action: str
    actor: str
    note: str
    text: str
    created_at: datetime


def events(session: Session, demonstration_id: int) -> list[Event]:
    """Return the newest `MOST_EVENTS` events of a demonstration, the earliest first."""
    found = (
        select(
            DemonstrationEvent.action,
            User.name,
            DemonstrationEvent.note,
            DemonstrationEvent.text,
            DemonstrationEvent.created_at,
        )
        .join(User, User.id == DemonstrationEvent.actor_id)
        .where(DemonstrationEvent.demonstration_id == demonstration_id)
        .order_by(DemonstrationEvent.id.desc())
        .limit(MOST_EVENTS)
    )
    return [Event(*row) for row in session.execute(found)][::-1]
