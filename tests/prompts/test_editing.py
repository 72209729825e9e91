"""Prompts written by hand: added, changed before anybody has answered them, retired and brought back."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from app.models import Comparison, DemonstrationTask, Project, Prompt
from app.prompts import queries
from tests import factories
from tests.conftest import SignedIn
from tests.demonstrations.desk import task

SignIn = Callable[..., SignedIn]
URL = "/projects/p/prompts"


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session, slug="p")


def test_typing_and_changing(sign_in: SignIn, session: Session, project: Project) -> None:
    session.commit()
    admin = sign_in("admin")
    typed = {
        "text": "Why?\r\nSay.",
        "system": "Be brief.",
        "split": "heldout",
        "domain": " law ",
        "safety_category": "",
    }
    location = admin.post(URL, typed).headers["location"]
    prompt = session.get_one(Prompt, int(location.rsplit("/", 1)[1]))
    assert prompt.messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?\nSay."},
    ]
    assert (prompt.split, prompt.domain, prompt.safety_category, prompt.source) == ("heldout", "law", None, "typed")
    for sent, status, reason in (
        (typed, 409, "has this prompt already"),
        ({"text": "  "}, 422, "The prompt is empty"),
        (typed | {"split": "withdrawn"}, 422, "Not accepted"),
    ):
        refused = admin.post(URL, sent)
        assert (refused.status_code, reason in refused.text) == (status, True)

    assert "Be brief." in admin.get(f"{location}/edit").text
    admin.post(f"{location}/edit", typed | {"text": "Why not?", "split": "train"})
    session.expire_all()
    assert (prompt.messages[-1]["content"], prompt.split) == ("Why not?", "train")
    other = factories.prompt(session, project, "Other?", digest="other")
    session.commit()
    admin.post(f"{URL}/{other.id}/edit", {"text": "Why not?", "system": "Be brief."})
    session.expire_all()
    assert other.messages[0]["content"] == "Other?"

    factories.completion(session, prompt)
    session.commit()
    page = admin.get(f"{location}/edit").text
    assert 'name="text"' not in page
    assert "The text and the split are settled" in page
    assert admin.post(f"{location}/edit", typed).status_code == 409
    admin.post(f"{location}/edit", {"domain": "maths", "difficulty": "hard"})
    session.expire_all()
    assert (prompt.domain, prompt.difficulty, prompt.split) == ("maths", "hard", "train")


def test_retiring_and_bringing_back(sign_in: SignIn, session: Session, project: Project) -> None:
    prompt = factories.prompt(session, project, split="heldout")
    opened = factories.comparison(session, project, prompt=prompt)
    settled = factories.comparison(session, project, prompt=prompt, state="settled")
    wish = task(session, project)
    wish_id, wished = wish.id, wish.prompt_id
    gone = factories.prompt(session, project, split="withdrawn")
    session.commit()
    admin = sign_in("admin")
    assert "Nothing asks or reads this prompt any more" in admin.get(f"{URL}/{prompt.id}").text
    for id_ in (prompt.id, wished):
        assert admin.post(f"{URL}/{id_}/retire").status_code == 303
    session.expire_all()
    assert (prompt.split, opened.state, settled.state) == ("withdrawn", "withdrawn", "settled")
    assert session.get(DemonstrationTask, wish_id) is None
    assert admin.post(f"{URL}/{prompt.id}/retire").status_code == 404
    assert admin.get(f"{URL}/{prompt.id}/edit").status_code == 404
    assert "Bring back" in admin.get(f"{URL}/{prompt.id}").text

    assert admin.post(f"{URL}/{prompt.id}/bring-back", {"split": "withdrawn"}).status_code == 422
    admin.post(f"{URL}/{prompt.id}/bring-back", {"split": "train"})
    session.expire_all()
    assert (prompt.split, opened.state) == ("train", "withdrawn")
    # What was withdrawn with all that its author wrote stays so.
    assert "Bring back" not in admin.get(f"{URL}/{gone.id}").text
    assert admin.post(f"{URL}/{gone.id}/bring-back", {"split": "train"}).status_code == 409


def test_a_prompt_that_is_retired_holds_up_nobody_who_refers_to_its_comparisons(
    session: Session, engine: Engine, project: Project
) -> None:
    """Storing a lease or a repeat makes the database look the comparison up, against the order of locks."""
    row = factories.comparison(session, project)
    session.commit()
    with engine.connect() as other:
        assert queries.close(session, row.prompt_id) == 1
        found = (
            select(Comparison.id).where(Comparison.id == row.id).with_for_update(read=True, key_share=True, nowait=True)
        )
        assert other.scalar(found) == row.id
