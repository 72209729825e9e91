"""Archiving a project, restoring it, and deleting a project that was made by mistake."""

from collections.abc import Callable

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.models import AuditEvent, LabelerGroup, LabelerGroupMember, Project, ProjectMember, Rubric, SigninLink
from app.projects import queries, service
from tests import factories
from tests.conftest import SignedIn

SignIn = Callable[..., SignedIn]


def test_an_archived_project_can_be_read_and_not_changed(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p", automatic={"judgments": 20})
    factories.comparison(session, project)
    running = factories.run(session, project, "sample", state="running")
    factories.project(session, slug="other")
    session.commit()
    admin, labeler = sign_in("admin"), sign_in("labeler")
    assert labeler.get("/label").headers["location"] == "/projects/p/label"
    refused = admin.post("/projects/p/settings/archive")
    assert (refused.status_code, "Something is still running" in refused.text) == (409, True)
    running.state = "succeeded"
    session.commit()
    assert admin.post("/projects/p/settings/archive").status_code == 303
    session.expire_all()
    assert project.archived_at is not None
    assert project.automatic is None

    assert "This project is archived" in admin.get("/projects/p/agreement").text
    assert admin.post("/projects/p/prompts", {"text": "Why?"}).status_code == 409
    assert labeler.get("/projects/p/label").status_code == 409
    assert "Nothing" in labeler.get("/label").text
    assert "Archived projects (1)" in labeler.get("/projects").text
    assert labeler.get("/").headers["location"] == "/projects/other"  # the one that is left
    assert labeler.post("/projects/p/settings/restore").status_code == 403

    assert admin.post("/projects/p/settings/restore").status_code == 303
    assert labeler.get("/projects/p/label").status_code == 200
    events = session.scalars(select(AuditEvent.action).where(AuditEvent.project_id == project.id)).all()
    assert [event for event in events if event.startswith("project.")] == ["project.archived", "project.restored"]


def test_a_project_made_by_mistake_is_deleted(sign_in: SignIn, session: Session) -> None:
    admin = sign_in("admin", "administrator")
    kept = factories.project(session, slug="kept")
    factories.rubric(session, kept)
    assert admin.user
    project = service.create(session, name="Mistake", actor_id=admin.user.id)
    factories.prompt(session, project)
    model = factories.model(session, project, "base", base="nowhere/nothing")
    project.base_model_id = project.reference_id = project.policy_id = model.id
    factories.run(session, project, "sample", state="failed")
    group = LabelerGroup(project_id=project.id, name="All")
    session.add(group)
    session.flush()
    session.add(LabelerGroupMember(group_id=group.id, labeler_id=admin.user.id))
    session.commit()
    admin.post(f"/projects/{project.slug}/members/invite", {"roles": "labeler"})
    url = f"/projects/{project.slug}/settings"
    assert "Archive it first" in admin.post(f"{url}/delete", {"address": "mistake"}).text
    admin.post(f"{url}/archive")
    assert "not the project&#39;s address" in admin.post(f"{url}/delete", {"address": "Mistake"}).text
    assert admin.post(f"{url}/delete", {"address": "mistake"}).headers["location"] == "/projects"
    session.expire_all()
    assert session.scalars(select(Project.slug)).all() == ["kept"]
    for table in (SigninLink, ProjectMember, Rubric):
        assert {row.project_id for row in session.scalars(select(table))} <= {kept.id}
    last = session.scalars(select(AuditEvent).order_by(AuditEvent.id.desc())).first()
    assert last
    assert (last.action, last.details["name"]) == ("project.deleted", "Mistake")
    # And the address is free.
    service.create(session, name="Mistake", actor_id=admin.user.id)


def test_what_people_said_is_never_deleted(sign_in: SignIn, session: Session) -> None:
    project = factories.project(session, slug="p")
    factories.judgment(session, factories.comparison(session, project), preference=1)
    session.commit()
    admin = sign_in("admin")
    admin.post("/projects/p/settings/archive")
    answer = admin.post("/projects/p/settings/delete", {"address": "p"})
    assert (answer.status_code, "cannot be deleted" in answer.text) == (409, True)
    assert admin.get("/projects/p").status_code == 200
    with pytest.raises(IntegrityError, match="append-only"):
        session.execute(update(AuditEvent).values(action="x"))
    session.rollback()
    # The permission to delete ends with it, within its transaction too.
    empty = service.create(session, name="Empty", actor_id=None)
    queries.delete_empty(session, empty.id)
    with pytest.raises(IntegrityError, match="append-only"):
        session.execute(Rubric.__table__.delete())
