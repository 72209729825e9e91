"""Rows in every table, made by the current code; storing them in a file; and finding rows that an upgrade lost."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, text
from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.models import (
    Adjudication,
    Base,
    Comparison,
    JudgeJudgment,
    MonitorReview,
    QueuePlace,
    Ranking,
    Round,
    SigninFailure,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotJudgeJudgment,
    SnapshotThumb,
)
from tests import factories
from tests.app import world

Rows = dict[str, list[dict[str, Any]]]  # by table; each row as PostgreSQL's to_jsonb gives it

KEY = """
    SELECT a.attname FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = to_regclass(:table) AND i.indisprimary
"""
IDENTITIES = """
    SELECT a.attname FROM pg_attribute AS a
    WHERE a.attrelid = to_regclass(:table) AND a.attidentity <> '' AND NOT a.attisdropped
"""


def make(session: Session, folder: Path) -> None:
    """Add a project with rows in every table; commit.

    Raises:
        AssertionError: a table is empty. Add a row for it here.
    """
    made = world.build(session, folder)
    project, labeler = made.project, made.labeler
    comparison = session.get_one(Comparison, made.values["comparison_id"])
    prompt = factories.prompt(session, project)
    answers = [factories.completion(session, prompt) for _ in range(3)]
    thumb = factories.thumb(session, answers[0], liked=False, labeler_id=labeler.id)
    demonstration = factories.demonstration(session, prompt)
    accounts.open_session(session, labeler, days=1)
    snapshot = Snapshot(project_id=project.id, digest="0" * 64, location="snapshots/0", counts={"comparisons": 1})
    session.add_all(
        [
            Ranking(project_id=project.id, prompt_id=prompt.id, size=3),
            Adjudication(comparison_id=comparison.id, reviewer_id=labeler.id, verdict=1, note="Clear."),
            QueuePlace(labeler_id=labeler.id, project_id=project.id, checked_xid=1),
            SigninFailure(email="nobody@example.org", address="192.0.2.1"),
            snapshot,
        ]
    )
    session.flush()
    session.add_all(
        [
            SnapshotComparison(snapshot_id=snapshot.id, comparison_id=comparison.id),
            SnapshotDemonstration(snapshot_id=snapshot.id, demonstration_id=demonstration.id),
            MonitorReview(
                round_id=session.scalars(select(Round.id)).first(),
                monitor="longer",
                verdict="fault",
                note="Padding.",
                reviewer_id=labeler.id,
            ),
            SnapshotThumb(snapshot_id=snapshot.id, thumb_id=thumb.id),
            SnapshotJudgeJudgment(
                snapshot_id=snapshot.id, judgment_id=session.scalars(select(JudgeJudgment.id)).first() or 0
            ),
        ]
    )
    session.commit()
    empty = [each for each in Base.metadata.tables if not session.scalar(text(f"SELECT EXISTS (SELECT FROM {each})"))]
    assert not empty, f"tests/schema/rows.py makes no row of {', '.join(empty)}"


def read(connection: Connection, tables: Collection[str]) -> Rows:
    """Return all rows of these tables, in the order of their text."""
    return {
        table: list(connection.scalars(text(f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY to_jsonb(t)::text")))
        for table in sorted(tables)
    }


def write(connection: Connection, rows: Rows) -> None:
    """Insert the rows in any order, without triggers and foreign keys."""
    connection.execute(text("SET session_replication_role = replica"))
    for table, those in rows.items():
        columns = ", ".join(f'"{name}"' for name in those[0])
        connection.execute(
            text(
                f"INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE "
                f"SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, CAST(:rows AS jsonb))"
            ),
            {"rows": json.dumps(those)},
        )
        for identity in connection.scalars(text(IDENTITIES), {"table": table}):
            most = max(row[identity] for row in those)
            sequence = text("SELECT setval(pg_get_serial_sequence(:table, :column), :most)")
            connection.execute(sequence, {"table": table, "column": identity, "most": most})
    connection.execute(text("SET session_replication_role = DEFAULT"))


def to_lines(rows: Rows) -> str:
    """Return one row per line, after its table's name."""
    lines = [f"{table} {json.dumps(row, sort_keys=True)}\n" for table, those in rows.items() for row in those]
    return "".join(lines)


def from_lines(lines: str) -> Rows:
    rows: Rows = {}
    for line in lines.splitlines():
        table, row = line.split(" ", 1)
        rows.setdefault(table, []).append(json.loads(row))
    return rows


def lost(connection: Connection, before: Rows, changed: Collection[str] = ()) -> list[str]:
    """Return what an upgrade has removed from existing rows: tables, rows, columns, or a column's value.

    Args:
        changed: `table` or `table.column` that a revision removes or rewrites on purpose.
    """
    said: list[str] = []
    for table, those in before.items():
        if table in changed:
            continue
        if connection.scalar(text("SELECT to_regclass(:table)"), {"table": table}) is None:
            said.append(f"the table {table}")
            continue
        key = sorted(connection.scalars(text(KEY), {"table": table}))
        after = {tuple(row[name] for name in key): row for row in read(connection, [table])[table]}
        for row in those:
            at = tuple(row[name] for name in key)
            if at not in after:
                said.append(f"the row {at} of {table}")
                continue
            differing = [name for name, value in row.items() if after[at].get(name, "no such column") != value]
            said += [f"{table}.{name} of row {at}" for name in differing if f"{table}.{name}" not in changed]
    return said
