"""Labeling as a person does it, in a real browser."""

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.models import Comparison, Judgment, Project
from tests import factories
from tests.browser.keys import press

OpenPage = Callable[..., Page]


def all_sent(page: Page) -> None:
    expect(page.locator("#desk:not([data-unsent])")).to_be_visible()


def wait_for_next(page: Page) -> None:
    """Until the card that follows is loaded."""
    expect(page.locator("#desk[data-ahead]")).to_be_visible()


def judgments(session: Session) -> list[Judgment]:
    session.rollback()  # see what the service has committed since
    return list(session.scalars(select(Judgment).order_by(Judgment.id)))


def project_with(session: Session, n: int, **values: object) -> Project:
    project = factories.project(session, overlap=2)
    for i in range(n):
        prompt = factories.prompt(session, project, f"Question number {i}?")
        factories.comparison(session, project, prompt=prompt, texts=(f"Alpha {i}", f"Beta {i}"), **values)
    session.commit()
    return project


def open_desk(open_page: OpenPage, project: Project, *roles: str, **kwargs: object) -> Page:
    page = open_page(*(roles or ("labeler",)), **kwargs)
    page.goto(f"/projects/{project.slug}/label")
    return page


def test_several_cards_by_keyboard_only(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 5)
    page = open_desk(open_page, project)
    question = page.locator(".conversation")
    expect(question).to_contain_text("Question number 0?")

    press(page, "2")
    press(page, "Enter")
    expect(question).to_contain_text("Question number 1?")
    expect(page.locator("h1")).to_be_focused()
    expect(page.locator("#announce")).to_have_text("Comparison 2 of today.")

    # Arrows begin beside the middle and stop at the ends; Enter counts once even when pressed twice.
    for _ in range(5):
        press(page, "ArrowRight")
    expect(page.get_by_role("radio", name="Second response much better")).to_be_checked()
    press(page, "ArrowLeft")
    press(page, "e")
    page.keyboard.type("Reasons 1 and 2, see?")
    press(page, "Escape")
    expect(page.get_by_role("radio", name="Second response better", exact=True)).to_be_focused()
    press(page, "Enter")
    press(page, "Enter")
    expect(question).to_contain_text("Question number 2?")

    press(page, "s")
    press(page, "2")
    expect(question).to_contain_text("Question number 3?")

    press(page, "Enter")  # nothing chosen yet: said, not sent
    expect(page.locator("#announce")).to_have_text("Choose a preference first.")
    press(page, "4")
    press(page, "e")
    page.keyboard.type("Alike.")
    press(page, "Control+Enter")
    expect(question).to_contain_text("Question number 4?")
    expect(page.locator(".task-progress")).to_contain_text("3 done today")
    all_sent(page)

    first, second, third = judgments(session)
    shown = [-row.preference if row.swapped else row.preference for row in (first, second, third)]
    assert shown == [-2, 2, 0]
    assert [row.rationale for row in (first, second, third)] == ["", "Reasons 1 and 2, see?", "Alike."]
    assert all(row.duration_ms is not None and 0 < row.duration_ms < 60_000 for row in (first, second, third))


def test_rubric_keys_and_help(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project, guideline="Prefer **short** answers.")
    session.commit()
    for _ in range(2):
        factories.comparison(session, project)
    session.commit()
    page = open_desk(open_page, project)
    sheet = page.get_by_role("complementary", name="Rubric")
    expect(sheet).to_be_hidden()
    press(page, "r")
    expect(sheet.locator("strong")).to_have_text("short")
    press(page, "1")
    with page.expect_response(lambda response: response.request.method == "POST"):
        press(page, "Enter")
    expect(page.locator(".task-progress")).to_contain_text("1 done today")
    expect(sheet).to_be_visible()  # it stays open on the next card
    press(page, "Escape")
    expect(sheet).to_be_hidden()
    press(page, "?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    press(page, "Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()


def test_without_javascript(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    page = open_desk(open_page, project, javascript=False)
    page.get_by_role("radio", name="First response much better").check()
    page.locator("#rationale").fill("Because.\nReally.")
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    page.locator(".skip-menu summary").click()
    page.get_by_role("button", name="Unclear").click()
    expect(page.locator(".conversation")).to_contain_text("Question number 2?")
    page.get_by_text("Rubric v1").click()
    expect(page.get_by_role("complementary", name="Rubric")).to_be_visible()
    page.locator("form.answer").evaluate("form => form.noValidate = true")
    page.locator("#rationale").fill("no choice made")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("alert").filter(has_text="No preference was chosen.")).to_be_visible()
    expect(page.locator("#rationale")).to_have_value("no choice made")
    page.get_by_role("radio", name="Tie").check()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert [row.rationale for row in judgments(session)] == ["Because.\nReally.", "no choice made"]


def test_going_back_shows_what_is_on_the_desk_now(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 2)
    page = open_page("labeler", javascript=False)
    page.goto("/label")
    page.get_by_role("radio", name="Tie").check()
    page.get_by_role("button", name="Submit").click()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    page.go_back()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    assert page.url.endswith(f"/projects/{project.slug}/label")


def test_a_second_tab_shows_the_same_card_and_cannot_answer_it_again(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    first = open_desk(open_page, project)
    second = first.context.new_page()
    second.goto(f"/projects/{project.slug}/label")
    order = [page.locator(".responses").inner_text() for page in (first, second)]
    assert order[0] == order[1]

    press(first, "1")
    press(first, "Enter")
    expect(first.locator(".conversation")).to_contain_text("Question number 1?")
    press(second, "e")
    second.keyboard.type("Typed in the other tab")
    press(second, "Escape")
    press(second, "7")
    press(second, "Enter")
    expect(second.locator(".desk-problem")).to_contain_text("You have judged this comparison already")
    expect(second.locator("#unsent")).to_have_value("Typed in the other tab")
    expect(second.locator(".conversation")).to_contain_text("Question number 1?")
    expect(second.locator("#rationale")).to_have_value("")
    assert len(judgments(session)) == 1


def test_a_lost_connection_loses_nothing(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    page = open_desk(open_page, project)
    wait_for_next(page)
    press(page, "e")
    page.keyboard.type("Long thought")
    press(page, "Escape")
    press(page, "3")
    page.context.set_offline(True)
    press(page, "Enter")
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")  # work goes on
    expect(page.locator("#sending")).to_have_text("1 answer is not sent yet, trying again.")
    press(page, "2")
    press(page, "Enter")
    expect(page.locator("#sending")).to_have_text("2 answers are not sent yet, trying again.")
    expect(page.locator("#desk")).to_have_attribute("aria-busy", "true")  # no card is left to show
    page.context.set_offline(False)
    expect(page.locator(".conversation")).to_contain_text("Question number 2?")
    expect(page.locator("#sending")).to_be_hidden()
    first, second = judgments(session)
    assert first.rationale == "Long thought"
    assert second.rationale == ""


def test_an_answer_outlives_a_reload_before_it_is_sent(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 3)
    page = open_desk(open_page, project)
    wait_for_next(page)
    page.route(re.compile(r"/label/[0-9a-f-]{36}$"), lambda route: route.abort())
    press(page, "7")
    press(page, "Enter")
    expect(page.locator("#sending")).to_be_visible()
    assert judgments(session) == []
    page.unroute_all()
    page.reload()
    expect(page.locator(".conversation")).to_contain_text("Question number 1?")
    expect(page.locator(".task-progress")).to_contain_text("1 done today")
    [judgment] = judgments(session)
    assert abs(judgment.preference or 0) == 3


def test_new_work_appears_while_sampling(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.run(session, project, "sample", state="running", progress_done=1, progress_total=4)
    session.commit()
    page = open_desk(open_page, project)
    expect(page.locator(".idle")).to_contain_text("1 of 4")
    factories.comparison(session, project)
    session.commit()
    expect(page.locator("form.answer")).to_be_visible()
    expect(page.locator("#announce")).to_have_text("Comparison 1 of today.")


def test_a_small_scale_without_tie_and_with_a_reason_required(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project, strengths=2, allow_tie=False, rationale_rule="required")
    factories.comparison(session, project)
    session.commit()
    page = open_desk(open_page, project)
    names = [radio.get_attribute("aria-label") for radio in page.locator(".scale").get_by_role("radio").all()]
    assert names == [
        "First response much better",
        "First response better",
        "Second response better",
        "Second response much better",
    ]
    press(page, "ArrowLeft")
    expect(page.get_by_role("radio", name="First response better", exact=True)).to_be_checked()
    press(page, "Enter")
    expect(page.locator("#rationale")).to_be_focused()  # the browser points to what is missing
    assert judgments(session) == []
    page.keyboard.type("Plainer.")
    press(page, "Control+Enter")
    expect(page.locator(".idle")).to_be_visible()
    all_sent(page)
    assert session.scalar(select(func.abs(Judgment.preference))) == 1


def test_the_service_takes_a_lease_back_when_a_browser_is_closed(session: Session, open_page: OpenPage) -> None:
    project = project_with(session, 1)
    session.execute(text("UPDATE comparison SET overlap = 1"))
    session.commit()
    first = open_desk(open_page, project)
    expect(first.locator("form.answer")).to_be_visible()
    first.context.close()
    second = open_desk(open_page, project)
    expect(second.get_by_role("heading", name="The last comparisons are with other labelers")).to_be_visible()
    session.execute(text("UPDATE lease SET expires_at = now() - interval '1 second'"))
    session.commit()
    expect(second.locator("form.answer")).to_be_visible()  # by itself
    assert session.scalars(select(Comparison.lease_count)).one() == 1
