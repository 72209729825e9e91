"""`prefloop import` and `prefloop export` on the command line."""

import gzip
import json
import re
from pathlib import Path

import pytest
import typer
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from typer.testing import CliRunner, Result

from app.datasets.cli import export_command, import_command, undo_command
from app.errors import Conflict, InvalidInput
from app.models import Comparison, Judgment, Project, Prompt
from tests import factories

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def command(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> "Command":
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)  # without the developer's .env
    return Command()


class Command:
    def __init__(self) -> None:
        self.app = typer.Typer()
        self.app.command("import")(import_command)
        self.app.command("export")(export_command)
        self.app.command("undo-import")(undo_command)

    def __call__(self, *arguments: object, typed: str | None = None) -> Result:
        given = [str(argument) for argument in arguments]
        return CliRunner().invoke(self.app, given, input=typed, catch_exceptions=True)


def test_import_then_export(command: Command, session: Session, tmp_path: Path) -> None:
    given = ("--project", "args", "--name", "Arguments", "--split-by", "topic")
    done = command("import", FIXTURES / "convincing_arguments", *given)
    assert done.exit_code == 0, done.output
    assert "judgments: 90 added, 0 were already there" in done.output
    assert "judgments.jsonl: the field hit_seconds (90 lines)" in done.output
    assert session.scalars(select(Project.name)).one() == "Arguments"
    assert session.scalar(select(func.count()).select_from(Judgment)) == 90

    full = tmp_path / "full.jsonl.gz"
    done = command("export", "--project", "args", "--kind", "full", "--output", full)
    assert "1 project, 1 rubric, 68 labelers" in done.output
    assert "90 judgments" in done.output
    shown = command("import", full, "--project", "args-again", "--preview").output
    assert "18 comparisons, 90 judgments" in shown
    assert "Nothing was written" in shown
    assert "18 comparisons, 90 judgments" in command("import", full, "--project", "args-again").output
    assert session.scalars(select(Project.name).where(Project.slug == "args-again")).one() == "Arguments"
    assert session.scalar(select(func.count()).select_from(Judgment)) == 180
    refused = command("import", full, "--project", "args-again")
    assert "There is already a project with the address args-again" in str(refused.exception)
    refused = command("export", "--project", "args", "--kind", "full", "--split", "train", "--output", full)
    assert "A full export holds everything" in str(refused.exception)

    again = command("import", FIXTURES / "convincing_arguments", *given)
    assert "judgments: 0 added, 90 were already there" in again.output

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


def test_lines_are_counted_and_not_the_comparisons_they_become(
    command: Command, engine: Engine, tmp_path: Path
) -> None:
    answers = [{"answer": f"Answer {rank}", "model": f"m{rank}", "rank": rank} for rank in (1, 2, 3)]
    (tmp_path / "nectar.jsonl").write_text(json.dumps({"prompt": "Why?", "answers": answers}) + "\n")
    done = command("import", tmp_path / "nectar.jsonl", "--project", "x")
    assert "nectar.jsonl: 1 lines, format nectar\n" in done.output
    assert "comparisons: 3 added" in done.output


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


def test_a_preview_comes_first_and_an_import_is_taken_back(command: Command, session: Session, tmp_path: Path) -> None:
    given = (FIXTURES / "pandalm.jsonl", "--project", "panda")
    shown = command("import", *given, "--preview")
    assert shown.exit_code == 0, shown.output
    assert "pandalm.jsonl, line 1: A comparison. annotator_1: " in shown.output
    assert "Nothing was written." in shown.output
    assert session.scalars(select(Project)).all() == []
    done = command("import", *given)
    assert done.output.index("Its first lines:") < done.output.index("judgments: 36 added")
    number = re.search(r"This was import (\d+)\.", done.output)
    assert number is not None
    undone = command("undo-import", number[1], "--project", "panda")
    assert undone.exit_code == 0, undone.output
    assert "36 judgments" in undone.output
    assert session.scalar(select(func.count()).where(Judgment.superseded_at.is_(None))) == 0


def test_undoing_what_labelers_judged_wants_a_yes(command: Command, session: Session, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "response_a": "x", "response_b": "y"}))
    number = re.search(r"This was import (\d+)\.", command("import", path, "--project", "x").output)
    assert number is not None
    factories.judgment(session, session.scalars(select(Comparison)).one(), preference=2)
    session.commit()
    refused = command("undo-import", number[1], "--project", "x")
    assert isinstance(refused.exception, Conflict)
    assert "was undone" in command("undo-import", number[1], "--project", "x", "--yes").output


def test_a_preview_lists_every_refused_line(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Question {n}" if n < 7 else ""}) + "\n" for n in range(9)))
    shown = command("import", path, "--project", "x", "--preview").output
    assert "New: 7 prompts, 0 comparisons" in shown
    for line in (8, 9):
        assert f"  x.jsonl, line {line}: prompt: a message of the prompt is empty" in shown


def test_nothing_in_a_preview_steers_the_terminal(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "\x1b[2Jcleared \x9b31m"}))
    shown = command("import", path, "--project", "x", "--preview").output
    assert r"User: '\x1b[2Jcleared \x9b31m'" in shown
    assert "\x1b" not in shown


def test_at_a_terminal_a_person_agrees_first(
    command: Command, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.datasets.cli.is_terminal", lambda: True)
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "Why?"}))
    given = ("import", path, "--project", "x")
    assert "Nothing was written." in command(*given, typed="n\n").output
    assert session.scalars(select(Project)).all() == []
    assert "prompts: 1 added" in command(*given, typed="y\n").output
    assert "Import this?" not in command(*given, "--yes").output
