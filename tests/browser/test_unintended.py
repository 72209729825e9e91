"""What nobody meant: Enter in a field decides nothing, and a sign-in that ended costs no text."""

import re
from collections.abc import Callable
from urllib.parse import urljoin

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import service as accounts
from app.models import Adjudication, Demonstration, Project, Rubric, Thumb, User
from tests import factories
from tests.browser.keys import press
from tests.browser.test_review import split
from tests.demonstrations.desk import task, tasks

OpenPage = Callable[..., Page]
PASSWORD = "a phrase that is long enough"


def project_for_thumbs(session: Session) -> Project:
    project = factories.project(session, labeling={"thumbs": True})
    factories.rubric(session, project)
    for number in range(2):
        factories.completion(session, factories.prompt(session, project, "2+5?"), f"Seven {number}.")
    session.commit()
    return project


def account(session: Session, *roles: str) -> User:
    user = factories.user(session, *roles, email=f"{roles[0]}@example.org", name="Nora")
    accounts.set_password(session, user, PASSWORD)
    session.commit()
    return user


def sign_in_again(page: Page, user: User) -> None:
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("E-mail").fill(user.email or "")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This form was not sent")).to_be_visible()


def test_enter_in_the_reason_gives_no_thumb(session: Session, open_page: OpenPage) -> None:
    project = project_for_thumbs(session)
    page = open_page("labeler")
    page.goto(f"/projects/{project.slug}/thumbs")
    page.get_by_label("Reason").fill("It is wrong.")
    press(page, "Enter")
    expect(page.get_by_label("Reason")).not_to_be_focused()
    press(page, "2")
    expect(page.get_by_role("status")).to_contain_text("Thumb down saved. 1 done today")
    thumb = session.scalars(select(Thumb)).one()
    assert (thumb.liked, thumb.rationale) == (False, "It is wrong.")


def test_enter_on_what_is_shown_beside_an_answer_neither_skips_nor_rejects(
    session: Session, open_page: OpenPage
) -> None:
    project = factories.project(session)
    prompt = factories.prompt(session, project, "Why is water wet?")
    task(session, project, prompt=prompt, completion_id=factories.completion(session, prompt, "It is.").id)
    row = factories.demonstration(session, factories.prompt(session, project), "Because.", state="pending")
    session.commit()
    writer, reviewer = open_page("labeler"), open_page("admin")
    base = f"/projects/{project.slug}/demonstrations"
    writer.goto(f"{base}/write")
    writer.get_by_label("Your answer").fill("It is, by definition.")
    writer.get_by_label("Changes").check()
    press(writer, "Enter")
    reviewer.goto(f"{base}/{row.id}")
    reviewer.get_by_label("Note to the author").fill("Well said.")
    reviewer.get_by_label("Changes").check()
    press(reviewer, "Enter", "Escape", "a")
    expect(reviewer.get_by_role("heading", name="Demonstrations")).to_be_visible()
    expect(writer.get_by_label("Your answer")).to_have_value("It is, by definition.")
    session.rollback()
    assert tasks(session)[0].skips == []
    assert session.scalars(select(Demonstration.state).where(Demonstration.id == row.id)).one() == "approved"


def test_a_reason_comes_back_after_the_sign_in_ended(session: Session, open_page: OpenPage) -> None:
    project = project_for_thumbs(session)
    user = account(session, "labeler")
    page = open_page(user=user)
    page.goto(f"/projects/{project.slug}/thumbs")
    page.get_by_label("Reason").fill("  Off by one, שלום  ")
    page.context.clear_cookies()
    press(page, "Escape", "2")
    expect(page.get_by_text("What you typed is kept in this tab")).to_be_visible()
    sign_in_again(page, user)
    expect(page.get_by_label("Reason")).to_have_value("  Off by one, שלום  ")
    press(page, "2")
    expect(page.get_by_role("status")).to_contain_text("Thumb down saved. 1 done today")
    assert session.scalars(select(Thumb.rationale)).one() == "Off by one, שלום"
    expect(page.get_by_label("Reason")).to_have_value("")


def test_a_note_comes_back_after_the_connection_was_lost(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    page.get_by_label("Note").fill("Left names its source.")
    press(page, "Escape", "1")
    page.context.set_offline(True)
    press(page, "Enter")
    expect(page).to_have_url(re.compile("^chrome-error:"))
    page.context.set_offline(False)
    page.go_back()
    expect(page.get_by_text("This form did not arrive")).to_be_visible()
    expect(page.get_by_label("Note")).to_have_value("Left names its source.")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Review", exact=True)).to_be_visible()
    assert session.scalars(select(Adjudication.note)).one() == "Left names its source."
    # What arrived does not come back.
    page.go_back()
    expect(page.get_by_text("A is much better, decided by")).to_be_visible()
    expect(page.get_by_text("This form did not arrive")).to_have_count(0)


def test_a_rubric_comes_back_with_the_rows_that_were_not_saved(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project, guideline="Be kind.")
    user = account(session, "admin")
    page = open_page(user=user)
    page.goto(f"/projects/{project.slug}/rubric")
    guideline = "Be kind.\n\nSay *why*, in a sentence.\n" * 100
    page.get_by_role("textbox", name="Guideline").fill(guideline)
    page.get_by_role("button", name="Add an aspect").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("truth")
    page.get_by_label("A tie is allowed").uncheck()
    page.context.clear_cookies()
    page.get_by_role("button", name="Save draft").click()
    sign_in_again(page, user)
    expect(page.get_by_role("textbox", name="Guideline")).to_have_value(guideline)
    expect(page.get_by_label("A tie is allowed")).not_to_be_checked()
    # The aspect has no row on the page as it was saved: its name is there to be copied.
    expect(page.get_by_label("What you typed in a field that is not there any more")).to_have_value("truth")
    page.get_by_role("button", name="Save draft").click()
    expect(page.get_by_text("draft", exact=True)).to_be_visible()
    draft = session.scalars(select(Rubric).where(Rubric.version.is_(None))).one()
    assert (draft.guideline.strip(), draft.allow_tie) == (guideline.strip(), False)


def test_a_form_from_before_another_sign_in_comes_back(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    user = account(session, "admin")
    page = open_page(user=user)
    page.goto(f"/projects/{project.slug}/review/{row.id}?queue=disagreement")
    page.get_by_label("Note").fill("Left names its source.")
    press(page, "Escape", "1")
    token = accounts.open_session(session, user, days=1)
    session.commit()
    page.context.add_cookies([{"name": "prefloop_session", "value": token, "url": urljoin(page.url, "/")}])
    press(page, "Enter")
    page.get_by_role("link", name="Back to the page").click()
    expect(page.get_by_label("Note")).to_have_value("Left names its source.")
    expect(page.get_by_role("radio", name="A is much better")).to_be_checked()


def test_what_somebody_typed_is_for_nobody_else(session: Session, open_page: OpenPage) -> None:
    project = project_for_thumbs(session)
    account(session, "labeler")
    page = open_page("labeler")
    page.goto(f"/projects/{project.slug}/thumbs")
    page.get_by_label("Reason").fill("Mine.")
    page.context.clear_cookies()
    press(page, "Escape", "1")
    page.get_by_role("link", name="Sign in").click()
    page.get_by_label("E-mail").fill("labeler@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Is this response good?")).to_be_visible()
    page.wait_for_load_state()  # its script has looked at what was kept
    expect(page.get_by_label("Reason")).to_have_value("")
    assert page.evaluate("sessionStorage.getItem('prefloop.unsent')") is None
