"""What an admin does with labelers in a browser, without a script and on a phone too."""

from collections.abc import Callable

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Judgment, LabelerGroup, LabelerGroupMember, Project, ProjectLabeler, User
from tests import factories
from tests.browser.keys import press
from tests.labelers.scenes import Habit, judged


def scene(session: Session) -> tuple[Project, list[User]]:
    project = factories.project(session, slug="desk")
    habits = [*(Habit(f"Good {i}") for i in range(4)), Habit("Lefty", left=0.8), Habit("Machine", kind="ai_judge")]
    labelers, _ = judged(session, project, habits, comparisons=180, overlap=4)
    session.commit()
    return project, labelers


def state(session: Session, project: Project, labeler: User) -> str:
    session.rollback()
    return session.get_one(ProjectLabeler, (project.id, labeler.id), populate_existing=True).state


def test_from_the_list_to_a_pause_and_back(session: Session, open_page: Callable[..., Page]) -> None:
    project, labelers = scene(session)
    page = open_page("admin")
    page.goto("/projects/desk/labelers")
    page.get_by_role("button", name="Recalculate reliability").click()
    expect(page.get_by_text("Reliability was calculated from 720 judgments")).to_be_visible()
    # Nobody has met a calibration item or a repeat: no column of dashes stands for them.
    expect(page.get_by_text("Not measured here yet: calibration, repeats.")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Calibration")).to_have_count(0)
    expect(page.get_by_role("columnheader", name="Seconds")).to_be_visible()
    # Who needs attention is the first row, with the reason; machines are another tab.
    first = page.locator("tbody tr").first
    expect(first).to_contain_text("Lefty")
    expect(first).to_contain_text("picks the left response")
    expect(page.locator("tbody tr")).to_have_count(5)
    page.get_by_role("link", name="AI judges 1").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody tr").first).to_contain_text("Machine")
    page.go_back()

    page.get_by_role("link", name="Lefty").click()
    expect(page.get_by_role("heading", name="Lefty")).to_be_visible()
    expect(page.get_by_role("heading", name="By week")).to_be_visible()
    page.get_by_label("Message to the labeler").fill("You nearly always choose the left one. Please read both.")
    page.get_by_role("button", name="Pause labeler").click()
    expect(page.get_by_text("by User").first).to_be_visible()
    assert state(session, project, labelers[4]) == "paused"
    page.goto("/projects/desk/labelers")
    expect(page.locator("tbody tr").first).to_contain_text("is paused and needs your decision")
    page.get_by_role("link", name="Lefty").click()
    page.get_by_role("button", name="Resume labeler").click()
    expect(page.get_by_role("button", name="Pause labeler")).to_be_visible()
    assert state(session, project, labelers[4]) == "active"


def test_a_removal_says_what_it_does_before(session: Session, open_page: Callable[..., Page]) -> None:
    project, labelers = scene(session)
    page = open_page("admin", javascript=False)
    page.goto(f"/projects/desk/labelers/{labelers[4].id}")
    page.get_by_role("link", name="Remove with all judgments").click()
    expect(page.get_by_text("120 judgments no longer count")).to_be_visible()
    expect(page.get_by_text("120 comparisons then lack a judgment")).to_be_visible()
    expect(page.get_by_text("no model was trained on it")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    expect(page.get_by_role("heading", name="Lefty")).to_be_visible()
    page.get_by_role("link", name="Remove with all judgments").click()
    page.get_by_label("Reason").fill("Always clicks left.")
    page.get_by_role("button", name="Remove 120 judgments").click()
    expect(page.get_by_text("Always clicks left.").first).to_be_visible()
    assert state(session, project, labelers[4]) == "removed"
    live = select(Judgment).where(Judgment.labeler_id == labelers[4].id, Judgment.superseded_at.is_(None))
    assert session.scalars(live).all() == []


def test_groups_by_keyboard_alone(session: Session, open_page: Callable[..., Page]) -> None:
    scene(session)
    page = open_page("admin")
    page.goto("/projects/desk/labelers/groups")
    page.get_by_label("New group").focus()
    page.keyboard.type("Law")
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Law")).to_be_visible()
    page.get_by_label("Add", exact=True).select_option(label="Good 1")
    page.get_by_role("button", name="Add to the group").press("Enter")
    expect(page.get_by_text("1 member")).to_be_visible()
    page.get_by_role("button", name="Remove Good 1 from Law").press("Enter")
    expect(page.get_by_text("Nobody yet.")).to_be_visible()
    page.get_by_role("button", name="Delete the group").press("Enter")
    expect(page.get_by_text("There are no groups yet.")).to_be_visible()


def test_nothing_is_wider_than_a_phone(session: Session, open_page: Callable[..., Page]) -> None:
    project, labelers = scene(session)
    factories.user(session, name="Lefty Longname-With-Hyphens von und zu Hohenlohe " + "W" * 60)
    group = LabelerGroup(project_id=project.id, name="x" * 80)
    session.add(group)
    session.flush()
    session.add(LabelerGroupMember(group_id=group.id, labeler_id=labelers[0].id))
    session.add(LabelerGroupMember(group_id=group.id, labeler_id=factories.user(session, name="Y" * 120).id))
    session.commit()
    page = open_page("admin", width=390, dark=True)
    for path in ("", f"/{labelers[4].id}", f"/{labelers[4].id}/remove", "/groups"):
        page.goto(f"/projects/desk/labelers{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
