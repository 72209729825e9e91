"""The navigation in a browser: a column beside the page, a bar on a phone, a menu on the labeling desk."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.models import Project
from tests import factories
from tests.browser.keys import press

OpenPage = Callable[..., Page]


@pytest.fixture
def project(session: Session) -> Project:
    project = factories.project(session, slug="p", name="First")
    factories.project(session, slug="q", name="Second")
    factories.comparison(session, project)
    for _ in range(2):
        factories.comparison(session, project, state="in_review", review_reason="requested")
    session.commit()
    return project


def test_beside_the_page(project: Project, open_page: OpenPage) -> None:
    page = open_page("labeler", "admin", "operator")
    page.goto("/projects/p/members")
    side = page.get_by_role("navigation", name="Project")
    for group in ("Label", "Quality", "Data", "Train", "Setup"):
        expect(side.get_by_role("list", name=group, exact=True)).to_be_visible()
    # The last entry is in view although the list is long.
    expect(side.get_by_role("link", name="Members")).to_have_attribute("aria-current", "page")
    expect(side.get_by_role("link", name="Members")).to_be_in_viewport(ratio=1)
    side.get_by_role("link", name="Review 2 waiting").click()
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()
    page.get_by_role("link", name="Ask again under a new rubric").click()
    expect(side.get_by_role("link", name="Review")).to_have_attribute("aria-current", "true")
    press(page, "Tab", "Enter")  # the first is the skip link
    assert page.evaluate("location.hash") == "#content"
    page.get_by_text("Project: First").click()
    page.get_by_role("link", name="Second").click()
    expect(page.get_by_role("heading", name="Second")).to_be_visible()


def test_on_a_phone_without_scripts(project: Project, open_page: OpenPage) -> None:
    page = open_page("labeler", "admin", "operator", width=390, javascript=False)
    page.goto("/projects/p")
    side = page.get_by_role("navigation", name="Project")
    expect(side.get_by_role("button")).to_have_count(5)
    expect(side.get_by_role("link")).to_have_count(0)
    side.get_by_role("button", name="Train").click()
    side.get_by_role("link", name="Models").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    side.get_by_role("button", name="Train").press("Enter")
    expect(side.get_by_role("link", name="Models")).to_have_attribute("aria-current", "page")
    side.get_by_role("link", name="Models").press("Escape")
    expect(side.get_by_role("link")).to_have_count(0)
    page.get_by_role("banner").get_by_role("link", name="Home").click()
    expect(page.get_by_role("heading", name="First", exact=True)).to_be_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_labelers_see_their_work_and_the_rubric(project: Project, open_page: OpenPage, width: int) -> None:
    page = open_page("labeler", width=width)
    page.goto("/projects/p")
    shown = page.get_by_role("navigation", name="Project").get_by_role("list").get_by_role("link")
    expect(shown).to_have_text(["Compare", "My work", "Rubric"])
    shown.filter(has_text="Rubric").click()
    expect(page.get_by_text("Prefer the better answer.")).to_be_visible()


@pytest.mark.parametrize("width", [390, 1440])
def test_the_desk_keeps_its_room(project: Project, open_page: OpenPage, width: int) -> None:
    page = open_page("labeler", "admin", width=width)
    page.goto("/projects/p/label")
    side = page.get_by_role("navigation", name="Project")
    expect(side).to_be_hidden()
    desk = page.locator("#desk").bounding_box()
    assert desk
    assert desk["width"] >= min(width, 1400) - 40
    if width == 1440:
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    page.get_by_role("button", name="Menu").click()
    side.get_by_role("link", name="My work").click()
    expect(page.get_by_role("heading", name="My answers")).to_be_visible()
