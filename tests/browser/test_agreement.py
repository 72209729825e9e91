"""What an admin sees and does on the agreement page of a project too large to compute at once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.insights import routes, views
from app.models import Project, User
from tests import factories

START = datetime(2026, 9, 7, tzinfo=UTC)


def judged(session: Session, project: Project, labelers: list[User], domain: str, n: int, agreeing: int) -> None:
    """n comparisons of a domain, one a day, on `agreeing` of which both labelers choose the same side."""
    for i in range(n):
        row = factories.comparison(session, project, prompt=factories.prompt(session, project, domain=domain))
        first = 1 if i % 2 else -1
        for labeler, preference in zip(labelers, (first, first if i < agreeing else -first), strict=True):
            at = START + timedelta(days=i)
            factories.judgment(session, row, preference=preference, labeler_id=labeler.id, created_at=at)


def test_which_slices_need_attention(
    session: Session, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    monkeypatch.setattr(views, "PAGE", 2)
    project = factories.project(session, review_threshold=0.6)
    people = [factories.user(session, name=name) for name in ("Ann", "Bob")]
    for domain, n, agreeing in (("maths", 30, 27), ("law", 30, 9), ("chat", 30, 26), ("code", 30, 30), ("art", 3, 0)):
        judged(session, project, people, domain, n, agreeing)
    robots = [factories.user(session, kind="simulated") for _ in range(2)]
    judged(session, project, robots, "maths", 4, 4)
    session.commit()

    page = open_page("admin", width=390)
    page.goto(f"/projects/{project.slug}/agreement")
    # Of 123 pairs of judgments 92 agree.
    expect(page.locator("#live")).to_contain_text("74.8%")
    attention = page.get_by_role("region", name="Needs attention")
    expect(attention.get_by_role("listitem")).to_have_count(1)
    expect(attention.get_by_role("listitem")).to_contain_text("Domain law 30% agree")
    expect(attention.get_by_role("listitem")).to_contain_text("45 points below the whole")
    expect(attention.get_by_role("listitem")).to_contain_text("under 60%")

    # Worst first, and on by keys alone.
    domains = page.get_by_role("region", name="Agreement by domain").get_by_role("rowheader")
    expect(domains).to_contain_text(["law", "chat"])
    page.get_by_role("link", name="Next").press("Enter")
    expect(domains).to_contain_text(["maths", "code"])
    expect(page.get_by_role("heading", name="Domain")).to_be_focused()  # there is no next page any more
    page.get_by_role("link", name="Previous").press("Enter")
    expect(domains).to_contain_text(["law", "chat"])
    page.get_by_role("link", name="Next").press("Enter")
    expect(domains).to_contain_text(["maths", "code"])
    expect(page.get_by_text("1 with too few comparisons")).to_be_visible()
    expect(page.get_by_role("rowheader", name="art")).to_be_hidden()
    page.get_by_text("1 with too few comparisons").press("Enter")
    expect(page.get_by_role("rowheader", name="art")).to_be_visible()

    # The trend is drawn, and told as a table.
    expect(page.locator(".trend canvas")).to_be_visible()
    page.get_by_text("Show as a table").press("Enter")
    weeks = page.get_by_role("region", name="Agreement by week").get_by_role("rowheader")
    expect(weeks).to_have_text(["2026-10-05", "2026-09-28", "2026-09-21", "2026-09-14", "2026-09-07"])
    expect(page.get_by_role("rowheader", name="Ann and Bob")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    # Machines apart from people.
    page.get_by_text("Judgments of people and imported labelers").click()
    for name in ("people", "imported labelers"):
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_role("checkbox", name="simulated labelers").check()
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#live")).to_contain_text("100.0%")
    expect(page.get_by_text("You see your own selection")).to_be_visible()
    page.get_by_role("link", name="Back to people’s and imported judgments").click()
    expect(page.locator("#live")).to_contain_text("74.8%")


def test_the_table_without_javascript(
    session: Session, open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    monkeypatch.setattr(views, "PAGE", 1)
    project = factories.project(session)
    people = [factories.user(session) for _ in range(2)]
    judged(session, project, people, "law", 20, 5)
    judged(session, project, people, "maths", 20, 15)
    session.commit()
    page = open_page("admin", javascript=False)
    page.goto(f"/projects/{project.slug}/agreement")
    page.get_by_role("link", name="Show the table").click()
    domains = page.get_by_role("region", name="Agreement by domain").get_by_role("rowheader")
    expect(domains).to_contain_text(["law"])
    page.get_by_role("link", name="Next").click()
    expect(domains).to_contain_text(["maths"])
