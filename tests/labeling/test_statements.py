"""The number of SQL statements for labeling: each one costs labelers time all day."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event, func, select
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Project
from tests import factories
from tests.conftest import SignedIn
from tests.labeling.test_routes import SCRIPT, Shown, html_of, url

CARD = 11  # a card: who asks, may they, what they hold, where they stand, what comes next, and how much is left
# An answer, and with it the card that follows the one on the desk: fewer than the answer and the card alone.
ANSWER_AND_CARD = 18


@pytest.fixture(params=["majority", "dawid_skene"])
def project(request: pytest.FixtureRequest, session: Session) -> Project:
    project = factories.project(session, overlap=1, labeling={"consensus": request.param})
    for n in range(30):
        factories.comparison(session, project, texts=(f"a{n}", f"b{n}"))
    session.commit()
    return project


@contextmanager
def counted(app: FastAPI) -> Iterator[list[str]]:
    engine, sent = app.state.session_factory.kw["bind"], []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_card_and_an_answer_send_few_statements(
    app: FastAPI, sign_in: Callable[..., SignedIn], session: Session, project: Project
) -> None:
    labeler = sign_in("labeler")
    labeler.post(f"{url(project)}/here")  # the test's client looks for its form token in pages
    with counted(app) as sent:
        card = Shown(html_of(labeler.get(url(project), headers=SCRIPT)))
    assert 0 < len(sent) <= CARD, sent
    with counted(app) as sent:
        held = labeler.get(url(project), headers=SCRIPT)
    assert 0 < len(sent) <= CARD, sent
    with counted(app) as sent:
        ahead = labeler.get(f"{url(project)}/ahead", params={"beside": lease(Shown(html_of(held)))}, headers=SCRIPT)
    assert 0 < len(sent) <= CARD, sent
    following = Shown(ahead.json()["card"])
    for count in ({}, {"count": "1"}):
        with counted(app) as sent:
            body = labeler.post(card.action, card.answer(desk=lease(following), **count), headers=SCRIPT).json()
        assert 0 < len(sent) <= ANSWER_AND_CARD, sent
        assert ("left" in body) == bool(count)
        card, following = following, Shown(body["card"])
    # Each of them was closed by its one answer: that is in the count.
    closed = session.scalar(select(func.count()).where(Comparison.state == "settled"))
    assert closed == session.scalar(select(func.count()).select_from(Judgment)) == 2


def lease(card: Shown) -> str:
    return card.action.rsplit("/", 1)[1]
