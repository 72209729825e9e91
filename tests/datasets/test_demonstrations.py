"""Demonstrations are imported as approved, once, by the rules of every import, and exported unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.export import write_demonstrations
from app.datasets.reading import ImportFile
from app.datasets.service import ImportOptions, ImportRefused, ImportReport, import_files, no_progress
from app.models import Demonstration, Project, Prompt
from tests import factories
from tests.conftest import SignedIn

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    factories.published_rubric(session, project)
    return project


@pytest.fixture
def put(session: Session, project: Project, tmp_path: Path) -> Callable[..., ImportReport]:
    def put_(*lines: Any, name: str = "answers.jsonl", **options: Any) -> ImportReport:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return import_files(session, project, [ImportFile(path, name)], ImportOptions(**options))

    return put_


def stored(session: Session) -> list[tuple[Any, ...]]:
    columns = (Prompt.messages, Demonstration.text, Demonstration.state, Demonstration.source)
    query = select(*columns).join(Prompt, Prompt.id == Demonstration.prompt_id).order_by(Demonstration.id)
    return [tuple(row) for row in session.execute(query)]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": [USER], "completion": [ANSWER]},
        {"messages": [USER], "response": "Because."},
        {"messages": [USER, ANSWER]},
        {"instruction": "Why?", "input": "", "output": "Because."},
    ],
)
def test_every_way_to_write_a_demonstration_is_known_from_its_fields(
    session: Session, put: Callable[..., ImportReport], line: dict[str, Any]
) -> None:
    report = put(line)
    assert (report.added["prompts"], report.added["demonstrations"]) == (1, 1)
    assert report.demonstrations == {"approved": 1}
    assert stored(session) == [([USER], "Because.", "approved", "answers")]


def test_of_a_conversation_the_last_answer_is_the_demonstration(
    session: Session, put: Callable[..., ImportReport]
) -> None:
    put({"messages": [USER, ANSWER, {"role": "user", "content": "Really?"}, {"role": "assistant", "content": "Yes."}]})
    assert stored(session) == [([USER, ANSWER, {"role": "user", "content": "Really?"}], "Yes.", "approved", "answers")]


def test_tags_author_and_split_are_kept(session: Session, put: Callable[..., ImportReport]) -> None:
    put({"prompt": "Why?", "response": "Because.", "author": "Ann", "tags": {"split": "heldout", "domain": "logic"}})
    assert stored(session)[0][3] == "Ann"
    assert session.execute(select(Prompt.split, Prompt.domain)).one() == ("heldout", "logic")


def test_the_same_answer_stands_once_and_another_beside_it(session: Session, put: Callable[..., ImportReport]) -> None:
    line = {"prompt": "Why?", "response": "Because."}
    assert put(line, line).present["demonstrations"] == 1
    again = put(line, {"prompt": "Why?", "response": "No idea."})
    assert (again.added["demonstrations"], again.present["demonstrations"], again.added["prompts"]) == (1, 1, 0)
    assert [row[1] for row in stored(session)] == ["Because.", "No idea."]


def test_bad_lines_are_named_and_nothing_is_written(session: Session, put: Callable[..., ImportReport]) -> None:
    lines = [
        {"prompt": "Why?", "response": "Because."},
        {"prompt": "Why?", "response": " "},
        {"prompt": "Why?", "response": "One.", "completion": "Two."},
        {"prompt": "Why?"},
        {"messages": [USER, ANSWER, USER]},
        {"messages": [ANSWER]},
        {"prompt": "Why?", "completion": [USER]},
        {"prompt": "Why?", "response": "Ha.", "split": "secret"},
    ]
    with pytest.raises(ImportRefused) as refused:
        put(*lines, format="demonstrations")
    problems = list(refused.value.problems)
    assert [problem.line for problem in problems] == [2, 3, 4, 5, 6, 7, 8]
    assert "response: is empty" in problems[0].reason
    assert "do not end with the assistant's turn" in problems[3].reason
    assert stored(session) == []
    report = put(*lines, format="demonstrations", skip_invalid=True)
    assert (len(report.skipped), report.added["demonstrations"]) == (7, 1)


def test_exported_demonstrations_can_be_imported_elsewhere(
    session: Session, project: Project, put: Callable[..., ImportReport], tmp_path: Path
) -> None:
    put({"prompt": "Why?", "response": "Because."}, {"prompt": "How?", "response": "So.", "split": "heldout"})
    session.add(Demonstration(project_id=project.id, prompt_id=1, text="Not reviewed", digest="x"))
    session.flush()
    out = tmp_path / "out.jsonl"
    assert write_demonstrations(session, project, out, columns=("slices",), progress=no_progress) == 2
    first = json.loads(out.read_text().splitlines()[0])
    assert (first["prompt"], first["completion"]) == ([USER], [ANSWER])
    assert first["slices"]["split"] == "train"
    assert write_demonstrations(session, project, tmp_path / "h.jsonl", split="heldout", progress=no_progress) == 1
    other = factories.project(session)
    factories.published_rubric(session, other)
    report = import_files(session, other, [ImportFile(out, "out.jsonl")], ImportOptions())
    assert report.added["demonstrations"] == 2


def test_the_data_page_imports_shows_and_exports_them(
    session: Session, project: Project, sign_in: Callable[..., SignedIn]
) -> None:
    session.commit()
    admin, url = sign_in("admin"), f"/projects/{project.slug}/data"
    content = b'{"prompt": "Why?", "response": "Because."}\n'
    done = admin.post(url, {"format": "demonstrations"}, files={"files": ("d.jsonl", content)})
    assert done.status_code == 200, done.text
    assert "1 demonstration," in done.text
    assert "1 approved" in done.text
    sent = admin.get(f"{url}/export?kind=demonstrations")
    assert json.loads(sent.text) == {"prompt": [USER], "completion": [ANSWER]}
    assert "demonstrations.jsonl" in sent.headers["content-disposition"]
