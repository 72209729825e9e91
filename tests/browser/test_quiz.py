"""Taking the training quiz, as a labeler does it."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Project, Qualification
from tests import factories
from tests.browser.keys import press
from tests.qualification.quizzes import QUIZ, take, with_quiz

OpenPage = Callable[..., Page]


def project_with_quiz(session: Session, **values: object) -> Project:
    project = factories.project(session, labeling={"quiz_pass": 0.6})
    with_quiz(session, project, **({"guideline": "Prefer **short** ones."} | values))
    session.commit()
    return project


def test_by_keyboard_alone_from_the_rubric_to_passing(session: Session, open_page: OpenPage) -> None:
    project = project_with_quiz(session)
    page = open_page("labeler")
    page.goto(f"/projects/{project.slug}/quiz")
    expect(page.get_by_text("You need 2 right answers to pass.")).to_be_visible()  # 0.6 of 3 is 1.8
    expect(page.locator(".prose strong")).to_have_text("short")
    press(page, "Enter")

    expect(page.get_by_role("heading", name="Question 1 of 3")).to_be_visible()
    press(page, "Enter")  # nothing chosen yet: nothing happens
    press(page, "1")
    expect(page.get_by_label("First is better")).to_be_checked()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="✓ Right: first is better.")).to_be_focused()
    expect(page.get_by_text("Paris it is.")).to_be_visible()
    press(page, "Enter")

    expect(page.get_by_role("heading", name="Question 2 of 3")).to_be_visible()
    press(page, "0")
    expect(page.get_by_label("Tie")).to_be_checked()
    press(page, "ArrowRight")
    expect(page.get_by_label("Second is better")).to_be_checked()
    press(page, "ArrowLeft")
    press(page, "ArrowLeft")
    expect(page.get_by_label("First is better")).to_be_checked()
    press(page, "r")
    expect(page.locator("#rubric .prose strong")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="✗ Not quite: tie. You said: first is better.")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Question 3 of 3")).to_be_visible()
    press(page, "2")
    press(page, "Enter")
    expect(page.get_by_role("link", name="Show the result")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="You passed the quiz")).to_be_visible()
    expect(page.get_by_text("2 of 3 right")).to_be_visible()
    expect(page.get_by_role("link", name="Start labeling")).to_be_focused()
    [attempt] = session.scalars(select(Qualification))
    assert (attempt.answers, attempt.correct, attempt.passed) == ({"0": -1, "1": -1, "2": 1}, 2, True)


def test_it_goes_on_after_a_reload_and_can_be_taken_again(session: Session, open_page: OpenPage) -> None:
    project = project_with_quiz(session)
    labeler = factories.user(session)
    take(session, project, labeler, {0: 1, 1: 1})
    session.commit()
    page = open_page(user=labeler)
    page.goto(f"/projects/{project.slug}/quiz")
    expect(page.get_by_role("heading", name="Question 3 of 3")).to_be_visible()
    press(page, "1")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Not quite")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Not quite")).to_be_visible()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Not passed yet")).to_be_visible()
    expect(page.get_by_role("button", name="Try again")).to_be_focused()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Question 1 of 3")).to_be_visible()
    expect(page.get_by_text("Capital of France?")).to_have_count(0)  # another order: this one came first before


def test_without_javascript_and_on_a_phone(session: Session, open_page: OpenPage) -> None:
    long = "word " * 800 + "x" * 300
    item = {"prompt": long, "first": long, "second": f"```\n{'y' * 400}\n```", "answer": 1, "feedback": long[:1900]}
    project = project_with_quiz(session, quiz=[QUIZ[0], item])
    page = open_page("labeler", width=390, javascript=False, dark=True)
    page.goto(f"/projects/{project.slug}/quiz")
    page.get_by_role("button", name="Start quiz").click()
    page.get_by_label("First is better").check()
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_text("Paris it is.")).to_be_visible()
    page.get_by_role("link", name="Next question").click()
    expect(page.get_by_role("heading", name="Question 2 of 2")).to_be_visible()  # the page is there: now it is measured
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    expect(page.get_by_role("button", name="Answer")).to_be_in_viewport()
    page.get_by_label("Second is better").check()
    page.get_by_role("button", name="Answer").click()
    expect(page.get_by_role("heading", name="✓ Right")).to_be_in_viewport()
    page.get_by_role("link", name="Show the result").click()
    expect(page.get_by_role("heading", name="You passed the quiz")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_staff_see_who_passed_and_which_questions_are_hard(session: Session, open_page: OpenPage) -> None:
    project = project_with_quiz(session)
    take(session, project, factories.user(session, name="Ann"))
    take(session, project, factories.user(session, name="Bob"), {0: 1, 1: 1, 2: 1})
    take(session, project, factories.user(session, name="Eve" * 60), {0: -1})
    session.commit()
    page = open_page("admin", width=390)
    page.goto(f"/projects/{project.slug}/rubric/1")
    page.get_by_role("link", name="Quiz results").click()
    expect(page.get_by_role("row", name="Ann")).to_contain_text("✓ passed")
    expect(page.get_by_role("row", name="Bob")).to_contain_text("✗ not passed")
    expect(page.get_by_role("row", name="Bob")).to_contain_text("1 of 3")
    expect(page.get_by_role("row", name="EveEve")).to_contain_text("at question 2")
    expect(page.get_by_role("row", name="Capital of France?")).to_contain_text("67%")  # 2 of 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
