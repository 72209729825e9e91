"""What a reviewer does in a browser, by keys alone and without JavaScript."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.labeling import settling
from app.models import Adjudication, Comparison, Project
from tests import factories


def split(session: Session, project: Project, number: int) -> Comparison:
    """A comparison that two labelers judged differently."""
    prompt = factories.prompt(session, project, f"Question {number}?")
    row = factories.comparison(session, project, prompt=prompt, texts=(f"Left {number}", f"Right {number}"))
    factories.judgment(session, row, preference=2, rationale="It cites a **source**.")
    factories.judgment(session, row, preference=-1)
    settling.settle(session, [row.id])
    return row


def state(session: Session, row: Comparison) -> str:
    session.rollback()
    return session.scalars(select(Comparison.state).where(Comparison.id == row.id)).one()


def test_the_queue_by_keys_alone(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    rows = [split(session, project, number) for number in range(4)]
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review")
    expect(page.get_by_text("4 comparisons wait for a verdict")).to_be_visible()
    page.get_by_role("link", name="Begin with the first").press("Enter")

    # The case shows what the labelers said.
    expect(page.get_by_text("Question 0?")).to_be_visible()
    expect(page.get_by_text("It cites a **source**.")).to_be_visible()
    expect(page.locator(".response-first")).to_contain_text("Left 0")

    # Later leads on without a decision.
    page.keyboard.press("s")
    expect(page.get_by_text("Question 1?")).to_be_visible()

    # A verdict with a note; typing in the note presses no keys.
    page.keyboard.press("6")
    expect(page.get_by_role("radio", name="B is better", exact=True)).to_be_checked()
    page.keyboard.press("e")
    page.keyboard.type("w is for withdraw, 1 for A")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Question 2?")).to_be_visible()
    session.rollback()
    verdict = session.scalars(select(Adjudication)).one()
    assert (verdict.comparison_id, verdict.verdict, verdict.note) == (rows[1].id, 2, "w is for withdraw, 1 for A")

    page.keyboard.press("m")
    expect(page.get_by_text("Question 3?")).to_be_visible()
    assert state(session, rows[2]) == "open"
    # One key alone does not withdraw: it goes to the button, which Enter presses.
    page.keyboard.press("w")
    expect(page.get_by_role("button", name="Withdraw")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("Question 0?")).to_be_visible()
    assert state(session, rows[3]) == "withdrawn"

    # Enter without a choice decides nothing: the form asks for one.
    page.keyboard.press("Enter")
    expect(page.get_by_text("Question 0?")).to_be_visible()
    assert state(session, rows[0]) == "in_review"
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Nothing to review")).to_be_visible()
    assert state(session, rows[0]) == "adjudicated"


def test_a_phone_without_javascript(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    session.commit()
    page = open_page("admin", width=390, javascript=False)
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("radio", name="A is much better").check(force=True)
    page.get_by_role("textbox", name="Note").fill("Clearer.")
    page.get_by_role("button", name="Give verdict").click()
    expect(page.get_by_text("Nothing to review")).to_be_visible()
    assert state(session, row) == "adjudicated"


def test_two_admins_at_once(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = split(session, project, 1)
    ada = factories.user(session, "admin", name="Ada Lovelace")
    session.commit()
    pages = [open_page(user=ada), open_page("admin")]
    for page in pages:
        page.goto(f"/projects/{project.slug}/review/{row.id}")
        page.keyboard.press("1" if page is pages[0] else "7")
    pages[0].keyboard.press("Enter")
    expect(pages[0].get_by_text("Nothing to review")).to_be_visible()
    pages[1].keyboard.press("Enter")
    expect(pages[1].get_by_text("Ada Lovelace already gave the verdict on this comparison.")).to_be_visible()
    session.rollback()
    assert session.scalars(select(Adjudication.verdict)).all() == [-3]


def test_texts_cannot_inject(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session)
    row = factories.comparison(session, project, texts=("<script>document.title='x'</script>", "![i](http://x/y.png)"))
    factories.judgment(session, row, preference=1, rationale="<img src=x onerror=alert(1)>")
    factories.judgment(session, row, preference=-1)
    settling.settle(session, [row.id])
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/review/{row.id}")
    expect(page.get_by_text("<img src=x onerror=alert(1)>")).to_be_visible()
    expect(page.get_by_text("<script>document.title='x'</script>")).to_be_visible()
    assert page.locator("article img").count() == 0
