"""The navigation: each entry leads to a page for everybody who sees it, and counting takes one statement."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.orm import Session

from app.access.queries import Offers
from app.models import Project, ProjectLabeler
from app.navigation import queries
from app.navigation.entries import GROUPS, HOME, entry_of, groups_for
from app.navigation.queries import Own
from tests import factories
from tests.conftest import SignedIn
from tests.demonstrations.desk import task
from tests.labeling.test_statements import counted

EVERYTHING = Offers(to_write=True, written=True, red_team=True, thumbs=True)
STAFF = frozenset({"admin", "operator"})


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", labeling={"thumbs": True})
    project.policy_id = factories.model(session, project).id
    factories.rubric(session, project)
    task(session, project)
    session.commit()
    return project


@pytest.mark.parametrize("role", ["labeler", "admin", "operator"])
def test_every_entry_leads_to_a_page(sign_in: Callable[..., SignedIn], project: Project, role: str) -> None:
    client = sign_in(role)
    groups = groups_for({role}, EVERYTHING)
    for entry in (HOME, *(entry for group in groups for entry in group.entries)):
        answer = client.get(f"/projects/p/{entry.path}".rstrip("/"))
        assert answer.status_code == 200, entry
        assert f'aria-current="page">{entry.label}' in answer.text, entry


def test_no_path_is_listed_twice_for_anybody() -> None:
    for roles in ({"labeler"}, {"labeler", "admin"}, {"labeler", "admin", "operator"}):
        paths = [entry.path for group in groups_for(roles, EVERYTHING) for entry in group.entries]
        assert len(paths) == len(set(paths))


@pytest.mark.parametrize(
    ("path", "roles", "label"),
    [
        ("", {"labeler"}, "Home"),
        ("label", {"labeler"}, "Compare"),
        ("label/mine", {"labeler"}, "My work"),
        ("label/judgments/7", {"labeler"}, "My work"),
        ("labelers/7/remove", STAFF, "Labelers"),
        ("demonstrations/own/7", {"labeler"}, "Write"),
        ("demonstrations/7", {"labeler", "admin"}, "Demonstrations"),
        ("red-team/7", {"labeler", "admin"}, "Red team"),
        ("red-team/7", {"admin"}, "Red-team attempts"),
        ("automatic-rounds", STAFF, "Rounds"),
        ("nowhere", STAFF, None),
    ],
)
def test_a_page_belongs_to_the_entry_with_the_longest_path(path: str, roles: set[str], label: str | None) -> None:
    found = entry_of(path, groups_for(roles, EVERYTHING))
    assert (found and found.label) == label


def test_every_count_has_a_number() -> None:
    named = {entry.counts for group in GROUPS for entry in group.entries if entry.counts}
    assert named == set(queries.Waiting._fields) - {"projects"}


def test_what_waits_is_counted_by_role(session: Session, project: Project) -> None:
    labeler, other = factories.user(session), factories.user(session)
    factories.project(session, slug="q", name="Another")
    factories.comparison(session, project, state="in_review", review_reason="split")
    factories.comparison(session, project, state="in_review", review_reason="requested")
    factories.demonstration(session, factories.prompt(session, project), state="pending")
    now = datetime.now(UTC)
    task(session, project, labeler_id=other.id, expires_at=now + timedelta(hours=1))  # somebody writes there
    task(session, project, labeler_id=labeler.id, expires_at=now + timedelta(hours=1))
    session.add(ProjectLabeler(project_id=project.id, labeler_id=labeler.id, state="paused"))
    new = factories.model(session, project)
    round_ = factories.round_(session, project, number=1, policy_after_id=new.id)
    session.flush()

    def found(*roles: str) -> tuple[int, ...]:
        return queries.waiting(session, project.id, labeler.id, frozenset(roles))[:5]

    assert found("labeler") == (0, 0, 0, 0, 2)
    assert found("admin") == (2, 1, 1, 0, 0)
    assert found("operator") == (0, 0, 0, 1, 0)
    round_.adopted = False
    session.flush()
    assert found("operator")[3] == 0
    for n in range(queries.MOST + 5):
        factories.demonstration(session, factories.prompt(session, project), f"{n}", state="pending")
    assert found("admin")[1] == queries.MOST
    mine = queries.waiting(session, project.id, labeler.id, frozenset()).projects
    assert mine == [Own("q", "Another"), Own("p", project.name)]


def test_a_page_counts_in_one_statement_and_the_desk_in_none(
    app: FastAPI, sign_in: Callable[..., SignedIn], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, counts, read = sign_in("labeler", "admin", "operator"), [], queries.waiting

    def count(*given: Any) -> queries.Waiting:
        with counted(app) as sent:
            found = read(*given)
        counts.append(len(sent))
        return found

    monkeypatch.setattr(queries, "waiting", count)
    # An error page counts nothing: its session has ended.
    for path, expected in (("rubric", [1]), ("label", []), ("models/999", []), ("nowhere", [])):
        counts.clear()
        client.get(f"/projects/p/{path}")
        assert counts == expected, path
