"""The form of a new round, the samples while training and a model's page, as people see them."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from playwright.sync_api import Page, expect
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import Metric, ModelVersion, Project, Round, Run
from app.rounds import service
from app.rounds.service import samples_of
from tests import factories
from tests.browser.keys import press
from tests.browser.test_accessibility import serious
from tests.browser.test_rounds import take_picture
from tests.lineage.reports import report
from tests.lineage.test_model_page import REPORT, made
from tests.rounds.loop import decided, frozen, last_run, leave_files, make_project
from tests.rounds.test_adoption import judge
from tests.rounds.test_service import finish, start
from tests.rounds.test_training_samples import line

OpenPage = Callable[..., Page]
SIZES = pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])


@pytest.fixture
def project(session: Session) -> Project:
    project = make_project(session, train=24, heldout=3)
    session.commit()
    return project


def look(page: Page, name: str, width: int, dark: bool) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    take_picture(page, f"{name}-{width}-{'dark' if dark else 'light'}")


@SIZES
@pytest.mark.parametrize("algorithm", ["sft", "dpo", "ppo"])
def test_a_refused_round_keeps_what_was_typed(
    open_page: OpenPage, project: Project, width: int, dark: bool, algorithm: str
) -> None:
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/rounds/new?algorithm={algorithm}")
    look(page, f"new-{algorithm}", width, dark)
    if algorithm == "sft":
        expect(page.get_by_text("Fine-tuning needs 20 approved demonstrations")).to_be_visible()
        expect(page.get_by_role("button", name="Start round")).to_be_disabled()
        return
    page.locator("details.rare summary").first.click()
    page.get_by_label("LoRA rank").fill("7")
    page.locator("#epochs").fill("3")
    page.locator("form#new-round").evaluate("form => form.noValidate = true")
    page.locator("#batch_size").fill("0")
    page.get_by_role("button", name="Start round").click()
    expect(page.locator("#batch_size-error")).to_contain_text("greater than or equal to 1")
    expect(page.locator("#batch_size")).to_be_visible()  # its group is open
    expect(page.locator("#epochs")).to_have_value("3")
    expect(page.locator("#lora_rank")).to_have_value("7")
    look(page, f"new-{algorithm}-refused", width, dark)
    page.locator("#batch_size").fill("4")
    page.get_by_role("button", name="Start round").click()
    expect(page.get_by_role("heading", name="Round 1")).to_be_visible()


def test_the_numbers_follow_the_settings_before_the_start(
    open_page: OpenPage, session: Session, project: Project
) -> None:
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/rounds/new")
    read = page.locator(".stat", has_text="To train on").first.locator(".stat-value")
    expect(read).to_have_text("24")
    took = page.locator("#estimate strong").first.inner_text()
    page.get_by_text("All settings").click()
    page.locator("#train_limit").fill("21")
    page.locator("#train_limit").blur()
    expect(read).to_have_text("21")
    page.locator("#turns").fill("40")
    page.locator("#turns").blur()
    expect(page.locator("#estimate strong").first).not_to_have_text(took)
    page.get_by_text("By stage").click()
    expect(page.locator("#estimate")).to_contain_text("default rates of two CPU cores")


@SIZES
def test_the_form_begins_with_one_choice(
    open_page: OpenPage, session: Session, project: Project, width: int, dark: bool
) -> None:
    """What it reads, a strength, what it takes, the button; by the keyboard alone."""
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/rounds/new")
    look(page, "new", width, dark)
    controls = page.locator("main :is(input, select, button):visible")
    assert [control.get_attribute("value") for control in controls.all()] == ["gentle", "balanced", "strong", None]
    expect(page.get_by_label("Balanced")).to_be_checked()
    page.get_by_label("Balanced").focus()
    press(page, "ArrowDown")
    expect(page.get_by_label("Strong")).to_be_checked()
    press(page, "Enter")
    expect(page.get_by_role("heading", name="Round 1")).to_be_visible()
    expect(page.get_by_text("On-policy DPO, strong")).to_be_visible()
    config = session.scalars(select(Round.config)).one()
    assert (config["algorithm"], config["strength"]) == ("on_policy_dpo", "strong")


def test_a_wrong_setting_that_is_folded_away_is_shown(open_page: OpenPage, project: Project) -> None:
    page = open_page("operator")
    page.goto(f"/projects/{project.slug}/rounds/new")
    page.get_by_text("All settings").click()
    page.locator("details.rare summary").first.click()
    page.locator("#batch_size").fill("0")
    page.get_by_text("All settings").click()
    expect(page.locator("#batch_size")).to_be_hidden()
    page.get_by_role("button", name="Start round").click()
    expect(page.locator("#batch_size")).to_be_focused()  # the browser says what is wrong with it


def outcome(session: Session, store: ArtifactStore, project: Project, value: float, spread: float) -> Round:
    """A finished round whose reward model found this difference, with what its runs took."""
    before = project.policy_id
    metrics = {
        "eval_objective/scores": 0.4 + value,
        "eval_before/scores": 0.4,
        "eval_difference/scores": value,
        "eval_difference/scores_low": value - spread,
        "eval_difference/scores_high": value + spread,
        "eval_objective/kl_k3": 2.75,
        **{f"eval_{name}": 0.25 for name in ("finished", "repetition", "refusals")},
        **{f"eval_before/{name}": 0.5 for name in ("finished", "repetition", "refusals")},
        "eval_length": 31.5,
        "eval_before/length": 44.25,
    }
    round_ = start(session, store, project, "on_policy_dpo")
    assert round_.policy_before_id == before
    while round_.state != "done":
        run = last_run(session, round_)
        service.run_started(session, run)
        result = {"tokens": 61_234, "seconds": 187.5, "peak_memory": 2_345_678_901}
        if run.kind == "evaluate":
            result |= {"metrics": metrics}
            for name, number in metrics.items():
                for slice_ in ("", "domain=factual", "domain=safety"):
                    session.add(Metric(run_id=run.id, name=name, slice=slice_, step=0, value=number))
        if run.kind == "reward":
            session.add(Metric(run_id=run.id, name="eval_accuracy", step=1, value=0.71))
        leave_files(store, run)
        service.run_finished(session, store, run, result, "digest")
        session.flush()
    return round_


@SIZES
def test_a_round_ends_with_a_verdict_and_the_policy_can_be_changed(
    open_page: OpenPage, app: FastAPI, session: Session, project: Project, width: int, dark: bool
) -> None:
    store = app.state.store
    outcome(session, store, project, 0.42, 0.2)
    second = outcome(session, store, project, 0.05, 0.3)
    judge(session, project, second, won=6, lost=1)
    judge(session, project, second, won=12, lost=2, rival_id=second.reference_id)
    worse = outcome(session, store, project, -0.61, 0.25)
    judge(session, project, session.get_one(Round, worse.id), won=4, lost=22)
    session.commit()
    page = open_page("operator", "admin", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/rounds")
    expect(page.locator("tbody tr")).to_have_count(3)
    look(page, "rounds-much", width, dark)
    page.get_by_role("link", name="Round 1").click()
    expect(page.get_by_role("heading", name="Better, by the reward model alone")).to_be_visible()
    expect(page.get_by_text("People cannot judge it")).to_be_visible()
    expect(page.get_by_role("row", name="Reward 0.40 0.82 +0.42 (0.22 to 0.62)")).to_be_visible()
    expect(page.get_by_role("row", name="Policy 3 minutes 61,234 327 2.3 GB")).to_be_visible()
    look(page, "round-better", width, dark)
    page.goto(f"/projects/{project.slug}/rounds/2")
    expect(page.get_by_text("A verdict needs at least 10 prompts.")).to_be_visible()
    expect(page.get_by_text("Compared with the first policy: 86% of 14 prompts")).to_be_visible()
    look(page, "round-little", width, dark)
    page.goto(f"/projects/{project.slug}/rounds/3")
    expect(page.get_by_role("heading", name="Worse")).to_be_visible()
    expect(page.get_by_text("in 15% of 26 prompts")).to_be_visible()
    expect(page.get_by_text("The project kept policy-2")).to_be_visible()
    look(page, "round-worse", width, dark)
    page.get_by_role("button", name="Adopt policy").click()
    expect(page.get_by_label("Reason to adopt policy-3")).to_be_focused()  # the browser asks for it
    page.get_by_label("Reason to adopt policy-3").fill("It refuses less, and nobody minds the length.")
    page.get_by_role("button", name="Adopt policy").click()
    expect(page.get_by_text("policy-3 is the project's policy.")).to_be_visible()
    page.get_by_role("button", name="Back to the previous policy").click()
    expect(page.get_by_role("button", name="Adopt policy")).to_be_visible()
    if width == 390:
        page.get_by_role("button", name="Train").click()
    page.get_by_role("link", name="Models", exact=True).click()
    look(page, "models", width, dark)
    page.get_by_role("row", name="policy-1").get_by_role("button", name="Adopt again").click()
    expect(page.get_by_role("row", name="policy-1 the policy")).to_be_visible()
    expect(page.get_by_role("row", name="It refuses less, and nobody minds the length.")).to_be_visible()
    page.goto(f"/projects/{project.slug}/rounds/new?algorithm=grpo")
    look(page, "new-grpo", width, dark)


@SIZES
def test_pages_of_a_project_without_rounds(
    open_page: OpenPage, session: Session, project: Project, width: int, dark: bool
) -> None:
    page = open_page("operator", "admin", width=width, dark=dark)
    for path in ("rounds", "progress", "models"):
        page.goto(f"/projects/{project.slug}/{path}")
        look(page, f"{path}-empty", width, dark)


def training(app: FastAPI, session: Session, project: Project) -> None:
    round_ = factories.round_(session, project, number=1, algorithm="ppo", state="done", config={})
    run = factories.run(session, project, "ppo", round_id=round_.id, state="succeeded")
    session.commit()
    path = app.state.store.root / samples_of(run.id)
    path.parent.mkdir(parents=True)
    words = "The answer grows with every step, **as it should**, and says what was asked for. "
    lines: list[dict[str, Any]] = [
        line(step, prompt, words * (1 + (step + prompt) % 4), score=step / 7 - 0.4, finished=prompt != 2)
        for step in range(0, 18, 2)
        for prompt in range(13)
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert session.get(Run, run.id)


@SIZES
def test_samples_while_training_are_read_side_by_side(
    open_page: OpenPage, app: FastAPI, session: Session, project: Project, width: int, dark: bool
) -> None:
    training(app, session, project)
    page = open_page("admin", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/rounds/1")
    page.get_by_role("link", name="Samples while training").click()
    first = page.locator("article").first
    expect(first.get_by_role("heading")).to_have_text([f"Step {step}" for step in range(16, 4, -2)])
    look(page, "training-samples", width, dark)
    page.get_by_role("link", name="Older steps").click()
    expect(first.get_by_role("heading")).to_have_text(["Step 4", "Step 2", "Step 0"])
    page.get_by_role("link", name="domain: safety").click()
    expect(page.locator("article")).to_have_count(6)
    page.get_by_role("link", name="For the queue").click()
    expect(page.get_by_text("No samples here")).to_be_visible()


@SIZES
def test_a_models_page_shows_its_report(
    open_page: OpenPage, app: FastAPI, session: Session, project: Project, width: int, dark: bool
) -> None:
    base = session.get_one(ModelVersion, project.base_model_id)
    model = made(session, project, made(session, project, base, 1), 2)
    model.base, model.role = "models/run-7", "reward"
    model.card = {"round": 2, "snapshot": "ab" * 32, "result": {"eval_accuracy": 0.71, "train_pairs": 120}}
    session.commit()
    folder = app.state.store.root / "models/run-7"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(REPORT | report()))
    (folder / "README.md").write_text("# Reward model\n\nWhat it was trained on.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/models/{model.id}")
    expect(page.get_by_role("heading", name="Harmless edits")).to_be_visible()
    look(page, "reward-model", width, dark)
    assert serious(page) == []
    page.get_by_text("All figures of its report").click()
    expect(page.get_by_role("heading", name="Calibration: reliability")).to_be_visible()
    page.get_by_text("README of its folder").click()
    look(page, "model", width, dark)
    page.get_by_role("link", name="policy-1").click()
    expect(page.get_by_role("heading", name="policy-1")).to_be_visible()


@SIZES
def test_a_round_says_what_it_replayed(
    open_page: OpenPage, app: FastAPI, session: Session, project: Project, width: int, dark: bool
) -> None:
    store = app.state.store
    earlier = start(session, store, project)
    while earlier.state != "done":
        finish(session, store, earlier)
    labelers = [factories.user(session).id]
    for _ in range(5):
        decided(session, project, factories.prompt(session, project), labelers, preferences=(1,))
    session.commit()
    page = open_page("operator", width=width, dark=dark)
    page.goto(f"/projects/{project.slug}/rounds/new")
    expect(page.locator(".stat", has_text="To train on").first).to_contain_text("5 new + 24 earlier comparisons")
    page.get_by_role("button", name="Start round").click()
    expect(page.locator("h1 .badge")).to_have_text("freezing")
    expect(page.locator("[data-stage=freezing] .stage-note")).to_have_text("waiting for a worker")
    expect(page.locator(".stat", has_text="Reads")).to_contain_text("–")
    take_picture(page, f"round-freezing-{width}")
    frozen(session, store, session.scalars(select(Round).where(Round.number == 2)).one())
    session.commit()
    # The page learns of it by itself.
    expect(page.locator(".stat", has_text="Reads")).to_contain_text("5 new + 24 earlier comparisons, 3 held out")
    expect(page.locator("#round-facts")).to_contain_text("24 of round 1")
    look(page, "round", width, dark)
