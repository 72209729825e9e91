"""SQL of prompts."""

from typing import NamedTuple

from sqlalchemy import ColumnElement, column, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from app.domain.slices import MOST_LISTED
from app.models import (
    AuditEvent,
    Comparison,
    Completion,
    Demonstration,
    DemonstrationTask,
    ModelVersion,
    Project,
    Prompt,
    RedTeamAttempt,
)
from app.models.prompt import WITHDRAWN
from app.prompts.forms import PromptFilter

PAGE = 50
SHOWN = 50  # completions and comparisons of one prompt


def lock(session: Session, project_id: int, prompt_id: int) -> Prompt | None:
    """The prompt, for one transaction at a time."""
    wanted = select(Prompt).where(Prompt.id == prompt_id, Prompt.project_id == project_id)
    return session.scalars(wanted.with_for_update(), execution_options={"populate_existing": True}).one_or_none()


def is_used(session: Session, prompt_id: int) -> bool:
    """Whether somebody has answered it or is asked to: its text and its split are then settled."""
    used = (
        exists().where(Completion.prompt_id == prompt_id),
        exists().where(Comparison.prompt_id == prompt_id),
        exists().where(Demonstration.prompt_id == prompt_id),
        exists().where(DemonstrationTask.prompt_id == prompt_id),
        exists().where(RedTeamAttempt.prompt_id == prompt_id),
    )
    return bool(session.scalar(select(or_(*used))))


def close(session: Session, prompt_id: int) -> int:
    """Withdraws what is still open about a prompt; returns how many comparisons that were."""
    opened = Comparison.prompt_id == prompt_id, Comparison.state == "open"
    locked = select(Comparison.id).where(*opened).order_by(Comparison.id).with_for_update(key_share=True)
    ids = list(session.scalars(locked))
    quietly = {"synchronize_session": False}
    withdrawn = update(Comparison).where(Comparison.id.in_(ids)).values(state="withdrawn", flagged=False)
    session.execute(withdrawn, execution_options=quietly)
    session.execute(
        delete(DemonstrationTask).where(DemonstrationTask.prompt_id == prompt_id), execution_options=quietly
    )
    return len(ids)


def was_retired(session: Session, project_id: int, prompt_id: int) -> bool:
    """Whether an admin has retired it. Else it was withdrawn with all that its author wrote, which is for good."""
    events = AuditEvent.project_id == project_id, AuditEvent.action == "prompt.retired"
    return bool(
        session.scalar(select(exists().where(*events, AuditEvent.details["prompt_id"].astext == str(prompt_id))))
    )


def by_digest(session: Session, project_id: int, digest: str) -> Prompt:
    return session.scalars(select(Prompt).where(Prompt.project_id == project_id, Prompt.digest == digest)).one()


def insert_new(session: Session, rows: list[dict[str, object]]) -> list[int]:
    """Inserts prompts whose digest the project does not have; returns their ids."""
    if not rows:
        return []
    statement = insert(Prompt).on_conflict_do_nothing(index_elements=["project_id", "digest"]).returning(Prompt.id)
    return list(session.scalars(statement, rows))


class Listed(NamedTuple):
    prompt: Prompt
    completions: int
    comparisons: int


class Listing(NamedTuple):
    rows: list[Listed]
    total: int
    following: int | None  # `after` of the next page


def matching(project: Project, wanted: PromptFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter. Text is searched in the conversation, without regard to case. Withdrawn prompts are
    found only where they are asked for."""
    conditions = [Prompt.project_id == project.id]
    if not wanted.split:
        conditions.append(Prompt.split != WITHDRAWN)
    for name in ("split", "domain", "difficulty"):
        if value := getattr(wanted, name):
            conditions.append(getattr(Prompt, name) == value)
    if wanted.text.strip():
        conditions.append(_contains(wanted.text.strip()))
    return conditions


def _contains(words: str) -> ColumnElement[bool]:
    message = func.jsonb_array_elements(Prompt.messages).table_valued(column("value", JSONB), name="message")
    content = message.c.value.op("->>")("content")
    return exists(select(1).select_from(message).where(func.strpos(func.lower(content), func.lower(words)) > 0))


def listing(session: Session, project: Project, wanted: PromptFilter) -> Listing:
    """One page of prompts in the order they came, after the prompt with id `wanted.after`."""
    conditions = matching(project, wanted)
    total = session.scalar(select(func.count()).select_from(Prompt).where(*conditions)) or 0
    completions = select(func.count()).where(Completion.prompt_id == Prompt.id).correlate(Prompt).scalar_subquery()
    standing = Comparison.prompt_id == Prompt.id, Comparison.state != "withdrawn"
    comparisons = select(func.count()).where(*standing).correlate(Prompt).scalar_subquery()
    found = (
        select(Prompt, completions, comparisons)
        .where(*conditions, Prompt.id > wanted.after)
        .order_by(Prompt.id)
        .limit(PAGE + 1)
    )
    rows = [Listed(*row) for row in session.execute(found)]
    more = len(rows) > PAGE
    return Listing(rows[:PAGE], total, rows[PAGE - 1].prompt.id if more else None)


def domains(session: Session, project: Project) -> list[str]:
    found = select(Prompt.domain).where(Prompt.project_id == project.id, Prompt.domain != "")
    return list(session.scalars(found.distinct().order_by(Prompt.domain).limit(MOST_LISTED)))


def in_project(session: Session, project: Project, prompt_id: int) -> Prompt | None:
    return session.scalars(select(Prompt).where(Prompt.id == prompt_id, Prompt.project_id == project.id)).one_or_none()


class CompletionRow(NamedTuple):
    completion: Completion
    model: str | None


def completions_of(session: Session, prompt: Prompt) -> list[CompletionRow]:
    found = (
        select(Completion, ModelVersion.name)
        .outerjoin(ModelVersion, ModelVersion.id == Completion.model_version_id)
        .where(Completion.prompt_id == prompt.id)
        .order_by(Completion.id)
        .limit(SHOWN)
    )
    return [CompletionRow(*row) for row in session.execute(found)]


def comparisons_of(session: Session, prompt: Prompt) -> list[Comparison]:
    found = select(Comparison).where(Comparison.prompt_id == prompt.id).order_by(Comparison.id).limit(SHOWN)
    return list(session.scalars(found))
