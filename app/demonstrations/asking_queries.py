"""SQL of asking for demonstrations: which prompts are eligible, and which still wait for an answer."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, exists, func, insert, literal, select
from sqlalchemy.orm import Session

from app.demonstrations.forms import AskForm
from app.demonstrations.queries import EXCERPT, PAGE, is_free, of_slice
from app.models import AuditEvent, Completion, Demonstration, DemonstrationTask, Project, Prompt, User


def _eligible(project: Project, wish: AskForm) -> list[ColumnElement[bool]]:
    """Conditions on prompts: they match, training reads them, and they have no answer and no open task."""
    answered = exists().where(Demonstration.prompt_id == Prompt.id, Demonstration.state.in_(("pending", "approved")))
    asked = exists().where(DemonstrationTask.prompt_id == Prompt.id)
    conditions = [Prompt.project_id == project.id, Prompt.split.in_(("train", "heldout")), ~answered, ~asked]
    conditions += of_slice(wish)
    if wish.start == "sample":
        conditions.append(exists(_samples(project)))
    return conditions


def _samples(project: Project) -> Select[int]:
    """Select the current policy's newest response to a prompt."""
    said = select(Completion.id).where(
        Completion.prompt_id == Prompt.id,
        Completion.model_version_id == project.policy_id,
        Completion.text != "",
    )
    return said.order_by(Completion.id.desc()).limit(1).correlate(Prompt)


def count_eligible(session: Session, project: Project, wish: AskForm) -> int:
    return session.scalar(select(func.count()).select_from(Prompt).where(*_eligible(project, wish))) or 0


def add_tasks(session: Session, project: Project, wish: AskForm) -> int:
    """Add tasks for `wish.count` eligible prompts in random order; return how many."""
    start = _samples(project).scalar_subquery() if wish.start == "sample" else literal(None, Completion.id.type)
    chosen = (
        select(literal(project.id), Prompt.id, start)
        .where(*_eligible(project, wish))
        .order_by(func.md5(Prompt.digest))
        .limit(wish.count)
    )
    added = insert(DemonstrationTask).from_select(["project_id", "prompt_id", "completion_id"], chosen)
    return len(session.execute(added.returning(DemonstrationTask.id)).all())


def lock_project(session: Session, project: Project) -> None:
    """Let only one transaction at a time ask for demonstrations in the project."""
    session.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))


def was_asked(session: Session, project_id: int, key: str) -> bool:
    """Tell whether the form with this key was already submitted."""
    events = (AuditEvent.project_id == project_id, AuditEvent.action == "demonstration.asked")
    return bool(session.scalar(select(exists().where(*events, AuditEvent.details["key"].astext == key))))


class OpenTask(NamedTuple):
    task_id: int
    question: str
    domain: str
    split: str
    from_sample: bool
    labeler: str | None  # who is writing now
    skips: list[dict[str, Any]]


def open_tasks(session: Session, project_id: int, limit: int = PAGE) -> list[OpenTask]:
    """Return open tasks. Those that most people skipped come first, because they need a look."""
    held = and_(User.id == DemonstrationTask.labeler_id, DemonstrationTask.expires_at >= func.now())
    found = (
        select(
            DemonstrationTask.id,
            func.left(Prompt.messages[-1]["content"].astext, EXCERPT),
            Prompt.domain,
            Prompt.split,
            DemonstrationTask.completion_id.is_not(None),
            User.name,
            DemonstrationTask.skips,
        )
        .join(Prompt, Prompt.id == DemonstrationTask.prompt_id)
        .outerjoin(User, held)
        .where(DemonstrationTask.project_id == project_id)
        .order_by(func.jsonb_array_length(DemonstrationTask.skips).desc(), DemonstrationTask.id)
        .limit(limit)
    )
    return [OpenTask(*row) for row in session.execute(found)]


def count_tasks(session: Session, project_id: int) -> int:
    return session.scalar(select(func.count()).where(DemonstrationTask.project_id == project_id)) or 0


def remove_tasks(session: Session, project_id: int, task_id: int | None) -> int:
    """Remove one task, or all tasks that nobody is writing for now; return how many."""
    gone = delete(DemonstrationTask).where(DemonstrationTask.project_id == project_id)
    gone = gone.where(is_free() if task_id is None else DemonstrationTask.id == task_id)
    return len(session.execute(gone.returning(DemonstrationTask.id)).all())
