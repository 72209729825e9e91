"""An operator's judges in a browser: with nothing, a little and a lot; adding one by keys; no key on any page."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.judges import queries
from app.models import Project
from tests import factories
from tests.browser.keys import press
from tests.browser.pictures import take_picture
from tests.judges.scenes import admitted, comparisons, judge, judged_by_people, said, truth

OpenPage = Callable[..., Page]
LOOKS = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@LOOKS
def test_nothing_a_little_and_a_lot(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    look = f"{width}{'-dark' if dark else ''}"
    project = factories.project(session, name="Helpful answers")
    factories.published_rubric(session, project)
    session.commit()
    page, base = open_page("operator", width=width, dark=dark), f"/projects/{project.slug}"
    page.goto(f"{base}/judges")
    expect(page.get_by_role("heading", name="No judge yet")).to_be_visible()
    take_picture(page, f"judges-none-{look}")
    assert fits(page)

    fresh = judge(session, project, model="a-model", name="Fresh")
    session.commit()
    page.goto(f"{base}/judges/{fresh.id}")
    expect(page.get_by_text("Nobody has tested its endpoint yet.")).to_be_visible()
    take_picture(page, f"judge-new-{look}")
    assert fits(page)

    _a_lot(session, project)
    page.goto(f"{base}/judges")
    for word in ("not tested", "not admitted", "admitted", "paused", "off"):
        expect(page.locator(".badge").get_by_text(word, exact=True).first).to_be_visible()
    take_picture(page, f"judges-many-{look}")
    assert fits(page)
    page.get_by_role("link", name="The good one").click()
    expect(page.get_by_role("heading", name="Since the admission")).to_be_visible()
    expect(page.locator(".drawn svg")).to_have_count(1)
    take_picture(page, f"judge-admitted-{look}")
    assert fits(page)


def _a_lot(session: Session, project: Project) -> None:
    shared, _ = judged_by_people(session, project)
    good = judge(session, project, model="good", name="The good one", prompt_price=0.5, completion_price=1.5)
    good.tested_at = datetime(2026, 11, 1, tzinfo=UTC)
    admitted(session, project, good, shared)
    for number, each in enumerate(comparisons(session, project, 8)):
        said(session, good, each, truth(each, number), cost=0.00013, said=["It is right. " * 60 + "Verdict: 1"] * 2)
    failed = comparisons(session, project, 2)
    for each in failed:
        values = {"first": None, "second": None, "error": "The answer contains no verdict: " + "so " * 60}
        said(session, good, each, None, **values)  # type: ignore[arg-type]
    admission = queries.admissions(session, project.id)[good.id]
    for number in range(6):
        run = factories.run(
            session, project, "judge", spec={"judge": good.id, "rubric": 1}, state="succeeded", result={"judged": 30}
        )
        for place, anchor in enumerate(admission.anchors):
            row = shared[[each.id for each in shared].index(anchor["comparison"])]
            sides = (-1, 1) if place < number else tuple(anchor["orders"])
            verdict = sides[0] if sides[0] == sides[1] else 0
            later = datetime(2999, 1, 1, tzinfo=UTC)
            values = {"first": sides[0], "second": sides[1], "is_anchor": True, "run_id": run.id, "created_at": later}
            said(session, good, row, verdict, **values)
    other = judge(session, project, model="m" * 120, name="A name that is as long as names may be " * 2)
    other.tested_at, other.test_error = datetime(2026, 11, 1, tzinfo=UTC), "The endpoint cannot be reached."
    paused = judge(session, project, model="paused")
    admitted(session, project, paused, shared)
    row = queries.admissions(session, project.id)[paused.id]
    row.paused_at, row.pause_reason = datetime(2026, 11, 2, tzinfo=UTC), "The endpoint reports the model b."
    judge(session, project, model="off").off_at = datetime(2026, 11, 2, tzinfo=UTC)
    session.commit()


def test_a_judge_is_added_after_a_wrong_address(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.published_rubric(session, project)
    session.commit()
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/progress")
    page.get_by_role("link", name="Judges").click()
    page.get_by_role("link", name="Add judge").click()
    page.get_by_label("Name", exact=True).fill("Ada")
    page.get_by_label("Address").fill("http://ada:secret@127.0.0.1:9/v1")
    page.get_by_label("Model", exact=True).fill("some-model")
    page.get_by_label("Key to store").fill("sk-not-to-be-shown")
    press(page, "Enter")
    expect(page.get_by_text("an address without user, password").first).to_be_visible()
    assert "sk-not-to-be-shown" not in page.content()
    expect(page.get_by_label("Name", exact=True)).to_have_value("Ada")
    page.get_by_label("Address").fill("http://127.0.0.1:9/v1")
    page.get_by_label("Key to store").fill("sk-not-to-be-shown")
    page.get_by_role("button", name="Add and test judge").click()
    expect(page.get_by_role("heading", name="Ada")).to_be_visible()
    expect(page.get_by_text("waiting for a worker")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Key, prices and limits").click()
    expect(page.get_by_label("Forget the stored key")).to_be_visible()
    assert "sk-not-to-be-shown" not in page.content()
    page.get_by_label("Price of input").fill("0.25")
    page.get_by_role("button", name="Save settings").click()
    page.get_by_role("button", name="Start judging").click()
    expect(page.get_by_text("Ada has judged all of them already.")).to_be_visible()
    page.get_by_role("button", name="Test admission").click()
    expect(page.get_by_text("there are 0.").first).to_be_visible()
    page.get_by_role("button", name="Switch off").click()
    expect(page.get_by_role("button", name="Switch on")).to_be_visible()
    session.expire_all()
    [stored] = queries.judges(session, project.id)
    assert (stored.prompt_price, stored.off_at is not None) == (0.25, True)
    assert stored.sealed_key
