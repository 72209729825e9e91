"""Helpers for tests of the queue: take a task, answer it, let its time run out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import event, select, text, update
from sqlalchemy.orm import Session

from app.documents import DEFAULT_ASPECTS, DEFAULT_FLAGS
from app.labeling import answers, assigning, queries
from app.labeling.forms import LabelForm
from app.labeling.queries import Task
from app.models import Comparison, Judgment, Lease, Project, Ranking, User
from tests import factories

ASPECTS = [aspect.model_dump() for aspect in DEFAULT_ASPECTS]
FLAGS = [flag.model_dump() for flag in DEFAULT_FLAGS]


def rich(session: Session, n: int = 1, overlap: int = 2, **rubric: object) -> tuple[Project, User]:
    project = factories.project(session, overlap=overlap)
    factories.rubric(session, project, **({"aspects": ASPECTS, "flags": FLAGS} | rubric))
    for _ in range(n):
        factories.comparison(session, project)
    return project, factories.user(session)


def submit(session: Session, project: Project, labeler: User, task: Task, **values: object) -> Judgment:
    return answers.submit(session, project, task.lease_id, labeler, answer(task, **values))  # type: ignore[arg-type]


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
    """Make the lease look as if it had been given out this long ago."""
    given = datetime.now(UTC) - age
    session.execute(
        update(Lease).where(Lease.id == lease_id).values(created_at=given, expires_at=given + timedelta(minutes=15))
    )


def end_overdue(session: Session) -> None:
    """End expired leases, as any labeler's request does to other people's leases."""
    queries.renew_live_leases(session, 0, 0, timedelta())


def counts(session: Session, comparison_id: int) -> tuple[int, int]:
    row = session.execute(
        select(Comparison.judgment_count, Comparison.lease_count).where(Comparison.id == comparison_id)
    ).one()
    return row.judgment_count, row.lease_count


def fill(session: Session, comparison: Comparison, n: int) -> list[int]:
    """Add many similar comparisons; return their ids."""
    columns = "project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap, priority"
    copied = text(
        f"INSERT INTO comparison ({columns}) SELECT {columns} FROM comparison, generate_series(1, :n)"
        " WHERE comparison.id = :id RETURNING id"
    )
    return list(session.scalars(copied, {"n": n, "id": comparison.id}))


def vacuum(session: Session) -> None:
    """Commit and vacuum all tables: leftovers of earlier tests in their files would affect query plans."""
    session.commit()
    with session.get_bind().engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM (ANALYZE)"))


@contextmanager
def few_rows_read(session: Session, *, fewer_than: int) -> Iterator[None]:
    """Fail if statements on comparison read more rows in total, as counted by PostgreSQL's executor."""
    read: list[tuple[float, str]] = []
    connection = session.connection()

    def explain(conn, cursor, statement, parameters, context, executemany):  # type: ignore[no-untyped-def]
        if statement.startswith("SELECT") and "FROM comparison" in statement and "EXPLAIN" not in statement:
            with conn.connection.cursor() as own:
                own.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, parameters)
                plan = own.fetchone()[0][0]["Plan"]
                read.append((_rows(plan), json.dumps(plan)))

    event.listen(connection, "before_cursor_execute", explain)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", explain)
    assert read
    assert sum(rows for rows, _ in read) < fewer_than, max(read)[1]


def _rows(plan: dict) -> float:  # type: ignore[type-arg]
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    own = (plan["Actual Rows"] + removed) * plan["Actual Loops"]
    return own + sum(_rows(child) for child in plan.get("Plans", []))


def ranking(session: Session, project: Project, **values: Any) -> list[Comparison]:
    """Add three responses and their pairs, of which the first is offered."""
    prompt = factories.prompt(session, project)
    a, b, c = (factories.completion(session, prompt, text).id for text in ("one", "two", "three"))
    row = Ranking(project_id=project.id, prompt_id=prompt.id, size=3)
    session.add(row)
    session.flush()
    return [
        factories.comparison(
            session,
            project,
            prompt=prompt,
            completion_a_id=x,
            completion_b_id=y,
            ranking_id=row.id,
            offered=n == 0,
            **values,
        )
        for n, (x, y) in enumerate([(a, b), (a, c), (b, c)])
    ]


def rank(session: Session, project: Project, order: dict[str, int | str]) -> None:
    """Let a new person rank the responses by their text; an empty rank means unranked."""
    labeler = factories.user(session)
    task = take(session, project, labeler)
    ranks = [order[text] for text in task.responses]
    answers.submit(session, project, task.lease_id, labeler, answer(task, None, ranks=ranks))
