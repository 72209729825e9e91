"""The constitution in a browser: with nothing, a little and a lot; principles are drafted, and a run is started."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Run
from tests import factories
from tests.browser.pictures import take_picture
from tests.constitution.scenes import Scene, revised
from tests.judges.scenes import judge

OpenPage = Callable[..., Page]


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
def test_nothing_a_little_and_a_lot(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    look = f"{width}{'-dark' if dark else ''}"
    project = factories.project(session, name="Helpful answers")
    session.commit()
    page, base = open_page("operator", "admin", width=width, dark=dark), f"/projects/{project.slug}"
    page.goto(f"{base}/constitution")
    expect(page.get_by_text("No rubric is published.")).to_be_visible()
    take_picture(page, f"constitution-none-{look}")
    assert fits(page)

    # Principles are drafted in the rubric's editor, changed, and published with the next version.
    factories.rubric(session, project, guideline="1. **Kind.** It hurts nobody.\n2. **Short.**\n")
    session.commit()
    page.goto(f"{base}/rubric")
    page.get_by_role("button", name="Draft from the criteria").click()
    expect(page.get_by_label("Principle", exact=True)).to_have_count(2)
    page.get_by_label("Principle", exact=True).nth(1).fill("Say it in a sentence.")
    take_picture(page, f"constitution-editor-{look}")
    page.get_by_role("button", name="Publish as version 2").click()
    expect(page.get_by_role("heading", name="Constitution")).to_be_visible()
    expect(page.get_by_text("Say it in a sentence.")).to_be_visible()
    page.goto(f"{base}/constitution")
    expect(page.get_by_text("Kind. It hurts nobody.")).to_be_visible()
    expect(page.get_by_text("Add a judge")).to_be_visible()

    scene = Scene(session, name="Carla")
    scene.answers(30, domain="law")
    session.commit()
    base = f"/projects/{scene.project.slug}"
    page.goto(f"{base}/constitution")
    take_picture(page, f"constitution-first-{look}")
    assert fits(page)
    page.get_by_label("A comparison").uncheck()
    page.get_by_label("Seed").fill("5")
    page.get_by_role("button", name="Start revising").click()
    expect(page.get_by_text("choose what a revision becomes").first).to_be_visible()
    expect(page.get_by_label("Seed")).to_have_value("5")
    page.get_by_label("A demonstration in review").check()
    page.get_by_label("Answers", exact=True).fill("12")
    page.get_by_role("button", name="Start revising").click()
    expect(page.get_by_text("Revising: waiting for a worker")).to_be_visible()
    started = session.scalars(select(Run).where(Run.kind == "revise", Run.state == "queued")).one()
    assert (len(started.spec["completions"]), started.spec["seed"], started.spec["candidates"]) == (12, 5, False)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("button", name="Continue run")).to_be_visible()

    other = judge(session, scene.project, model="m" * 120, name="A name that is as long as names may be " * 2)
    many = revised(session, scene.project, other, scene.rubric.id, 45)
    session.commit()
    page.goto(f"{base}/constitution")
    take_picture(page, f"constitution-many-{look}")
    assert fits(page)
    page.get_by_role("link", name=f"Run {many.id}").click()
    expect(page.locator("article")).to_have_count(20)
    page.get_by_text("Changes").first.click()
    take_picture(page, f"constitution-run-{look}")
    assert fits(page)
    page.get_by_role("link", name="Next").click()
    page.get_by_role("link", name="Next").click()
    expect(page.locator("article")).to_have_count(5)
