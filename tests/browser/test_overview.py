"""A project's start page: whom and what an admin has to look at, and how a new project begins."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from tests import factories
from tests.browser.test_agreement import judged as judged_slice
from tests.labelers.scenes import Habit, judged


def test_who_and_what_needs_attention_is_on_the_start_page(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session, slug="desk", review_threshold=0.6)
    judged(session, project, [*(Habit(f"Good {i}") for i in range(4)), Habit("Lefty", left=0.8)],
           comparisons=180, overlap=4)  # fmt: skip
    people = [factories.user(session, name=name) for name in ("Ann", "Bob")]
    judged_slice(session, project, people, "poems", 30, 3)
    session.commit()
    page = open_page("admin", width=390, dark=True)
    page.goto("/projects/desk")
    labelers = page.get_by_role("region", name="Labelers who need attention")
    expect(labelers.get_by_role("listitem").filter(has_text="Lefty")).to_contain_text("picks the left response")
    slices = page.get_by_role("region", name="Slices that need attention")
    expect(slices.get_by_role("listitem").first).to_contain_text("Domain poems 10% agree")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

    # What to do about it is one step away.
    slices.get_by_role("link", name="Review poems").click()
    expect(page.get_by_label("Slice")).to_have_value("domain=poems")
    page.go_back()
    labelers.get_by_role("link", name="Lefty").click()
    expect(page.get_by_role("heading", name="Needs attention")).to_be_visible()
    page.go_back()
    slices.get_by_role("link", name="Domain poems").click()
    expect(page.get_by_role("region", name="Agreement by domain").get_by_role("rowheader").first).to_contain_text(
        "poems"
    )


def test_an_operator_is_led_nowhere_they_may_not_go(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session, slug="desk", review_threshold=0.9)
    judged_slice(session, project, [factories.user(session), factories.user(session)], "law", 30, 9)
    session.commit()
    page = open_page("operator")
    page.goto("/projects/desk")
    slices = page.get_by_role("region", name="Slices that need attention")
    expect(slices).to_contain_text("30%")
    for link in page.get_by_role("main").get_by_role("link").all():
        address = link.get_attribute("href")
        assert address
        assert page.request.get(address).status == 200, address


def test_a_new_project_says_how_to_begin(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session, slug="new")
    factories.rubric(session, project)
    session.commit()
    page = open_page("admin")
    page.goto("/projects/new")
    steps = page.get_by_role("region", name="First steps").get_by_role("listitem")
    expect(steps).to_have_count(7)
    expect(steps.filter(has_text="done")).to_have_count(0)
    factories.prompt(session, project)
    session.commit()
    page.reload()
    expect(steps.filter(has_text="✓ done")).to_contain_text("Import data")
    # The list stays while something runs, and until each step is done.
    factories.round_(session, project, number=1, state="cancelled")
    factories.run(session, project, "sample", state="running", progress_message="downloading the model")
    session.commit()
    page.reload()
    expect(page.get_by_text("downloading the model")).to_be_visible()
    expect(steps.filter(has_text="✓ done")).to_have_count(2)
    steps.get_by_role("link", name="Import data").click()
    expect(page.get_by_role("heading", name="Import")).to_be_visible()
    # Whoever only labels is not told what admins do.
    labeler = open_page("labeler")
    labeler.goto("/projects/new")
    expect(labeler.get_by_text("Nothing to judge right now")).to_be_visible()
    expect(labeler.get_by_text("First steps")).to_have_count(0)


def test_each_role_is_told_what_to_do_next(session: Session, open_page: Callable[..., Page]) -> None:
    project = factories.project(session, slug="p")
    project.policy_id = factories.model(session, project).id
    for _ in range(3):
        factories.comparison(session, project)
    for _ in range(20):
        factories.comparison(session, project, state="settled")
    factories.comparison(session, project, state="in_review", review_reason="requested")
    session.commit()
    for role, title, button, leads_to in (
        ("labeler", "3 comparisons to judge", "Start labeling", "Which response is better?"),
        ("admin", "Comparisons to review", "Start reviewing", "Review"),
        ("operator", "Ready for the first round", "Start round", "Start a round"),
    ):
        page = open_page(role)
        page.goto("/projects/p")
        task = page.get_by_role("region", name="What to do next").get_by_role("listitem")
        expect(task).to_have_count(1)
        expect(task).to_contain_text(title)
        task.get_by_role("link", name=button).click()
        expect(page.get_by_role("heading", name=leads_to, exact=True)).to_be_visible()


def test_an_error_dismissed_does_not_lose_the_focus(session: Session, open_page: Callable[..., Page]) -> None:
    factories.project(session, slug="p")
    session.commit()
    page = open_page("admin")
    page.goto("/projects/p")
    page.evaluate("htmx.ajax('GET', '/projects/p/models/1', '#status')")
    page.get_by_role("button", name="Dismiss").press("Enter")
    expect(page.get_by_role("button", name="Dismiss")).to_have_count(0)
    expect(page.locator("#messages")).to_be_focused()
