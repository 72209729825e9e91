"""Drafts, taking an answer back, and changing one, in a real browser."""

from playwright.sync_api import expect
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment
from tests import factories
from tests.browser.test_labeling import OpenPage, all_sent, judgments, open_desk, project_with, wait_for_next
from tests.browser.test_labeling_flow import live_leases, press, question, rich_project

# --- drafts ----------------------------------------------------------------------------------------------------------


def test_a_draft_outlives_a_reload(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_desk(open_page, project)
    press(page, "6", "a", "1", "2", "f", "2", "Escape", "e")
    page.keyboard.type("Half a thought")
    page.reload()
    expect(page.locator("#rationale")).to_have_value("Half a thought")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    expect(page.get_by_label("Contains personal data")).to_be_checked()
    expect(page.locator("input[name='aspect:style'][value='0']")).to_be_checked()
    press(page, "Enter")
    question(page, 1)
    expect(page.locator("#rationale")).to_have_value("")
    expect(page.locator("input[name=preference]:checked")).to_have_count(0)
    all_sent(page)
    assert judgments(session)[0].rationale == "Half a thought"


def test_a_draft_outlives_the_lease(session: Session, open_page: OpenPage) -> None:
    """Whoever comes back after their time was over finds the card as they left it, if nobody took it."""
    page = open_desk(open_page, rich_project(session))
    wait_for_next(page)
    shown = page.locator(".responses").inner_text()
    press(page, "2", "e")
    page.keyboard.type("Before lunch")
    session.execute(text("UPDATE lease SET expires_at = now() - interval '1 second'"))
    session.commit()
    page.reload()
    question(page, 0)
    assert page.locator(".responses").inner_text() == shown
    expect(page.locator("#rationale")).to_have_value("Before lunch")
    expect(page.get_by_role("radio", name="First response better", exact=True)).to_be_checked()


def test_a_change_that_is_not_sent_yet_outlives_a_reload(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, rich_project(session))
    press(page, "6", "Enter")
    question(page, 1)
    all_sent(page)
    press(page, "h")
    page.get_by_role("link", name="Change").click()
    page.locator("html.js").wait_for()
    press(page, "1", "e")
    page.keyboard.type("On reflection")
    page.reload()
    expect(page.locator("#rationale")).to_have_value("On reflection")
    expect(page.get_by_role("radio", name="First response much better")).to_be_checked()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("link", name="Change").click()
    expect(page.locator("#rationale")).to_have_value("")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()


# --- taking back, changing -------------------------------------------------------------------------------------------


def test_undo_brings_the_last_card_back_filled_in(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session, 4)
    page = open_desk(open_page, project)
    expect(page.locator(".undo")).to_be_hidden()  # nothing to take back yet
    wait_for_next(page)
    press(page, "6", "a", "3", "Escape", "e")
    page.keyboard.type("First thought")
    press(page, "Control+Enter")
    question(page, 1)
    press(page, "e")
    page.keyboard.type("Draft of the second")
    press(page, "Escape", "u")
    question(page, 0)
    expect(page.locator("h1")).to_be_focused()
    expect(page.locator("#announce")).to_have_text("Comparison 1 of today. Your answer is still in the form.")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    expect(page.locator("input[name='aspect:factuality'][value='1']")).to_be_checked()
    expect(page.locator("#rationale")).to_have_value("First thought")
    expect(page.locator("[data-done]").first).to_have_text("0")

    press(page, "2", "Enter")
    question(page, 1)  # what was on the desk follows, with its draft
    expect(page.locator("#rationale")).to_have_value("Draft of the second")
    all_sent(page)
    taken_back, standing = judgments(session)
    assert (taken_back.superseded_for, standing.superseded_for) == ("undone", None)
    assert taken_back.lease_id == standing.lease_id
    assert taken_back.preference == -(standing.preference or 0)  # 6 and 2 lie opposite each other

    press(page, "Enter")  # nothing is chosen on the second card
    question(page, 1)
    press(page, "1", "Enter")
    question(page, 2)
    press(page, "Control+z")
    question(page, 1)
    press(page, "Control+z")
    question(page, 0)
    assert len(live_leases(session)) == 2  # the rest went back to the queue
    assert [row.superseded_for for row in judgments(session)] == ["undone", "undone", "undone"]
    press(page, "u")
    expect(page.locator("#messages")).to_contain_text("You have no answer here to undo.")
    question(page, 0)


def test_an_answer_that_settled_can_be_taken_back_at_once_but_not_after_an_hour(
    session: Session, open_page: OpenPage
) -> None:
    project = project_with(session, 2)
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    page = open_desk(open_page, project)
    press(page, "6", "Enter")
    question(page, 1)
    all_sent(page)
    assert session.scalars(select(Comparison.state).order_by(Comparison.id)).first() == "settled"
    press(page, "u")
    question(page, 0)
    session.rollback()
    assert session.scalars(select(Comparison.state).order_by(Comparison.id)).first() == "open"
    press(page, "6", "Enter")
    question(page, 1)
    all_sent(page)
    session.execute(text("SET session_replication_role = replica"))  # as if it had been an hour ago
    session.execute(text("UPDATE judgment SET created_at = now() - interval '1 hour'"))
    session.execute(text("SET session_replication_role = origin"))
    session.commit()
    press(page, "u")
    expect(page.locator("#messages")).to_contain_text(
        "This answer can no longer be changed. It is more than an hour old"
    )
    question(page, 1)


def test_changing_an_answer_from_the_history(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_desk(open_page, project)
    wait_for_next(page)
    press(page, "6", "a", "1", "Enter")
    question(page, 1)
    press(page, "b", "Enter")
    question(page, 2)
    all_sent(page)
    press(page, "h")
    expect(page.get_by_role("heading", name="My answers")).to_be_visible()
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("Both bad")
    expect(rows.nth(1)).to_contain_text("Second response better")
    expect(rows.nth(1)).to_contain_text("factuality: first")
    rows.nth(1).get_by_role("link", name="Change").click()
    question(page, 0)
    page.locator("html.js").wait_for()
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    press(page, "1", "e")
    page.keyboard.type("On reflection")
    press(page, "Control+Enter")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("First response much better")
    expect(rows.nth(2)).to_contain_text("changed")
    expect(page.get_by_role("link", name="Change")).to_have_count(2)
    old, _other, new = judgments(session)
    assert (old.superseded_for, new.superseded_for, new.rationale) == ("edited", None, "On reflection")
    assert (old.lease_id, old.swapped, old.duration_ms) == (new.lease_id, new.swapped, new.duration_ms)
    assert session.scalars(select(Comparison.judgment_count).order_by(Comparison.id)).all() == [1, 1, 0]
    page.get_by_role("link", name="Continue comparing").click()
    question(page, 2)


def test_the_last_answer_can_be_taken_back_when_nothing_is_left(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, rich_project(session, 1))
    press(page, "6", "Enter")
    expect(page.locator(".idle")).to_be_visible()
    press(page, "u")
    question(page, 0)
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()


def test_changing_is_for_ones_own_answers(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    comparison = session.scalars(select(Comparison)).first()
    assert comparison
    lease = factories.lease(session, comparison, state="submitted")
    theirs = factories.judgment(session, comparison, preference=1, labeler_id=lease.labeler_id, lease_id=lease.id)
    session.commit()
    page = open_page("labeler")
    page.goto(f"/projects/{project.slug}/label/judgments/{theirs.id}")
    expect(page.locator("main")).to_contain_text("Somebody else gave this answer.")
    assert [row.id for row in session.scalars(select(Judgment))] == [theirs.id]
