"""`prefloop suite` from the command line, and what `prefloop round status` says of suites."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from app.artifacts import ArtifactStore
from app.errors import Conflict, Forbidden, NotFound
from app.models import Project, Suite
from app.rounds.cli import round_app
from app.settings import Settings
from app.suites.cli import suite_app
from app.suites.reading import FileRefused
from tests import factories
from tests.suites.scenes import evaluated, took

Invoke = Callable[..., Result]


@pytest.fixture
def project(session: Session) -> Project:
    factories.user(session, "operator", email="op@example.org")
    factories.user(session, "labeler", email="labeler@example.org")
    project = factories.project(session)
    session.commit()
    return project


@pytest.fixture
def run(settings: Settings, project: Project, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.setenv("DATABASE_URL", settings.database_url or "")
    monkeypatch.setenv("PREFLOOP_HOME", str(settings.home))

    def invoke(command: str, *arguments: object, operator: str | None = "op@example.org") -> Result:
        given = [command, "--project", project.slug, *(["--as", operator] if operator else []), *map(str, arguments)]
        return CliRunner().invoke(suite_app, given)

    return invoke


def test_a_suite_from_the_command_line(
    session: Session, run: Invoke, project: Project, settings: Settings, tmp_path: Path
) -> None:
    file, back = tmp_path / "sums.jsonl", tmp_path / "back.jsonl"
    lines = [f'{{"prompt": "{n} + 1?", "check": "number", "expected": {n + 1}}}\n' for n in range(20)]
    file.write_text("".join(lines[:10]) + "{}\n")
    refused = run("add", file)
    assert isinstance(refused.exception, FileRefused)
    assert "sums.jsonl, line 11: “check” must be one of exact" in refused.output
    file.write_text("".join(lines[:10]))
    assert isinstance(run("add", file, operator="labeler@example.org").exception, Forbidden)
    assert isinstance(run("add", tmp_path / "none.jsonl").exception, NotFound)
    assert "“sums” version 1: 10 cases. The next round runs it." in run("add", file, "--largest-loss", 5).output
    file.write_text("".join(lines))
    assert "“sums” version 2: 20 cases." in run("add", file).output
    assert isinstance(run("add", file).exception, Conflict)
    assert "Added: Facts and arithmetic, Instructions, Safety and over-refusal, Sycophancy." in run("starters").output
    assert "Added: nothing." in run("starters").output
    assert isinstance(run("red-team").exception, Conflict)
    assert "“sums”: not measured yet; version 2, 20 cases" in run("list", operator=None).output
    assert f"{back}: 20 cases." in run("download", "sums", "--output", back, operator=None).output
    assert "“again” version 1: 20 cases." in run("add", back, "--name", "again").output

    suite = session.scalars(select(Suite).where(Suite.name == "sums")).one()
    assert suite.largest_loss == 0.05
    store = ArtifactStore(settings.artifacts_root)
    _, measured = evaluated(session, project, 1)
    took(session, store, measured, suite, lost=[str(n) for n in range(1, 11)])
    session.commit()
    said = run("list", operator=None).output
    assert re.search(
        r"“sums”: 10 of 20 cases, 20 before; -50.0 points, 95% interval -6\d\.\d to -2\d\.\d \(round 1\)", said
    )
    status = CliRunner().invoke(round_app, ["status", "--project", project.slug]).output
    assert "Suite “sums”: 10 of 20 cases, 20 before; -50.0 points" in status
    assert "Held back: “sums” lost 50.0 points (95% interval −6" in status
    assert "“sums” is retired." in run("retire", "sums").output
    assert "sums" not in run("list", operator=None).output
    assert isinstance(run("retire", "none").exception, NotFound)
