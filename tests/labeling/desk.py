"""What the tests of the queue do all the time: take a task, answer it, let its time run out."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.labeling import answers, assigning
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Comparison, Judgment, Lease, Project, User


def take(session: Session, project: Project, labeler: User, **kwargs: object) -> Task:
    task = assigning.next_task(session, project, labeler, **kwargs)  # type: ignore[arg-type]
    assert task is not None
    return task


def answer(task: Task, preference: int | None = 1, **values: object) -> LabelForm:
    given = {"idempotency_key": uuid4(), "rubric_id": task.rubric.id, "preference": preference} | values
    return LabelForm.model_validate(given)


def judge(session: Session, project: Project, labeler: User, task: Task, preference: int = 1) -> Judgment:
    return answers.submit(session, project, task.lease_id, labeler, answer(task, preference))


def run_out(session: Session, lease_id: UUID, age: timedelta = timedelta(hours=1)) -> None:
    """As if the lease had been given out so long ago."""
    given = datetime.now(UTC) - age
    session.execute(
        update(Lease).where(Lease.id == lease_id).values(created_at=given, expires_at=given + timedelta(minutes=15))
    )


def counts(session: Session, comparison_id: int) -> tuple[int, int]:
    row = session.execute(
        select(Comparison.judgment_count, Comparison.lease_count).where(Comparison.id == comparison_id)
    ).one()
    return row.judgment_count, row.lease_count
