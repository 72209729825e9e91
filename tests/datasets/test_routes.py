"""The page *Import and export*: uploads, refusals, downloads."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import AuditEvent, Comparison, Completion, Demonstration, Project, Prompt
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
    assert "0 comparisons (18 more were already there)" in again.text


def test_a_whole_project_is_downloaded_and_becomes_another(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    factories.judgment(session, factories.comparison(session, project), preference=2)
    session.commit()
    admin = sign_in("admin")
    url = f"/projects/{project.slug}/data"
    full = admin.get(f"{url}/export?kind=full&pseudonyms=true&gzip=true")
    assert b'"name":"labeler 1"' in gzip.decompress(full.content)
    sent = files(("full.jsonl.gz", full.content))
    for address in (url, f"{url}/preview"):  # who makes no projects restores none
        refused = admin.post(address, {}, files=sent)
        assert (refused.status_code, "only administrators" in refused.text) == (403, True)
    admin.user.is_admin = True
    session.commit()
    made = admin.post(url, {}, files=sent)
    assert made.headers["location"] == f"/projects/{project.slug}-2/data"
    assert session.scalar(select(func.count()).select_from(Comparison)) == 2
    assert admin.get(f"{url}/export?kind=full&columns=ids").status_code == 422


def test_thumbs_are_imported_once_and_exported(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    """A thumb down is not an approved demonstration."""
    down = {"prompt": "2+5?", "completion": "8", "label": False}
    said = [down, down | {"labeler": "Ada", "label": True}, down | {"labeler": "Bo"}]
    content = "".join(json.dumps(line) + "\n" for line in [*said, down | {"completion": "7", "label": True}]).encode()
    admin, url = sign_in("admin"), f"/projects/{project.slug}/data"
    answer = admin.post(url, {}, files=files(("t.jsonl", content)))
    assert "4 thumbs, 3 new labelers" in answer.text
    assert session.scalar(select(func.count()).select_from(Demonstration)) == 0
    assert session.scalar(select(func.count()).select_from(Completion)) == 2
    assert "0 thumbs (4 more were already there)" in admin.post(url, {}, files=files(("t.jsonl", content))).text
    changed = json.dumps(down | {"label": True}).encode()
    assert (
        "t already gave this response a thumb down, now one up"
        in admin.post(url, {}, files=files(("t.jsonl", changed))).text
    )
    lines = [json.loads(line) for line in admin.get(f"{url}/export?kind=thumbs").text.splitlines()]
    assert [(line["completion"][0]["content"], line["label"]) for line in lines] == [("8", False), ("7", True)]


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


def test_preview_then_import_then_undo(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    admin, url = sign_in("admin"), f"/projects/{project.slug}/data"
    content = b'{"prompt": "Why?", "chosen": " <b>Rye.</b>", "rejected": "Mud."}\n'
    content += b'{"prompt": "", "chosen": "a", "rejected": "b"}\n'
    sent = files(("p.jsonl", content))
    refused = admin.post(f"{url}/preview", {}, files=sent)
    assert (refused.status_code, 'name="previewed"' in refused.text) == (200, False)
    shown = admin.post(f"{url}/preview", {"skip_invalid": "true"}, files=sent, headers={"HX-Request": "true"})
    assert shown.status_code == 200
    assert "<html" not in shown.text
    assert " &lt;b&gt;Rye.&lt;/b&gt;</dd>" in shown.text
    assert "a message of the prompt is empty" in shown.text
    assert session.scalar(select(func.count()).select_from(Prompt)) == 0

    seen = re.search(r'name="previewed" value="(\w+)"', shown.text)
    assert seen is not None
    options = {"skip_invalid": "true", "previewed": seen[1]}
    other = admin.post(url, options, files=files(("p.jsonl", content + b"\n")))
    assert (other.status_code, "have changed since the preview" in other.text) == (409, True)
    assert admin.post(url, options | {"heldout_percent": "50"}, files=sent).status_code == 409
    done = admin.post(url, options, files=sent)
    assert (done.status_code, "1 comparison, 1 judgment" in done.text) == (200, True)

    form = re.search(rf'action="({url}/imports/\d+/undo)"', done.text)
    assert form is not None
    undone = admin.post(form[1], {})
    assert (undone.status_code, "was undone" in undone.text) == (200, True)
    assert re.search(
        r'Comparisons</span><span class="stat-value">0</span>\s*<span class="stat-note">1 withdrawn', undone.text
    )
    assert session.scalars(select(Comparison.state)).all() == ["withdrawn"]
    assert admin.post(form[1], {}).status_code == 409
    assert admin.post(f"{url}/imports/{2**62}/undo", {}).status_code == 404


def test_undoing_what_labelers_judged_asks_once_more(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    admin, url = sign_in("admin"), f"/projects/{project.slug}/data"
    done = admin.post(url, {}, files=files(("p.jsonl", b'{"prompt": "Why?", "response_a": "x", "response_b": "y"}\n')))
    form = re.search(rf'action="({url}/imports/\d+/undo)"', done.text)
    assert form is not None
    row = session.scalars(select(Comparison)).one()
    factories.judgment(session, row, preference=2)
    session.commit()
    asked = admin.post(form[1], {})
    assert "Labelers have given 1 judgment on its comparisons" in asked.text
    session.refresh(row)
    assert row.state != "withdrawn"
    undone = admin.post(form[1], {"confirmed": "true"}).text
    assert "that no longer count: 1." in undone
    for shown in (undone, admin.get(f"/projects/{project.slug}").text):
        assert re.search(r'Judgments</span><span class="stat-value">0</span>', shown)
    session.refresh(row)
    assert row.state == "withdrawn"


def test_hostile_names_are_shown_and_stored_harmlessly(project: Project, sign_in: Callable[..., Any]) -> None:
    admin, url = sign_in("admin"), f"/projects/{project.slug}/data"
    content = b'[{"prompt": "a", "\\ud800\\u0000<b>": 1}, {"prompt": [{"role": "\\udfff", "content": "x"}]}]'
    for path in (f"{url}/preview", url):
        answer = admin.post(path, {"skip_invalid": "true", "source": "a\0b"}, files=files(("a\x1b<i>.json", content)))
        assert answer.status_code == 200, answer.text
        assert "the field ��&lt;b&gt;" in answer.text
        assert "holds half of a character" in answer.text


def test_what_an_upload_unpacks_to_is_bounded(
    session: Session, project: Project, app: Any, sign_in: Callable[..., Any]
) -> None:
    app.state.settings.max_upload_mb = 1
    bomb = gzip.compress(b'{"prompt": "a"}\n' + b" " * (8 << 20))
    answer = sign_in("admin").post(f"/projects/{project.slug}/data", {}, files=files(("p.jsonl.gz", bomb)))
    assert (answer.status_code, "than one import can read" in answer.text) == (422, True)
