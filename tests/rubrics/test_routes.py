"""The rubric's pages: who may, what they answer, and that text is never lost."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Rubric
from tests import factories
from tests.conftest import SignedIn

EDIT = {"guideline": "Prefer *short* ones.", "strengths": 2, "allow_tie": "true", "rationale_rule": "required"}


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session)
    factories.rubric(session, project, guideline="The first one.")
    session.commit()
    return project


def test_only_admins(sign_in: Callable[..., SignedIn], project: Project) -> None:
    url = f"/projects/{project.slug}/rubric"
    for roles in (("labeler",), ("operator",)):
        client = sign_in(*roles)
        assert client.get(url).status_code == 403
        assert client.get(f"{url}/1").status_code == 403
        for path in ("", "/publish", "/discard", "/preview"):
            assert client.post(url + path, EDIT).status_code == 403
    assert sign_in("admin").post(url, EDIT, csrf=False).status_code == 403


def test_edit_publish_and_read(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    admin, url = sign_in("admin"), f"/projects/{project.slug}/rubric"
    assert "The first one." in admin.get(url).text
    assert admin.post(url, EDIT | {"revision": 0}).headers["location"] == url
    page = admin.get(url).text
    assert '<input type="hidden" name="revision" value="1">' in page
    assert "Prefer <em>short</em> ones." in page
    assert admin.post(f"{url}/publish", EDIT | {"revision": 1}).status_code == 303
    rubric = session.scalars(select(Rubric).where(Rubric.version == 2)).one()
    assert (rubric.guideline, rubric.strengths, rubric.rationale_rule) == ("Prefer *short* ones.\n", 2, "required")
    assert "Prefer <em>short</em> ones." in admin.get(f"{url}/2").text
    assert "The first one." in admin.get(f"{url}/1").text
    assert admin.get(f"{url}/3").status_code == 404


def test_an_unticked_tie_is_stored(sign_in: Callable[..., SignedIn], session: Session, project: Project) -> None:
    """A browser sends nothing for it."""
    fields = {name: value for name, value in EDIT.items() if name != "allow_tie"}
    sign_in("admin").post(f"/projects/{project.slug}/rubric", fields)
    assert session.scalars(select(Rubric.allow_tie).where(Rubric.version.is_(None))).one() is False


def test_a_conflict_shows_both_texts_and_saving_again_replaces(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    url = f"/projects/{project.slug}/rubric"
    ann, bob = sign_in(user=factories.user(session, "admin", name="Ann <b>")), sign_in("admin")
    ann.post(url, EDIT | {"guideline": "from Ann"})
    answer = bob.post(f"{url}/publish", EDIT | {"guideline": "from Bob"})
    assert answer.status_code == 409
    assert "Ann &lt;b&gt; changed this draft after you opened it." in answer.text
    assert ">from Bob</textarea>" in answer.text
    assert '<pre class="plain">from Ann' in answer.text
    assert '<input type="hidden" name="revision" value="1">' in answer.text
    assert bob.post(url, EDIT | {"guideline": "from Bob", "revision": 1}).status_code == 303


def test_what_cannot_be_accepted_comes_back_with_the_reason(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    admin, url = sign_in("admin"), f"/projects/{project.slug}/rubric"
    answer = admin.post(url, EDIT | {"guideline": " "})
    assert answer.status_code == 422
    assert "The guideline is empty." in answer.text
    assert admin.post(url, EDIT | {"strengths": 9}).status_code == 422
    assert session.scalars(select(Rubric).where(Rubric.version.is_(None))).all() == []


def test_the_preview_stores_nothing_and_runs_nothing(
    sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    hostile = EDIT | {"guideline": "<script>alert(1)</script> **bold**"}
    answer = sign_in("admin").post(f"/projects/{project.slug}/rubric/preview", hostile)
    assert "<strong>bold</strong>" in answer.text
    assert "<script" not in answer.text
    assert answer.text.count('type="radio"') == 5  # two strengths each way and a tie
    assert session.scalars(select(Rubric).where(Rubric.version.is_(None))).all() == []
