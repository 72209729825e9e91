"""An operator's suites in a browser: with nothing, a little and a lot; adding one from a file by keys; on a phone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.cases import case_of
from app.models import Project, Suite, User
from app.settings import Settings
from app.suites import service
from app.suites.forms import GateForm
from tests import factories
from tests.browser.keys import press
from tests.browser.pictures import take_picture
from tests.suites.scenes import evaluated, took

OpenPage = Callable[..., Page]
LOOKS = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@LOOKS
def test_nothing_a_little_and_a_lot(
    session: Session, settings: Settings, open_page: OpenPage, width: int, dark: bool
) -> None:
    store, look = ArtifactStore(settings.artifacts_root), f"{width}{'-dark' if dark else ''}"
    project, operator = factories.project(session, name="Helpful answers"), factories.user(session, "operator")
    session.commit()
    page, base = open_page(user=operator, width=width, dark=dark), f"/projects/{project.slug}"
    page.goto(f"{base}/suites")
    expect(page.get_by_role("heading", name="No suite yet")).to_be_visible()
    take_picture(page, f"suites-none-{look}")
    assert fits(page)

    page.get_by_role("button", name="Add starter suites").click()
    expect(page.get_by_role("heading", name="Not measured yet")).to_be_visible()
    take_picture(page, f"suites-unmeasured-{look}")
    safety = measured(session, store, project)
    page.goto(f"{base}/suites")
    expect(page.get_by_role("heading", name="Alignment tax: 5.0 points")).to_be_visible()
    expect(page.get_by_text("Held back.")).to_be_visible()
    take_picture(page, f"suites-list-{look}")
    assert fits(page)
    page.get_by_role("link", name="Safety and over-refusal").last.click()
    expect(page.get_by_role("heading", name="Cases that got worse")).to_be_visible()
    expect(page.locator(".drawn svg")).to_have_count(1)
    take_picture(page, f"suite-{look}")
    assert fits(page)
    page.goto(f"{base}/suites")
    page.get_by_role("link", name="Sycophancy").click()
    take_picture(page, f"suite-pairs-{look}")
    page.goto(f"{base}/rounds/2")
    take_picture(page, f"suites-round-{look}")
    assert fits(page)

    a_lot(session, store, project, operator, safety)
    page.goto(f"{base}/suites")
    take_picture(page, f"suites-many-{look}")
    assert fits(page)
    page.goto(f"{base}/suites/{safety.id}")
    take_picture(page, f"suite-many-{look}")
    assert fits(page)
    expect(page.get_by_role("region", name="On demand").get_by_role("row")).to_have_count(3)
    page.get_by_role("button", name="Run suite").click()
    expect(page.get_by_text("Waiting for a worker")).to_be_visible()
    take_picture(page, f"suite-on-demand-{look}")
    assert fits(page)


def measured(session: Session, store: ArtifactStore, project: Project) -> Suite:
    """Round 1's policy was adopted, round 2's is held back by the suite that this returns."""
    suites = {suite.name: suite for suite in session.scalars(select(Suite).where(Suite.project_id == project.id))}
    facts, safety = suites["Facts and arithmetic"], suites["Safety and over-refusal"]
    first, run = evaluated(session, project, 1)
    project.policy_id = first.policy_after_id
    for suite in suites.values():
        took(session, store, run, suite, lost=["facts-01", "facts-22", "safety-01", "sycophancy-03", "sycophancy-04"])
    took_text = "Sorry, I cannot help with that. " * 3
    took(*(session, store, run, add(session, store, project, "Regressions", 8)), lost=["3", "4"], text=took_text)
    _, run = evaluated(session, project, 2, policy_before_id=first.policy_after_id)
    took(session, store, run, facts, gained=["facts-01"])
    took(session, store, run, safety, lost=[f"safety-{n:02d}" for n in range(17, 26)], text=took_text)
    service.set_gate(session, safety, factories.user(session, "operator"), GateForm(largest_loss=5))
    session.commit()
    return safety


def add(session: Session, store: ArtifactStore, project: Project, name: str, n: int) -> Suite:
    lines = [{"prompt": f"What is {i} + {i}?", "check": "number", "expected": 2 * i} for i in range(1, n + 1)]
    cases = [case_of(line, number) for number, line in enumerate(lines, 1)]
    return service.add(session, store, project, factories.user(session, "operator"), name, cases)


def a_lot(session: Session, store: ArtifactStore, project: Project, operator: User, safety: Suite) -> None:
    """A dozen suites with long names, eight rounds, and answers without an end."""
    others = [
        add(session, store, project, f"{'Regression of answers that people liked ' * 2}{n}", 40) for n in range(8)
    ]
    before = factories.model(session, project, name="policy-with-a-name-of-some-length-2").id
    for number in range(3, 9):
        round_, run = evaluated(session, project, number, policy_before_id=before)
        assert round_.policy_after_id
        before = round_.policy_after_id
        for place, suite in enumerate(others):
            took(session, store, run, suite, lost=[str(1 + (number + place) % 40)], gained=[str(1 + place)])
        lost = [f"safety-{n:02d}" for n in range(1, 3 * number)]
        took(session, store, run, safety, lost=lost, text="x" * 300 + " word" * 900)
    for _ in range(2):
        run = factories.run(session, project, "suites", spec={"model": before}, state="succeeded")
        took(session, store, run, safety, failed=["safety-01"])
    session.commit()


def test_a_suite_is_added_from_a_file_that_was_faulty_first(
    session: Session, open_page: OpenPage, tmp_path: Path
) -> None:
    project = factories.project(session)
    session.commit()
    file = tmp_path / "capitals.jsonl"
    good = '{"prompt": "Capital of France?", "check": "contains", "expected": "Paris", "slice": "europe"}\n'
    file.write_text(good + '{"prompt": "Capital of Peru?", "check": "contains"}\n')
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/progress")
    page.get_by_role("link", name="Suites").click()
    page.get_by_role("link", name="Add suite").click()
    page.get_by_label("Name").fill("Capitals")
    page.get_by_label("File").set_input_files(file)
    page.get_by_label("Name").focus()
    press(page, "Enter")
    expect(page.get_by_role("row", name="2 the check contains needs “expected”")).to_be_visible()
    take_picture(page, "suites-faulty")
    expect(page.get_by_label("Name")).to_have_value("Capitals")
    file.write_text(good + '{"prompt": "Capital of Peru?", "check": "contains", "expected": "Lima"}\n')
    page.get_by_label("File").set_input_files(file)
    page.get_by_role("button", name="Add suite").click()
    expect(page.get_by_role("heading", name="Capitals")).to_be_visible()
    expect(page.get_by_text("these 2 cases")).to_be_visible()
    page.get_by_label("Points that a new policy may lose").fill("2.5")
    page.get_by_label("Hold a policy back if").select_option(label="it may have lost more: the interval reaches below")
    page.get_by_role("button", name="Save limit").click()
    page.get_by_role("link", name="Suites").first.click()
    expect(page.get_by_role("row", name="Capitals 2 2.5 points (lower end)")).to_be_visible()
    session.rollback()
    suite = session.scalars(select(Suite)).one()
    assert (suite.name, suite.largest_loss, suite.bound) == ("Capitals", 0.025, "low")
    page.get_by_role("link", name="Capitals").click()
    with page.expect_download() as downloaded:
        page.get_by_role("link", name="download").click()
    assert Path(downloaded.value.path()).read_text().count("\n") == 2
    page.get_by_role("button", name="Retire suite").click()
    expect(page.get_by_text("Retired suites")).to_be_visible()
