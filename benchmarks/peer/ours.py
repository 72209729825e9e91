"""Prefloop's side: several `prefloop web` processes on one database."""

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.access import members
from app.accounts import service as accounts
from app.datasets.reading import ImportFile
from app.datasets.service import import_files, project_for_import
from app.db import make_engine, make_session_factory
from app.render import ROOT
from app.schema import migrate
from app.settings import Settings
from benchmarks.peer import statements
from benchmarks.peer.client import browser, shared_out
from benchmarks.peer.desk import PROJECT, OurLabeler
from benchmarks.peer.processes import free_port, served
from benchmarks.peer.sides import Plan, Side, new_database

OVER = """
    SELECT count(*) FROM (
        SELECT 1 FROM judgment WHERE superseded_at IS NULL GROUP BY comparison_id HAVING count(*) > :overlap
    ) AS over
"""
STORED = "SELECT lease_id FROM judgment WHERE superseded_at IS NULL AND lease_id = ANY(CAST(:ids AS uuid[]))"


@contextlib.contextmanager
def prefloop(plan: Plan) -> Iterator[Side]:
    """Serve the pairs from `plan.processes` web processes; labelers are distributed over them as by a proxy."""
    url = new_database(plan.url, "prefloop").render_as_string(hide_password=False)
    migrate(url)
    password = secrets.token_hex(16)
    *emails, counted = fill(url, plan, password)
    settings = Settings(home=plan.folder / "prefloop", database_url=url, _env_file=None)
    with contextlib.ExitStack() as stack:
        webs = [stack.enter_context(web(url, plan.folder, number)) for number in range(plan.processes)]
        pids, labelers = [pid for _, pid in webs], []
        for email, address in zip(emails, shared_out(plan.labelers, [address for address, _ in webs]), strict=True):
            http = stack.enter_context(browser(address))
            labelers.append(OurLabeler(http, email, password))
        engine = make_engine(url, pool_size=1)
        stack.callback(engine.dispose)
        counts = statements.measure(settings, url, counted, password)
        yield Side("Prefloop", labelers, engine, OVER, STORED, pids, counts)


def fill(url: str, plan: Plan, password: str) -> list[str]:
    """Import the pairs, and add the labelers and one more; return their e-mail addresses.

    In a new project, most comparisons need one judgment. Here, every comparison needs `plan.overlap` judgments.
    """
    file = plan.folder / "pairs.jsonl"
    with file.open("w") as handle:
        for pair in plan.pairs:
            row = {"messages": pair.messages, "response_a": pair.response_a, "response_b": pair.response_b}
            print(json.dumps(row), file=handle)
    engine = make_engine(url, pool_size=1)
    try:
        with make_session_factory(engine).begin() as session:
            project = project_for_import(session, PROJECT, None, actor_id=None)
            project.overlap, project.labeling = plan.overlap, {}
            session.flush()
            import_files(session, project, [ImportFile(file, file.name)])
            emails = [f"labeler{number}@example.org" for number in range(plan.labelers + 1)]
            for email in emails:
                labeler = accounts.create_user(session, email=email, name=email, password=password)
                session.flush()
                members.join(session, project.id, labeler.id, ["labeler"], None)
    finally:
        engine.dispose()
    return emails


@contextlib.contextmanager
def web(url: str, folder: Path, number: int, more: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """Run a web process like `prefloop web`; yield its address and process id.

    Args:
        more: additional environment variables.
    """
    port = free_port()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PREFLOOP_HOME": str(folder / "prefloop"),
        "PREFLOOP_PORT": str(port),
        "PREFLOOP_LOG_LEVEL": "warning",
        "DATABASE_URL": url,
        **(more or {}),
    }
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "app.cli", "web"]
    # Run it in a folder without a .env file.
    with served(command, environment, folder, folder / f"prefloop-{number}.log", f"{address}/healthz") as pid:
        yield address, pid
