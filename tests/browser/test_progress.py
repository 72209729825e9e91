"""The Progress page and two rounds beside each other, as people see them; a chart saved as PNG."""

import random
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy.orm import Session

from app.models import Project
from tests import factories
from tests.browser.test_accessibility import serious
from tests.browser.test_round_pages import look
from tests.progress.scenes import add_round, answer, best_of, evaluation, judge, snapshot

OpenPage = Callable[..., Page]
SIZES = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])


@pytest.fixture
def project(session: Session) -> Project:
    return factories.project(session)


def little(session: Session, project: Project) -> None:
    """Two rounds, with judgments on a few slices."""
    people = [factories.user(session) for _ in range(2)]
    prompts = [factories.prompt(session, project, split="heldout", domain="factual") for _ in range(2)]
    for number, difference in ((1, 0.42), (2, 0.12)):
        measured = best_of((1, 0.1), (2, 0.5), (4, 0.9), gain=0.6 * number)
        metrics = evaluation(difference, longer=15.0 * (number - 1)) | measured | {"eval_objective/kl_k3": 3.0 * number}
        slices = {"domain=factual": evaluation(0.3), "domain=safety": evaluation(-0.3, 0.2 * number, prompts=3)}
        round_ = add_round(session, project, number, metrics, slices, config={"beta": 0.1 * number, "epochs": 2})
        judge(session, project, round_, [1] * (10 * number), labelers=people, tokens=(50, 40), domain="factual")
        judge(session, project, round_, [-1] * 6 * number, labelers=people, tokens=(30, 40), domain="safety")
        judge(session, project, round_, [1], labelers=people, domain="chat")
        read = [factories.comparison(session, project).id for _ in range(2 + number)]
        snapshot(session, round_, read, new=2)
        for prompt in prompts:
            answer(
                session, project, round_, prompt.id, f"The answer of round {number}, which goes on for a while. " * 8
            )
    session.commit()


def much(session: Session, project: Project) -> None:
    """Thirty rounds, the last ones with fifty slices."""
    numbers = random.Random(0)
    short = {name: value for name, value in evaluation(0.0).items() if "scores" in name or "prompts" in name}
    for number in range(1, 31):
        change = numbers.gauss(0.1, 0.2)
        metrics = evaluation(change) | {"eval_objective/kl_k3": 1.5 + number / 2 + numbers.random()}
        metrics |= best_of((1, 0.0), (2, 0.5), (4, 1.0), (8, 1.4), (16, 1.8), gain=(number / 3) ** 0.5)
        slices = {}
        for n in range(50 if number > 27 else 0):
            change = numbers.gauss(0.1, 0.3)
            ends = {"eval_difference/scores_low": change - 0.3, "eval_difference/scores_high": change + 0.3}
            slices[f"domain=a_domain_with_a_long_name_{n}"] = short | {"eval_difference/scores": change} | ends
        round_ = add_round(session, project, number, metrics, slices)
        if number > 27:
            judge(session, project, round_, [1] * 7 + [-1] * 5, domain="a_domain_with_a_long_name_1")
    session.commit()


@SIZES
@pytest.mark.parametrize("scene", [little, much])
def test_progress_fits_the_screen(
    open_page: OpenPage, session: Session, project: Project, scene: Callable[..., None], width: int, dark: bool
) -> None:
    scene(session, project)
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/progress")
    expect(page.locator(".drawing")).to_have_count(2)
    look(page, f"progress-{scene.__name__}", width, dark)
    assert serious(page) == []
    page.get_by_role("link", name="Reward difference").click()
    expect(page.get_by_role("link", name="Reward difference")).to_have_attribute("aria-current", "true")
    look(page, f"progress-{scene.__name__}-reward", width, dark)
    page.get_by_role("link", name="Compare two rounds").click()
    expect(page.get_by_role("heading", name="The same prompts, answered by both")).to_be_visible()
    look(page, f"compare-{scene.__name__}", width, dark)
    assert serious(page) == []


def test_a_chart_is_saved_as_png_and_svg(open_page: OpenPage, session: Session, project: Project) -> None:
    little(session, project)
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/progress")
    for name in ("over-rounds", "slices", "frontier"):
        section = page.locator("section", has=page.locator(f'a[href*="/{name}.svg"]'))
        with page.expect_download() as saved:
            section.get_by_role("link", name="PNG").click()
        assert saved.value.suggested_filename == f"{name}.png"
        content = saved.value.path().read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
        with page.expect_download() as drawn:
            section.get_by_role("link", name="SVG").click()
        size = f'width="{width // 2}" height="{height // 2}"'
        assert size in drawn.value.path().read_text()
