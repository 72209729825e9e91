"""What comes between a labeler and the service: no storage, no connection, time, a refusal while they type."""

import re

import pytest
from playwright.sync_api import Page, Route, expect
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from app.members import service as members
from app.models import Comparison, Judgment, Lease, Project, Run
from tests import factories
from tests.browser.test_labeling import OpenPage, all_sent, judgments, open_desk, project_with, wait_for_next
from tests.browser.test_labeling_flow import ASPECTS, FLAGS, press, question, rich_project

AN_ANSWER = re.compile(r"/label/[0-9a-f-]{36}$")
NO_STORAGE = """Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError"); };"""


def test_answers_are_sent_where_the_browser_keeps_nothing(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    page = open_page("labeler")
    page.add_init_script(NO_STORAGE)
    page.goto(f"/projects/{project.slug}/label")
    wait_for_next(page)
    press(page, "6", "e")
    page.keyboard.type("Kept")
    press(page, "Control+Enter")
    question(page, 1)
    press(page, "r")  # what is remembered from card to card holds on this page
    press(page, "2", "Enter")
    question(page, 2)
    expect(page.get_by_role("complementary", name="Rubric")).to_be_visible()
    all_sent(page)
    assert [row.rationale for row in judgments(session)] == ["Kept", ""]


def answered(session: Session) -> list[int]:
    """The projects of all judgments, the first one first."""
    session.rollback()
    by_age = select(Comparison.project_id).join(Judgment, Judgment.comparison_id == Comparison.id).order_by(Judgment.id)
    return list(session.scalars(by_age))


def test_what_another_project_has_not_got_yet_waits_for_its_own_desk(session: Session, open_page: OpenPage) -> None:
    here, there = project_with(session, 2), project_with(session, 2)
    session.execute(
        text("UPDATE prompt SET messages = replace(messages::text, 'Question', 'Other')::jsonb WHERE project_id = :id"),
        {"id": there.id},
    )
    session.commit()
    page = open_desk(open_page, here)
    wait_for_next(page)
    page.route(AN_ANSWER, lambda route: route.abort())
    press(page, "6", "Enter")
    question(page, 1)
    expect(page.locator("#sending")).to_be_visible()
    page.goto(f"/projects/{there.slug}/label")
    wait_for_next(page)
    page.unroute_all()  # not before: the desk that has the answer tries again and again
    expect(page.locator(".conversation")).to_contain_text("Other number 0?")
    press(page, "6", "Enter")
    expect(page.locator(".conversation")).to_contain_text("Other number 1?")
    all_sent(page)
    assert answered(session) == [there.id]
    page.goto(f"/projects/{here.slug}/label")
    question(page, 1)
    all_sent(page)
    assert answered(session) == [there.id, here.id]


def test_a_page_that_waits_goes_on_asking_after_the_connection_was_lost(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.run(session, project, "sample", state="running", progress_done=1, progress_total=4)
    session.commit()
    page = open_desk(open_page, project)
    page.context.set_offline(True)
    expect(page.locator("#messages")).to_contain_text("The service does not answer.")
    session.execute(update(Run).values(progress_done=3))
    session.commit()
    page.context.set_offline(False)
    expect(page.locator(".idle")).to_contain_text("3 of 4")
    expect(page.locator("#messages")).to_be_empty()


def refuse(session: Session) -> None:
    """The rubric of the first comparison is another one from now on: an answer under the old one is refused."""
    first = session.scalars(select(Comparison).order_by(Comparison.id)).first()
    assert first
    project = session.get_one(Project, first.project_id)
    newer = factories.rubric(session, project, version=2, aspects=ASPECTS, flags=FLAGS)
    session.execute(update(Lease).where(Lease.comparison_id == first.id).values(state="expired"))
    session.execute(update(Comparison).where(Comparison.id == first.id).values(rubric_id=newer.id))
    session.commit()


def test_typing_on_when_a_refused_answer_comes_back_presses_no_keys(session: Session, open_page: OpenPage) -> None:
    project = rich_project(session)
    page = open_page("labeler")
    page.clock.install()
    page.goto(f"/projects/{project.slug}/label")
    wait_for_next(page)
    refuse(session)
    held: list[Route] = []
    page.route(AN_ANSWER, lambda route: held.append(route))
    press(page, "6", "Enter")
    question(page, 1)
    press(page, "e")
    page.keyboard.type("The first one ")
    expect(page.locator("#rationale")).to_have_value("The first one ")
    [route] = held
    route.continue_()
    page.unroute_all()
    expect(page.locator(".desk-problem")).to_contain_text("A new version of the rubric applies")
    # Those who look at the keyboard while they type go on: a digit and Enter would be an answer, s skips, u takes back.
    for key in ("1", "u", "s", "1", "Enter", "b", "r"):
        press(page, key)
    question(page, 0)
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_checked()
    expect(page.locator("#skip-menu")).not_to_have_attribute("open", "")
    expect(page.get_by_role("complementary", name="Rubric")).to_be_hidden()
    assert judgments(session) == []
    page.clock.fast_forward(800)  # whoever pauses looks at the screen
    press(page, "7", "Enter")
    question(page, 1)
    expect(page.locator("#rationale")).to_have_value("The first one ")
    all_sent(page)
    assert len(judgments(session)) == 1


def come_back(page: Page) -> None:
    """As the tab is looked at again."""
    with page.expect_response(re.compile("/label/here$")):
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def test_who_was_away_gets_the_card_again_or_learns_that_it_is_gone(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 1)
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    page = open_desk(open_page, project)
    session.execute(text("UPDATE lease SET state = 'expired'"))
    session.commit()
    come_back(page)
    session.rollback()
    assert session.scalars(select(Lease.state)).all() == ["live"]
    expect(page.locator("#messages")).to_be_empty()
    session.execute(text("UPDATE lease SET state = 'expired'"))
    factories.lease(session, session.scalars(select(Comparison)).one())
    session.commit()
    come_back(page)
    expect(page.locator("#messages")).to_contain_text("This comparison is no longer kept for you.")


def test_what_somebody_wrote_who_was_taken_out_of_the_project_is_shown_to_be_copied(
    session: Session, open_page: OpenPage
) -> None:
    project = project_with(session, 3)
    labeler, admin = factories.user(session, "labeler"), factories.user(session, "admin")
    page = open_desk(open_page, project, user=labeler)
    wait_for_next(page)
    press(page, "6", "e")
    page.keyboard.type("Long thought about")
    members.remove(session, project, admin, labeler.id)
    session.commit()
    press(page, "Control+Enter")
    expect(page.get_by_text("You have no project")).to_be_visible()
    expect(page.get_by_role("textbox", name="Copy what you wrote")).to_have_value("Long thought about")
    assert judgments(session) == []


def test_the_focus_is_not_lost_with_what_is_closed(session: Session, open_page: OpenPage) -> None:
    page = open_desk(open_page, rich_project(session))
    for close in ("r", "Escape"):
        press(page, "r")
        page.get_by_role("complementary", name="Rubric").focus()
        press(page, close)
        expect(page.locator("#rubric > summary")).to_be_focused()
    press(page, "a", "3")
    expect(page.locator("input[name='aspect:style']:checked")).to_be_focused()  # the next aspect, where it stands
    press(page, "a")
    expect(page.locator("input[name='aspect:factuality'][value='1']")).to_be_focused()


@pytest.mark.parametrize("width", [390, 1440])
def test_what_is_said_of_unsent_answers_covers_no_control(session: Session, open_page: OpenPage, width: int) -> None:
    page = open_desk(open_page, project_with(session, 3), width=width)
    page.set_viewport_size({"width": width, "height": 600})  # of a phone the answer's bar fills half
    wait_for_next(page)
    page.context.set_offline(True)
    page.get_by_role("radio", name="Tie").check()
    page.get_by_role("button", name="Submit").click()
    sending = page.locator("#sending")
    expect(sending).to_have_text("1 answer is not sent yet, trying again.")
    said = sending.bounding_box()
    assert said is not None
    assert said["x"] >= 0
    assert said["x"] + said["width"] <= width
    for control in page.locator("form.answer .step, form.answer textarea, form.answer .button").all():
        box = control.bounding_box()
        assert box is not None
        apart = box["y"] >= said["y"] + said["height"] or box["y"] + box["height"] <= said["y"]
        assert apart, control.inner_text()
    page.context.set_offline(False)
    all_sent(page)
