"""Statements that are built once, and which all threads of a web process then execute."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine, Select
from sqlalchemy.orm import Session

from app.labeling import claim_queries
from app.render import ROOT
from tests import factories

THREADS = 6

# Every statement that a module keeps, and that it did not give to `prepared`. In a process of its own: here, earlier
# tests have imported the modules.
KEPT_UNPREPARED = """
import importlib, pkgutil
from sqlalchemy import CompoundSelect, Delete, Insert, Select, Update
import app, app.db

prepared, known = app.db.prepared, []
app.db.prepared = lambda statement: known.append(statement) or prepared(statement)

def kept(value):
    if isinstance(value, (CompoundSelect, Delete, Insert, Select, Update)):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from kept(each)

for found in pkgutil.walk_packages(app.__path__, "app."):
    for name, value in vars(importlib.import_module(found.name)).items():
        for statement in kept(value):
            if not any(statement is each for each in known):
                print(found.name, name)
print(len(known), "are prepared")
"""


def ask_at_once(engine: Engine, statement: Select[Any], values: dict[str, Any]) -> list[list[int]]:
    """Return the ids that several threads get for a statement that none of them has executed before."""
    barrier = threading.Barrier(THREADS, timeout=30)

    def ask(_: int) -> list[int]:
        with Session(engine) as own:
            barrier.wait()
            return [row.found_one.id for row in own.execute(statement, values)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask, range(THREADS)))


def test_threads_that_first_execute_a_statement_at_the_same_time_all_get_its_rows(
    session: Session, engine: Engine
) -> None:
    comparison = factories.comparison(session)
    labeler = factories.user(session)
    session.commit()
    queue = claim_queries.Queue(comparison.project_id)
    values = queue.values(labeler.id) | {"except_id": None} | claim_queries._begin(None)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(15):
            engine._compiled_cache.clear()  # as in a process that has just started
            statement = claim_queries._of_queue(claim_queries._OPEN).next
            assert ask_at_once(engine, statement, values) == [[comparison.id]] * THREADS
    finally:
        sys.setswitchinterval(interval)


def test_every_statement_that_a_module_keeps_is_prepared() -> None:
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KEPT_UNPREPARED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *unprepared, last = said.stdout.splitlines()
    assert unprepared == []
    assert int(last.removesuffix(" are prepared")) > 10
