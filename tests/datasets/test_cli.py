"""`prefloop import` and `prefloop export`, as they are typed."""

import gzip
import json
from pathlib import Path

import pytest
import typer
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from app.datasets.cli import export_command, import_command
from app.errors import InvalidInput
from app.models import Comparison, Judgment, Project, Prompt

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def command(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Command":
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)  # no .env of the developer's
    return Command()


class Command:
    def __init__(self) -> None:
        self.app = typer.Typer()
        self.app.command("import")(import_command)
        self.app.command("export")(export_command)

    def __call__(self, *arguments: object) -> Result:
        return CliRunner().invoke(self.app, [str(argument) for argument in arguments], catch_exceptions=True)


def test_import_then_export(command: Command, session: Session, tmp_path: Path) -> None:
    given = ("--project", "args", "--name", "Arguments", "--split-by", "topic")
    done = command("import", FIXTURES / "convincing_arguments", *given)
    assert done.exit_code == 0, done.output
    assert "judgments: 90 added, 0 were there already" in done.output
    assert "judgments.jsonl: the field hit_seconds (90 lines)" in done.output
    assert session.scalars(select(Project.name)).one() == "Arguments"
    assert session.scalar(select(func.count()).select_from(Judgment)) == 90

    full = tmp_path / "full.jsonl.gz"
    done = command("export", "--project", "args", "--kind", "full", "--output", full)
    assert "90 judgment" in done.output
    assert "18 comparison, 90 judgment" in command("import", full, "--project", "args-again").output
    assert session.scalars(select(Project.name).where(Project.slug == "args-again")).one() == "Arguments"
    assert session.scalar(select(func.count()).select_from(Judgment)) == 180
    refused = command("import", full, "--project", "args-again")
    assert "There is a project with the address args-again" in str(refused.exception)
    refused = command("export", "--project", "args", "--kind", "full", "--split", "train", "--output", full)
    assert "A full export holds everything" in str(refused.exception)

    again = command("import", FIXTURES / "convincing_arguments", *given)
    assert "judgments: 0 added, 90 were there already" in again.output

    here = select(Project.id).where(Project.slug == "args").scalar_subquery()
    settled = (Comparison.state == "settled", Comparison.project_id == here)
    decided = session.scalars(select(Comparison.consensus).where(*settled)).all()
    out = tmp_path / "out.jsonl.gz"
    done = command("export", "--project", "args", "--output", out, "--columns", "all")
    assert done.exit_code == 0, done.output
    with gzip.open(out, "rt") as handle:
        lines = [json.loads(line) for line in handle]
    assert len(lines) == sum(consensus != 0 for consensus in decided)
    assert f"{len(lines)} comparisons." in done.output
    in_review = session.scalar(
        select(func.count()).where(Comparison.state == "in_review", Comparison.project_id == here)
    )
    assert f"{in_review} still open or in review" in done.output


def test_a_bad_line_writes_nothing_not_even_the_project(command: Command, session: Session) -> None:
    refused = command("import", FIXTURES / "hh_awkward.jsonl", "--project", "hh")
    assert isinstance(refused.exception, InvalidInput)
    assert "hh_awkward.jsonl, line 3: chosen (2 turns)" in str(refused.exception)
    assert "--skip-invalid" in str(refused.exception)
    assert session.scalars(select(Project)).all() == []
    done = command("import", FIXTURES / "hh_awkward.jsonl", "--project", "hh", "--skip-invalid")
    assert done.exit_code == 0, done.output
    assert "6 lines were skipped:" in done.output
    for line in range(3, 9):
        assert f"hh_awkward.jsonl, line {line}: " in done.output


def test_wrong_arguments_are_named(command: Command, session: Session, tmp_path: Path) -> None:
    cases = [
        (("import", tmp_path / "no.jsonl", "--project", "x"), "There is no file"),
        (("import", tmp_path, "--project", "x"), "holds no .jsonl"),
        (("import", FIXTURES / "pandalm.jsonl", "--project", "x", "--format", "csv"), "There is no format csv"),
        (("export", "--project", "none", "--output", tmp_path / "x.jsonl"), "There is no project none"),
    ]
    for arguments, message in cases:
        assert message in str(command(*arguments).exception)
    assert session.scalar(select(func.count()).select_from(Prompt)) == 0


def test_help_names_the_formats(command: Command) -> None:
    shown = command("import", "--help").output
    for name in (
        "prompts",
        "pairs",
        "judgments",
        "preferences",
        "pandalm",
        "arguments",
        "demonstrations",
        "--kind",
        "--skip-invalid",
    ):
        assert name in shown
