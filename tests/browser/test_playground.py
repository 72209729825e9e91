"""The playground as an operator uses it, in a real browser, the real worker answering for two real models."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import Comparison, Demonstration, PlaygroundTurn, RedTeamAttempt, Run
from app.settings import Settings
from tests import factories
from tests.browser.pictures import take_picture
from tests.browser.test_red_team import worker
from tests.red_team.attempts import project_with_model
from tests.trainer.conftest import build_model

OpenPage = Callable[..., Page]


def test_two_models_talk_blind_until_somebody_votes(
    open_page: OpenPage, session: Session, settings: Settings, tmp_path: Path
) -> None:
    for seed, name in enumerate(("old", "new")):
        build_model(tmp_path / name, seed=seed)
    project = project_with_model(session, str(tmp_path / "old"), generation={"max_new_tokens": 12})
    factories.published_rubric(session, project)
    factories.model(session, project, base=str(tmp_path / "new"), name="newcomer")
    session.commit()
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/playground")
    take_picture(page, "playground-list-1440")
    page.get_by_role("button", name="Start chat").click()
    page.get_by_label("Message to both models").fill("Which bread is best?\n\nSay **why**.")
    page.get_by_role("button", name="Send to both").click()
    expect(page.get_by_text("No worker is running")).to_have_count(2)
    page.evaluate("window.neverReloaded = true")
    with worker(settings):
        expect(page.get_by_role("button", name="Model A is better")).to_be_visible(timeout=60_000)
    assert page.evaluate("window.neverReloaded") is True
    expect(page.get_by_text("newcomer")).to_have_count(0)
    take_picture(page, "playground-blind-1440")
    page.get_by_role("button", name="Model B is better").click()
    expect(page.get_by_role("heading", name="newcomer")).to_be_visible()

    page.get_by_label("Next message to both models").fill("And to a child?")
    page.get_by_role("button", name="Send to both").click()
    with worker(settings):
        expect(page.get_by_role("button", name="Neither is better")).to_have_count(2, timeout=60_000)
    page.set_viewport_size({"width": 390, "height": 844})
    take_picture(page, "playground-two-turns-390")
    first, second = session.scalars(select(PlaygroundTurn).order_by(PlaygroundTurn.id)).all()
    assert first.vote == 1
    assert first.first
    assert first.second
    assert first.first["text"] != first.second["text"]  # two models with other weights
    assert second.vote is None
    assert {run.state for run in session.scalars(select(Run))} == {"succeeded"}

    page.get_by_role("button", name="Ask labelers about these two").click()
    expect(page.get_by_text("Labelers are asked about these two answers.")).to_be_visible()
    comparison = session.scalars(select(Comparison)).one()
    assert (comparison.state, comparison.purpose) == ("open", "train")

    card = page.locator(".card", has=page.get_by_role("heading", name="newcomer")).first
    card.get_by_text("Report a failure").click()
    card.get_by_label("How badly it failed").select_option("badly")
    card.get_by_role("button", name="Save as red-team attempt").click()
    expect(page.get_by_text("The answer was saved as a red-team attempt.")).to_be_visible()
    card.get_by_text("Correct it").click()
    take_picture(page, "playground-correct-390")
    card.get_by_label("Corrected answer").fill("Rye, for its crust.")
    card.get_by_role("button", name="Save as demonstration").click()
    expect(page.get_by_text("Your correction was saved as a demonstration")).to_be_visible()
    assert session.scalars(select(RedTeamAttempt.severity)).all() == [3]
    assert session.scalars(select(Demonstration.text)).all() == ["Rye, for its crust."]
