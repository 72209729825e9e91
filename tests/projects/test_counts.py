"""Counts that grow with all judgments are shared by all visitors of a project, and renewed after own changes."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fastapi import FastAPI
from sqlalchemy import Engine, event, update
from sqlalchemy.orm import Session

from app import cache
from app.audit import audit
from app.cache import Cache
from app.labelers import service as labelers
from app.models import Project, ProjectLabeler
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]
POLL = {"HX-Request": "true"}


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p")
    for _ in range(3):
        factories.comparison(session, project, overlap=2)
    session.commit()
    return project


@pytest.fixture(autouse=True)
def keeping(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep everything forever, however fast it was computed."""
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**9)
    monkeypatch.setattr(cache, "COMMITTING", timedelta(0))
    app.state.project_counts = Cache(worth_keeping=-1)
    app.state.labelers_overviews = Cache(worth_keeping=-1)


@pytest.fixture
def counting(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that count all comparisons of a project."""
    found: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "judgment_count" in statement and "GROUP BY comparison.state" in statement:
            found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def told(client: SignedIn, slug: str = "p", **headers: str) -> tuple[str, str, str]:
    """Return open comparisons, judgments and labelers, as on the start page."""
    soup = BeautifulSoup(client.get(f"/projects/{slug}", headers=headers).text, "html.parser")
    stats = {stat.select_one(".stat-label").text: stat for stat in soup.select(".stat")}  # type: ignore[union-attr]
    judgments = stats["Judgments"]
    return (
        stats["To compare"].select_one(".stat-value").text,  # type: ignore[union-attr]
        judgments.select_one(".stat-value").text,  # type: ignore[union-attr]
        judgments.text.split("by ")[1].strip(),
    )


def test_open_start_pages_share_what_is_counted(
    sign_in: SignIn, session: Session, project: Project, counting: list[str]
) -> None:
    first, second = sign_in("admin"), sign_in("operator")
    assert told(first) == ("3", "0", "0 labelers")
    factories.comparison(session, project)  # by somebody else
    session.commit()
    for _ in range(3):
        assert told(first, **POLL) == told(second, **POLL) == told(second) == ("3", "0", "0 labelers")
    assert len(counting) == 1

    # Another project has its own.
    other = factories.project(session, slug="q")
    factories.comparison(session, other)
    session.commit()
    assert told(first, "q") == ("1", "0", "0 labelers")
    assert told(first) == ("3", "0", "0 labelers")


def test_ones_own_judgments_and_what_is_audited_are_counted_at_once(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    first, second = sign_in("admin", "labeler"), sign_in("operator")
    assert told(first) == told(second) == ("3", "0", "0 labelers")
    assert first.user is not None
    comparison = factories.comparison(session, project, overlap=2)
    judgment = factories.judgment(session, comparison, preference=1, labeler_id=first.user.id)
    session.commit()
    assert told(first, **POLL) == ("4", "1", "1 labeler")
    assert told(second, **POLL) == ("4", "1", "1 labeler")  # and then for everybody
    session.execute(
        update(type(judgment)).values(superseded_at=judgment.created_at + timedelta(hours=1), superseded_for="undone")
    )
    session.commit()
    assert told(first, **POLL) == ("4", "0", "0 labelers")
    comparison.state = "withdrawn"
    audit(session, second.user.id if second.user else None, "data.import_undone", project.id)
    session.commit()
    assert told(second) == ("3", "0", "0 labelers")


def test_what_is_no_work_is_not_counted_and_every_judgment_is(
    sign_in: SignIn, session: Session, project: Project
) -> None:
    """Calibration items and repeats do not wait for comparison, but their judgments count."""
    item = factories.comparison(session, project, purpose="calibration", gold=1, overlap=2)
    repeat = factories.comparison(session, project, purpose="repeat", repeat_of_id=item.id, overlap=2)
    for comparison in (item, repeat):
        factories.judgment(session, comparison, preference=1)
    lost = factories.comparison(session, project, overlap=2)
    factories.judgment(session, lost, preference=1)
    lost.state = "withdrawn"
    session.commit()
    assert told(sign_in("admin")) == ("3", "2", "2 labelers")


def test_the_labelers_page_is_computed_once_for_all_visitors(
    sign_in: SignIn, session: Session, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, original = [], labelers.overview

    def overview(*arguments: Any) -> labelers.Overview:
        computed.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(labelers, "overview", overview)
    ann = factories.user(session, "labeler", name="Ann")
    comparison = factories.comparison(session, project, overlap=3)
    factories.judgment(session, comparison, preference=1, labeler_id=ann.id)
    session.commit()
    first, second = sign_in("admin"), sign_in("operator")
    page = "/projects/p/labelers"
    assert "Ann" in first.get(page).text
    for client in (first, second):
        for path in ("", "/attention", f"/{ann.id}"):
            assert client.get(page + path).status_code == 200
    assert len(computed) == 1

    standing = ProjectLabeler(project_id=project.id, labeler_id=ann.id, state="paused")  # by somebody else
    session.add(standing)
    session.commit()
    assert "is paused and needs your decision" in second.get(f"{page}/{ann.id}").text
    assert "is paused and needs your decision" not in second.get(page).text
    standing.state = "active"
    bea = factories.user(session, "labeler", name="Bea")
    session.commit()
    assert second.get(f"{page}/{bea.id}").status_code == 200  # new since
    assert "Bea" not in second.get(page).text
    assert first.post(f"{page}/{ann.id}/pause", {"message": "Wait."}).status_code == 303
    for client in (first, second):
        assert "is paused and needs your decision" in client.get(page).text
        assert "Bea" in client.get(page).text

    # Another project's page is its own.
    other = factories.project(session, slug="q")
    cid = factories.user(session, name="Cid")
    factories.judgment(session, factories.comparison(session, other), preference=1, labeler_id=cid.id)
    session.commit()
    assert "Cid" in first.get("/projects/q/labelers").text
    assert "Cid" not in first.get(page).text
