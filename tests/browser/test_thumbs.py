"""Thumbs with the keyboard alone, on a narrow screen too."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Thumb
from tests import factories
from tests.browser.keys import press
from tests.browser.test_accessibility import serious


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_thumbs_by_keys(session: Session, open_page: Callable[..., Page], width: int, dark: bool) -> None:
    project = factories.project(session, labeling={"thumbs": True})
    factories.rubric(session, project)
    for text in ("*Seven.*", "*Eight, surely.* " * 60):
        factories.completion(session, factories.prompt(session, project, "2+5?"), text)
    session.commit()
    page = open_page("labeler", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}")
    page.get_by_role("navigation").get_by_role("link", name="Thumbs").click()
    expect(page.get_by_role("heading", name="Is this response good?")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious(page) == []
    press(page, "w")
    expect(page.locator(".response .written")).to_be_visible()
    expect(page.locator(".response .prose")).to_be_hidden()
    press(page, "1")
    expect(page.get_by_role("status")).to_contain_text("Thumb up saved. 1 done today")
    page.get_by_label("Reason").fill("1 is wrong")  # a key in the reason is only a letter
    press(page, "Escape")
    press(page, "2")
    expect(page.get_by_role("heading", name="Every response has a thumb")).to_be_visible()
    page.get_by_role("link", name="Change last thumb").click()
    expect(page.get_by_label("Reason")).to_have_value("1 is wrong")
    expect(page.get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "true")
    press(page, "1")
    expect(page.get_by_text("Every response has a thumb")).to_be_visible()
    given = session.scalars(select(Thumb).where(Thumb.superseded_at.is_(None)).order_by(Thumb.id)).all()
    assert [thumb.liked for thumb in given] == [True, True]
    assert all(thumb.duration_ms is not None for thumb in given)


def test_a_short_conversation_is_seen_whole(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session, labeling={"thumbs": True})
    factories.rubric(session, project)
    turns = [{"role": role, "content": f"{role} says this."} for role in ("user", "assistant", "user")]
    factories.completion(session, factories.prompt(session, project, messages=turns), "Well.")
    session.commit()
    page = open_page("labeler")
    page.goto(f"/projects/{project.slug}/thumbs")
    conversation = page.get_by_role("region", name="Conversation")
    expect(conversation.get_by_text("assistant says this.")).to_be_visible()
    assert conversation.evaluate("element => element.scrollHeight <= element.clientHeight")
