"""The page where people give thumbs: who may, what is asked, and what a changed mind leaves."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import BigInteger, func, literal, select
from sqlalchemy.orm import Session

from app.labelers import service as labelers
from app.models import Project, Thumb
from tests import factories


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, labeling={"thumbs": True})
    factories.rubric(session, project)
    session.commit()
    return project


def form(text: str) -> dict[str, str]:
    """The hidden fields of the page's form."""
    return {name: re.findall(rf'name="{name}" value="(.*?)"', text)[0] for name in ("prompt_id", "digest")}


def thumbs(session: Session) -> list[Thumb]:
    session.expire_all()
    return list(session.scalars(select(Thumb).order_by(Thumb.id)))


def test_each_response_gets_a_thumb_and_a_changed_mind_replaces_it(
    session: Session, project: Project, sign_in: Callable[..., Any]
) -> None:
    first = factories.completion(session, factories.prompt(session, project, "2+5?"), "It is eight.")
    factories.completion(session, factories.prompt(session, project, split="heldout"), "Held out.")
    factories.completion(session, factories.prompt(session, factories.project(session)), "Elsewhere.")
    session.commit()
    url = f"/projects/{project.slug}/thumbs"
    labeler, other = sign_in("labeler"), sign_in("labeler")
    page = labeler.get(url).text
    assert "It is eight." in page
    # Numbers of responses tell which is the newer one: the page names none.
    assert not re.search(rf'value="{first.id}"', page.replace(f'name="prompt_id" value="{first.prompt_id}"', ""))
    asked = form(page)
    given = labeler.post(url, asked | {"liked": "false", "rationale": " 7 "})
    assert given.headers["location"] == f"{url}?given=down"
    labeler.post(url, asked | {"liked": "false", "rationale": "7"})  # sent again
    (thumb,) = thumbs(session)
    assert (thumb.completion_id, thumb.liked, thumb.rationale) == (first.id, False, "7")
    for client in (labeler, other):  # held-out prompts and other projects are not asked about
        assert "Every response has a thumb" in client.get(url).text
    again = labeler.get(f"{url}?last=true").text
    assert "Change your thumb" in again
    assert form(again) == asked
    labeler.post(url, asked | {"liked": "true"})
    before, after = thumbs(session)
    assert (before.superseded_for, after.liked, after.superseded_at) == ("edited", True, None)


def test_the_order_cannot_be_worked_out(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    """It followed from numbers that labelers know: what came first in some turns told which response is the newer."""
    prompt = factories.prompt(session, project)
    texts = {factories.completion(session, prompt, text).id: text for text in ("Seven.", "Eight.", "Nine.")}
    session.commit()
    labeler = sign_in("labeler")
    first, guessed = [], []
    for turn in range(24):
        page = labeler.get(f"/projects/{project.slug}/thumbs?turn={turn}").text
        first.append(next(text for text in texts.values() if text in page))
        known = literal(labeler.user.id * 1_000_003 + turn, BigInteger)
        hashed = {id_: session.scalar(select(func.hashint8extended(id_, known))) for id_ in texts}
        guessed.append(texts[min(hashed, key=lambda id_: hashed[id_] or 0)])
    assert set(first) == set(texts.values())
    assert sum(a == b for a, b in zip(first, guessed, strict=True)) < 20


def test_the_gate_holds_for_thumbs(session: Session, project: Project, sign_in: Callable[..., Any]) -> None:
    prompt = factories.prompt(session, project)
    response = factories.completion(session, prompt, "Seven.")
    url, labeler, admin = f"/projects/{project.slug}/thumbs", sign_in("labeler"), factories.user(session, "admin")
    session.commit()
    asked = form(labeler.get(url).text) | {"liked": "true"}
    assert sign_in("operator").get(url).status_code == 403
    labelers.pause(session, project, admin, labeler.user.id, "Please read the rubric.")
    session.commit()
    assert "Please read the rubric." in labeler.get(url).text
    assert labeler.post(url, asked).status_code == 403
    labelers.resume(session, project, admin, labeler.user.id)
    prompt.split = "heldout"
    session.commit()
    assert labeler.post(url, asked).status_code == 410
    prompt.split = "train"
    project.labeling = {}
    session.commit()
    assert "asks for no thumbs" in labeler.get(url).text
    assert labeler.post(url, asked).status_code == 403
    assert f'href="{url}"' not in labeler.get(f"/projects/{project.slug}").text
    assert thumbs(session) == []
    # What somebody gave who was removed counts no longer.
    given = factories.thumb(session, response, liked=True, labeler_id=labeler.user.id)
    labelers.remove(session, project, admin, labeler.user.id, "spam")
    session.commit()
    session.expire_all()
    assert given.superseded_for == "removed"
