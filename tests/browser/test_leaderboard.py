"""What an operator sees on the leaderboard: with nothing, a little, and far too much; by keys, and on a phone."""

import random
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.leaderboard import routes
from app.models import ModelVersion, Project, User
from tests import factories
from tests.browser.pictures import take_picture
from tests.leaderboard.scenes import contest, judged, pair

OpenPage = Callable[..., Page]
LOOKS = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])


def made(session: Session, names: list[str]) -> tuple[Project, list[ModelVersion]]:
    project = factories.project(session)
    policies = [
        factories.model(session, project, "policy" if number else "base", name=name)
        for number, name in enumerate(names)
    ]
    project.base_model_id = project.reference_id = project.policy_id = policies[0].id
    return project, policies


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@LOOKS
def test_nothing_and_a_little(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    project, (base, one) = made(session, ["SmolLM2-135M-Instruct", "policy-1"])
    session.commit()
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/leaderboard")
    expect(page.get_by_role("heading", name="No policy has been compared with another")).to_be_visible()
    take_picture(page, f"leaderboard-nothing-{width}-{'dark' if dark else 'light'}")
    contest(session, project, one, base, [factories.user(session) for _ in range(3)], won=8, lost=4, ties=3)
    session.commit()
    page.reload()
    expect(page.get_by_role("heading", name="Too few judgments to rank policies")).to_be_visible()
    expect(page.get_by_text("15 judgments on 15 prompts can be used so far")).to_be_visible()
    assert fits(page)
    take_picture(page, f"leaderboard-little-{width}-{'dark' if dark else 'light'}")


def many(session: Session, project: Project, policies: list[ModelVersion], labelers: list[User], each: int) -> None:
    """Each policy against the two before it. It is longer in 5 of 6 comparisons and wins most of these, else half."""
    drawn = random.Random(5)
    for number, policy in enumerate(policies):
        for before in policies[max(0, number - 2) : number]:
            for n in range(each):
                longer = n % 6 != 5
                texts = ("- a\n- b" if drawn.random() < 0.5 else "a", "a" if drawn.random() < 0.5 else "- **b**")
                row = pair(session, project, (policy, before), tokens=(60, 20) if longer else (20, 50), texts=texts)
                preference = 0 if n == 6 else -2 if n % 12 and (longer or n % 12 == 5) else 2
                swapped = drawn.random() < 0.5
                judged(session, row, drawn.choice(labelers), preference, swapped=swapped)


@LOOKS
def test_a_board_with_everything(session: Session, open_page: OpenPage, width: int, dark: bool) -> None:
    names = ["SmolLM2-135M-Instruct", "policy-1", "policy-2", "policy-3", "policy-4", "imported", "policy-5"]
    project, policies = made(session, names)
    labelers = [factories.user(session) for _ in range(8)]
    many(session, project, policies[:4], labelers, 24)
    contest(session, project, policies[4], policies[3], labelers, won=9, lost=0)
    contest(session, project, policies[6], policies[5], labelers, won=5, lost=3)
    contest(
        session,
        project,
        policies[3],
        policies[1],
        labelers,
        won=5,
        lost=3,
        purpose="heldout",
        selection={"policy": "uncertain"},
    )
    session.commit()
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/leaderboard")
    expect(page.get_by_role("heading", name="policy-3 is the best ranked policy")).to_be_visible()
    expect(page.get_by_text("win rates differ by more than 10 points")).to_be_visible()
    ranked = page.get_by_role("region", name="Ranked policies").get_by_role("rowheader")
    expect(ranked).to_have_text(["policy-3", "policy-2", "policy-1", "SmolLM2-135M-Instruct compared with the policy"])
    others = page.get_by_role("region", name="Not ranked")
    expect(others).to_contain_text("policy-4 won all of its 9 comparisons with the ranked policies")
    expect(others).to_contain_text("Compare policy-5 with policy-2 on held-out prompts to connect them.")
    expect(
        page.get_by_text("Left out: 8 judgments because the pair was chosen because of its responses.")
    ).to_be_visible()
    assert fits(page)
    take_picture(page, f"leaderboard-board-{width}-{'dark' if dark else 'light'}")

    # Another reference, by keys alone.
    page.locator(".whose summary").press("Enter")
    page.get_by_label("Compare with").select_option("policy-1")
    page.get_by_role("button", name="Show").press("Enter")
    expect(ranked).to_have_text(["policy-3", "policy-2", "policy-1 compared with", "SmolLM2-135M-Instruct the policy"])
    with page.expect_download() as download:
        page.get_by_role("link", name="Download CSV").press("Enter")
    assert download.value.suggested_filename == f"{project.slug}-leaderboard.csv"


@LOOKS
def test_far_too_many_policies_load_behind_the_page(
    session: Session, open_page: OpenPage, monkeypatch: pytest.MonkeyPatch, width: int, dark: bool
) -> None:
    monkeypatch.setattr(routes, "AT_ONCE", 1)
    project, policies = made(session, [f"policy-of-a-rather-long-name-{'x' * (n % 30)}-{n}" for n in range(36)])
    many(session, project, policies[:8], [factories.user(session) for _ in range(8)], 8)
    session.commit()
    page = open_page("admin", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/leaderboard")
    ranked = page.get_by_role("region", name="Ranked policies").get_by_role("rowheader")
    expect(ranked).to_have_count(8, timeout=60_000)  # it is computed behind the page
    expect(page.get_by_text("and 23 more: not compared with any policy yet")).to_be_visible()
    assert fits(page)
    take_picture(page, f"leaderboard-many-{width}-{'dark' if dark else 'light'}")
