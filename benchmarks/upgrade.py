"""Upgrade a database with a million comparisons while people label: `python -m benchmarks.upgrade`.

A scratch database at the newest revision is filled with comparisons, with on average one judgment and one lease each. A
web process serves it, and labelers judge without a pause. At first nothing else happens. Then the revisions in
`benchmarks/trial` run: they add a column and a check, fill the column in every row, and build an index.

For each step it prints its duration, the number of cards and answers during it, their times (median, 99th percentile,
maximum, in milliseconds), and how long the web service and the upgrade waited for each other's locks. At the end it
counts the rows: no row may be missing, and every answer that the service accepted must be stored.
"""

import argparse
import contextlib
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from app.access import members
from app.accounts import service as accounts
from app.db import make_engine, make_session_factory
from app.models import Base
from app.postgres import database
from app.schema import VERSIONS, migrate, revisions
from app.settings import Settings
from benchmarks.peer.client import PAUSE_SECONDS, Played, browser, percentile, turn
from benchmarks.peer.desk import PROJECT, OurLabeler
from benchmarks.peer.ours import web

TRIAL = (*VERSIONS, Path(__file__).parent / "trial")
WEB, UPGRADE = "prefloop-web", "prefloop-upgrade"  # application names in PostgreSQL
LOOK_SECONDS = 0.02

# Counts are correct by construction; `replica` skips triggers and foreign key checks, which would take minutes.
FILL = (
    "SET session_replication_role = replica",
    f"INSERT INTO project (slug, name, overlap) VALUES ('{PROJECT}', 'Upgrade', 2)",
    """
    INSERT INTO rubric (project_id, version, guideline, published_at) VALUES (1, 1, 'Prefer the better answer.', now())
    """,
    "INSERT INTO user_account (name, kind) SELECT 'Labeler ' || i, 'imported' FROM generate_series(1, 50) AS i",
    """
    INSERT INTO prompt (project_id, messages, digest)
    SELECT 1, '[{"role": "user", "content": "Which of these is better, and why do you think so?"}]', md5(i::text)
    FROM generate_series(1, :comparisons / 4) AS i
    """,
    """
    INSERT INTO completion (prompt_id, text)
    SELECT id, repeat('This is what was said. ', 20) FROM prompt, generate_series(1, 4) ORDER BY id
    """,
    # The pairs of a prompt's four completions. Four of five pairs have been judged, one of them by two people.
    """
    INSERT INTO comparison (
        project_id, prompt_id, completion_a_id, completion_b_id, rubric_id, purpose, overlap, judgment_count, state,
        consensus, agreement, settled_at
    )
    SELECT 1, 1 + i / 4, 4 * (i / 4) + 1 + i % 4, 4 * (i / 4) + 1 + (i + 1) % 4, 1, 'train',
        greatest(judged, 1), judged,
        CASE WHEN judged > 0 THEN 'settled' ELSE 'open' END, CASE WHEN judged > 0 THEN 1 END,
        CASE WHEN judged > 1 THEN 1 END, CASE WHEN judged > 0 THEN now() END
    FROM (SELECT i, (ARRAY[0, 1, 1, 1, 2])[1 + i % 5] AS judged FROM generate_series(0, :comparisons - 1) AS i) AS pairs
    """,
    """
    INSERT INTO lease (comparison_id, labeler_id, swapped, state, expires_at)
    SELECT id, 1 + (id + k) % 50, id % 2 = 0, 'submitted', now()
    FROM comparison, generate_series(1, judgment_count) AS k
    """,
    """
    INSERT INTO judgment (comparison_id, labeler_id, rubric_id, lease_id, preference, swapped, duration_ms, created_at)
    SELECT comparison_id, labeler_id, 1, id, 1, swapped, 5000, now() - comparison_id * interval '1 second' FROM lease
    """,
    "INSERT INTO agreement_tally (project_id, answers, n) VALUES (1, '{14}', :comparisons * 3 / 5)",
    "SET session_replication_role = DEFAULT",
)
WAITS = """
    SELECT application_name, extract(epoch FROM clock_timestamp() - waitstart)
    FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted AND waitstart IS NOT NULL
"""
STORED = "SELECT lease_id::text FROM judgment WHERE lease_id = ANY (CAST(:ids AS uuid[]))"


def fill(engine: Engine, comparisons: int) -> None:
    with engine.begin() as connection:
        for statement in FILL:
            values = {"comparisons": comparisons} if ":comparisons" in statement else {}
            connection.execute(text(statement), values)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def add_labelers(engine: Engine, count: int, password: str) -> list[str]:
    """Create accounts that label in the project; return their e-mail addresses."""
    emails = [f"labeler{number}@example.org" for number in range(count)]
    with make_session_factory(engine).begin() as session:
        for email in emails:
            labeler = accounts.create_user(session, email=email, name=email, password=password)
            session.flush()
            members.join(session, 1, labeler.id, ["labeler"], None)
    return emails


def count_rows(connection: Connection) -> dict[str, int]:
    tables = sorted(Base.metadata.tables)
    return {table: connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables}


@contextlib.contextmanager
def labeling(labelers: Sequence[OurLabeler], played: Played) -> Iterator[None]:
    """Let all labelers judge at the same time, without a pause, until the block ends."""
    stop = threading.Event()

    def work(labeler: OurLabeler) -> None:
        while not stop.is_set():
            if not turn(labeler, played):
                stop.wait(PAUSE_SECONDS)

    with ThreadPoolExecutor(len(labelers)) as pool:
        jobs = [pool.submit(work, labeler) for labeler in labelers]
        try:
            yield
        finally:
            stop.set()
    for job in jobs:
        job.result()


@contextlib.contextmanager
def watching(engine: Engine) -> Iterator[dict[str, float]]:
    """Collect the longest observed wait for a lock in seconds, by application name."""
    longest: dict[str, float] = {}
    stop = threading.Event()

    def watch() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not stop.wait(LOOK_SECONDS):
                for name, seconds in connection.execute(text(WAITS)):
                    longest[name] = max(float(seconds), longest.get(name, 0))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield longest
    finally:
        stop.set()
        thread.join()


def window(name: str, played: Played, waits: dict[str, float], seconds: float, errors: int) -> None:
    """Print the figures since the last call, and reset them."""
    with played.lock:
        for label, values in (("card", played.card), ("answer", played.answer)):
            told = "".join(f"{percentile(values, each):9.0f}" for each in (50, 99, 100))
            print(f"{name:28}{seconds:8.1f}s{label:>8}{len(values):7}{told}", flush=True)
            values.clear()
        waited = ", ".join(f"{who} {longest:.2f} s" for who, longest in sorted(waits.items())) or "none seen"
        print(f"{'':28}longest wait for a lock: {waited}; errors: {sum(played.errors.values()) - errors}", flush=True)
        waits.clear()


def measure(url: str, labelers: Sequence[OurLabeler], engine: Engine, quiet: float) -> Played:
    played = Played(begin=0)
    print(f"\n{'':28}{'took':>9}{'':8}{'count':>7}{'median':>9}{'99 %':>9}{'most':>9}")
    with labeling(labelers, played), watching(engine) as waits:
        time.sleep(quiet)
        window("nothing else", played, waits, quiet, 0)
        for revision in (each for each in revisions(TRIAL) if each not in revisions()):
            errors, started = sum(played.errors.values()), time.perf_counter()
            migrate(url, versions=TRIAL, to=revision)
            window(f"revision {revision}", played, waits, time.perf_counter() - started, errors)
        time.sleep(quiet)
        window("after the upgrade", played, waits, quiet, sum(played.errors.values()))
    return played


def check(engine: Engine, before: dict[str, int], played: Played) -> bool:
    """Print the numbers of rows before and after; return whether nothing is missing."""
    with engine.connect() as connection:
        after = count_rows(connection)
        stored = set(connection.scalars(text(STORED), {"ids": played.acknowledged}))
        empty = connection.execute(text("SELECT count(*) FROM comparison WHERE trial_length IS NULL")).scalar_one()
    for table in ("comparison", "judgment", "lease", "prompt", "completion"):
        print(f"rows of {table:12}{before[table]:>12,} before{after[table]:>12,} after")
    missing = len(set(played.acknowledged) - stored)
    fewer = [table for table in before if after[table] < before[table] and table != "agreement_tally"]
    judged = after["judgment"] - before["judgment"]
    print(f"answers accepted {len(played.acknowledged):,}, new judgments {judged:,}, answers missing {missing}")
    print(f"comparisons without the new column's value {empty}, tables with fewer rows {fewer or 'none'}")
    for message, times in played.errors.most_common():
        print(f"error {times} times: {message}")
    return not (missing or fewer or empty)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--labelers", type=int, default=4)
    parser.add_argument("--quiet", type=float, default=20, help="seconds of labeling before and after the upgrade")
    options = parser.parse_args(argv)
    os.environ["PGAPPNAME"] = UPGRADE
    password = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pf-")))
        url = stack.enter_context(database(Settings(home=folder, database_url=None, _env_file=None)))
        migrate(url)
        engine = make_engine(url)
        stack.callback(engine.dispose)
        started = time.perf_counter()
        fill(engine, options.comparisons)
        print(f"{options.comparisons:,} comparisons written in {time.perf_counter() - started:.0f} s", flush=True)
        emails = add_labelers(engine, options.labelers, password)
        address, _ = stack.enter_context(web(url, folder, 0, {"PGAPPNAME": WEB}))
        labelers = [OurLabeler(stack.enter_context(browser(address)), email, password) for email in emails]
        with engine.connect() as connection:
            before = count_rows(connection)
        began = time.perf_counter()
        played = measure(url, labelers, engine, options.quiet)
        print(f"\nupgrade and the labeling around it: {time.perf_counter() - began:.0f} s")
        if not check(engine, before, played):
            raise SystemExit("Rows are missing.")


if __name__ == "__main__":
    main()
