"""Editing, previewing and publishing a rubric, as an admin does it."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Rubric
from tests import factories

OpenPage = Callable[..., Page]


def test_edit_preview_and_publish(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project, guideline="The first one.")
    factories.comparison(session, project)
    session.commit()
    page = open_page("admin")
    page.goto(f"/projects/{project.slug}/rubric")
    preview = page.locator("#preview")
    expect(preview).to_contain_text("The first one.")

    page.get_by_label("Guideline").fill("Prefer what is **shorter**. <img src=x onerror=alert(1)>")
    expect(preview.locator("strong")).to_have_text("shorter")
    page.get_by_label("Strengths each way").select_option("1")
    expect(preview.locator("input[type=radio]")).to_have_count(3)
    page.get_by_label("A tie is allowed").uncheck()
    expect(preview.locator("input[type=radio]")).to_have_count(2)
    page.get_by_label("Reason").select_option("required")
    expect(preview).to_contain_text("Reason: required.")
    assert page.evaluate("document.querySelectorAll('#preview img').length") == 0

    page.get_by_role("button", name="Save draft").click()
    expect(page.locator(".badge").filter(has_text="draft")).to_be_visible()
    session.rollback()
    assert session.scalars(select(Rubric.version).order_by(Rubric.id)).all() == [1, None]

    expect(page.locator("form .hint").last).to_contain_text("1 open comparison nobody has begun moves")
    page.get_by_role("button", name="Publish as version 2").click()
    expect(page.get_by_role("row").nth(1)).to_contain_text("1 each way, no tie")
    expect(page.get_by_role("button", name="Discard draft")).to_have_count(0)
    page.get_by_role("link", name="2", exact=True).click()
    expect(page.get_by_role("heading", name="Rubric version 2")).to_be_visible()

    labeler = open_page("labeler")
    labeler.goto(f"/projects/{project.slug}/label")
    expect(labeler.get_by_role("radio")).to_have_count(2)
    expect(labeler.get_by_text("Rubric v2")).to_be_visible()


def test_two_admins_and_one_draft(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project)
    session.commit()
    ann = open_page(user=factories.user(session, "admin", name="Ann"))
    bob = open_page(user=factories.user(session, "admin", name="Bob"))
    for page in (ann, bob):
        page.goto(f"/projects/{project.slug}/rubric")
    for name, page in (("Ann", ann), ("Bob", bob)):
        page.get_by_label("Guideline").fill(f"What {name} thinks.")
        page.get_by_role("button", name="Save draft").click()
    expect(ann.locator(".badge").filter(has_text="draft")).to_be_visible()
    expect(bob.get_by_role("alert").filter(has_text="Ann changed this draft")).to_be_visible()
    expect(bob.get_by_label("Guideline")).to_have_value("What Bob thinks.")
    expect(bob.get_by_text("What Ann thinks.")).to_be_visible()
    bob.get_by_role("button", name="Save draft").click()
    expect(bob.get_by_text("edited by Bob")).to_be_visible()


def test_without_javascript_and_on_a_phone(session: Session, open_page: OpenPage) -> None:
    project = factories.project(session)
    factories.rubric(session, project, guideline="word" * 200 + "\n\n# Heading\n\n" + "text " * 2000)
    session.commit()
    page = open_page("admin", width=390, javascript=False)
    page.goto(f"/projects/{project.slug}/rubric")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_label("Guideline").fill("Plain *words*.")
    page.get_by_role("button", name="Save draft").click()
    expect(page.locator("#preview em")).to_have_text("words")
    page.get_by_role("button", name="Discard draft").click()
    expect(page.get_by_text("No draft.")).to_be_visible()
