"""The data page: uploads, refusals, the download."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import AuditEvent, Comparison, Project, Prompt
from tests import factories

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    factories.rubric(session, project)
    session.commit()
    return project


def files(*named: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", file) for file in named]


def test_pairs_and_judgments_uploaded_together(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    admin = sign_in("admin")
    folder = FIXTURES / "convincing_arguments"
    sent = files(*((path.name, path.read_bytes()) for path in sorted(folder.iterdir())))
    answer = admin.post(f"/projects/{project.slug}/data", {"heldout_percent": "50", "split_by": "topic"}, files=sent)
    assert answer.status_code == 200
    assert "18 comparisons, 90 judgments" in answer.text
    assert f'<a href="/projects/{project.slug}/agreement">agree</a>' in answer.text
    assert session.scalar(select(func.count()).select_from(Comparison)) == 18
    event = session.scalars(select(AuditEvent).where(AuditEvent.action == "data.imported")).one()
    assert event.actor_id == admin.user.id

    again = admin.post(f"/projects/{project.slug}/data", {}, files=sent)
    assert "0 comparisons (18 more were there already)" in again.text


def test_refused_lines_are_shown_and_nothing_is_written(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    content = b'{"prompt": "Good?"}\n{"prompt": ""}\n{"prompt": "<b>x</b>", "split": "<i>"}\n'
    admin = sign_in("admin")
    answer = admin.post(f"/projects/{project.slug}/data", {}, files=files(("p.jsonl", content)))
    assert answer.status_code == 422
    assert "2 lines cannot be imported, so nothing was written." in answer.text
    assert "a message of the prompt is empty" in answer.text
    assert session.scalar(select(func.count()).select_from(Prompt)) == 0
    answer = admin.post(f"/projects/{project.slug}/data", {"skip_invalid": "true"}, files=files(("p.jsonl", content)))
    assert answer.status_code == 200
    assert "2 invalid lines were skipped" in answer.text
    assert session.scalar(select(func.count()).select_from(Prompt)) == 1


def test_what_cannot_be_imported_says_why(project: Project, sign_in: Callable[..., Any]) -> None:
    admin = sign_in("admin")
    url = f"/projects/{project.slug}/data"
    assert "No file was chosen." in admin.post(url, {}, files=files(("", b""))).text
    empty = admin.post(url, {}, files=files(("e.jsonl", b"")))
    assert (empty.status_code, "e.jsonl holds no lines" in empty.text) == (422, True)
    form = admin.post(url, {"heldout_percent": "200"}, files=files(("p.jsonl", b'{"prompt": "x"}')))
    assert (form.status_code, "heldout_percent" in form.text) == (422, True)
    form = admin.post(url, {"format": "csv"}, files=files(("p.jsonl", b'{"prompt": "x"}')))
    assert (form.status_code, "There is no format csv" in form.text) == (422, True)
    cut = admin.post(url, {}, files=files(("p.jsonl.gz", gzip.compress(b'{"prompt": "x"}')[:-4])))
    assert (cut.status_code, "p.jsonl.gz cannot be read" in cut.text) == (422, True)


def test_an_upload_over_the_limit_is_refused(
    session: Session, project: Project, app: Any, sign_in: Callable[..., Any]
) -> None:
    admin = sign_in("admin")
    app.state.settings = app.state.settings.model_copy(update={"max_upload_mb": 1})
    answer = admin.post(f"/projects/{project.slug}/data", {}, files=files(("p.jsonl", b" " * (2 << 20))))
    assert answer.status_code == 413
    assert "larger than 1 MB" in answer.text


def test_the_download(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    row = factories.comparison(session, project, overlap=1, state="settled", texts=("a", "b"))
    factories.judgment(session, row, preference=3)
    session.commit()
    admin = sign_in("admin")
    plain = admin.get(f"/projects/{project.slug}/data/export")
    assert plain.status_code == 200
    assert f'filename="{project.slug}-preferences.jsonl"' in plain.headers["content-disposition"]
    assert json.loads(plain.text)["chosen"] == [{"role": "assistant", "content": "b"}]
    packed = admin.get(f"/projects/{project.slug}/data/export?gzip=true&columns=margin&split=train")
    assert json.loads(gzip.decompress(packed.content))["margin"] == 3.0
    wrong = admin.get(f"/projects/{project.slug}/data/export?columns=weight")
    assert (wrong.status_code, "There is no column weight" in wrong.text) == (422, True)


@pytest.mark.parametrize("role", ["labeler", "operator"])
def test_only_admins(project: Project, sign_in: Callable[..., Any], role: str) -> None:
    client = sign_in(role)
    assert client.get(f"/projects/{project.slug}/data").status_code == 403
    assert client.get(f"/projects/{project.slug}/data/export").status_code == 403
    sent = files(("p.jsonl", b'{"prompt": "x"}'))
    assert client.post(f"/projects/{project.slug}/data", {}, files=sent).status_code == 403
