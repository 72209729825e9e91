"""An operator starts a round, watches its curves grow without reloading, and cancels another one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.db import make_session_factory
from app.models import Project, Round, Run
from app.rounds import service
from app.settings import Settings
from tests.browser.pictures import take_picture
from tests.rounds.loop import frozen, last_run, make_project
from tests.trainer.conftest import build_model
from trainer.service.recording import RunRecorder
from trainer.service.worker import work_until_empty

OpenPage = Callable[..., Page]


@pytest.fixture
def project(session: Session, tmp_path: Path) -> Project:
    build_model(tmp_path / "model")
    project = make_project(session, str(tmp_path / "model"), train=20, heldout=3)
    session.commit()
    return project


@contextmanager
def worker(settings: Settings) -> Iterator[threading.Thread]:
    """The real worker, in another thread, until the queue is empty."""
    thread = threading.Thread(target=work_until_empty, args=(settings, settings.database_url))
    thread.start()
    yield thread
    thread.join(timeout=180)
    assert not thread.is_alive()


def start_round(page: Page, project: Project, **settings: str) -> None:
    """DPO, the quickest."""
    page.goto(f"/projects/{project.slug}/rounds")
    page.get_by_role("link", name="Start a round").click()
    page.get_by_text("All settings").click()
    page.get_by_role("link", name="DPO", exact=True).click()
    for label, value in settings.items():
        page.locator(f"#{label}").fill(value)
    page.get_by_role("button", name="Start round").click()
    expect(page.get_by_role("heading", name="Round 1")).to_be_visible()


def test_a_real_round_is_watched_to_its_end(
    open_page: OpenPage, session: Session, settings: Settings, project: Project
) -> None:
    page = open_page("operator", "admin")
    start_round(page, project, learning_rate="0.002", epochs="3", prompts="8", max_new_tokens="8")
    take_picture(page, "round-waiting")
    expect(page.locator("[data-stage=freezing] .stage-state")).to_have_text("queued")
    page.evaluate("window.neverReloaded = true")
    with worker(settings):
        expect(page.locator("h1 .badge")).to_have_text("done", timeout=180_000)
    expect(page.locator("[data-stage=evaluating] .stage-state")).to_have_text("succeeded")
    expect(page.get_by_text("The evaluation had fewer than 5 prompts")).to_be_visible()  # the verdict came by itself
    expect(page.get_by_text("policy-1 takes its place once people are shown to prefer it.")).to_be_visible()
    assert page.evaluate("window.neverReloaded") is True
    curves = page.locator("figure", has_text="Policy: loss").locator(".chart-summary")
    expect(curves).to_contain_text("loss")
    assert page.locator(".plot canvas").count() == 6
    expect(page.get_by_text("New against previous policy")).to_have_count(0)  # the old policy never answered
    expect(page.locator("summary", has_text="Cancel round")).to_have_count(0)
    expect(page.locator("#round-facts")).to_contain_text("policy-1")
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if width == 390 else "light")
        for path in ("rounds/1", "rounds", "progress", "samples", "rounds/new?algorithm=ppo"):
            page.goto(f"/projects/{project.slug}/{path}")
            page.wait_for_load_state("networkidle")
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
            take_picture(page, f"{path.partition('?')[0].replace('/', '-')}-{width}")


def test_curves_grow_without_reloading(
    open_page: OpenPage, engine: Engine, session: Session, project: Project, tmp_path: Path
) -> None:
    page = open_page("operator")
    start_round(page, project)
    page.evaluate("window.neverReloaded = true")
    expect(page.get_by_text("No worker is running")).to_be_visible()
    session.execute(text("INSERT INTO procrastinate_workers (last_heartbeat) VALUES (now() + interval '1 day')"))
    round_ = frozen(session, ArtifactStore(tmp_path), session.scalars(select(Round)).one())
    run = last_run(session, round_)
    service.run_started(session, run)
    session.commit()
    assert run.started_at is not None
    recorder = RunRecorder(
        make_session_factory(engine), run.id, run.started_at, threading.Event(), ArtifactStore(tmp_path)
    )
    summary = page.locator("figure", has_text="Reward model: loss").locator(".chart-summary")
    for step in range(1, 4):
        recorder.metrics(step, {"loss": 1 / step, "accuracy": 0.5})
        recorder.progress(step, 10, "training the reward model")
        recorder.flush()
        expect(summary).to_contain_text(f"loss {round(1 / step, 3):g}")
        expect(page.locator("[data-stage=reward] .stage-note")).to_contain_text(
            f"{step} of 10 training the reward model, "
        )
    expect(page.get_by_text("No worker is running")).to_be_hidden()
    expect(summary).to_contain_text("training loss 0.333 at step 3, from 1")
    expect(summary.get_by_title("loss", exact=True)).to_be_visible()  # the metric's own name is the tooltip
    expect(page.locator("[data-stage=reward] .stage-state")).to_have_text("running")
    take_picture(page, "round-running-1440")

    # The worker died and the run begins anew: its old curve goes.
    service.run_started(session, run)
    session.commit()
    session.execute(Run.__table__.metadata.tables["metric"].delete())
    session.commit()
    assert run.started_at is not None
    recorder = RunRecorder(
        make_session_factory(engine), run.id, run.started_at, threading.Event(), ArtifactStore(tmp_path)
    )
    recorder.metrics(1, {"loss": 0.9})
    recorder.flush()
    expect(summary).to_have_text("training loss 0.9")

    page.context.set_offline(True)
    expect(page.get_by_text("The service does not answer")).to_be_visible()
    page.context.set_offline(False)
    expect(page.get_by_text("The service does not answer")).to_be_hidden()
    assert page.evaluate("window.neverReloaded") is True


def test_a_running_round_is_cancelled(
    open_page: OpenPage, session: Session, settings: Settings, project: Project
) -> None:
    page = open_page("operator")
    # Far too many epochs to end by itself during the test.
    start_round(page, project, epochs="100")
    page.evaluate("window.neverReloaded = true")
    with worker(settings):
        expect(page.locator("[data-stage=policy] .stage-state")).to_have_text("running", timeout=180_000)
        page.locator("summary", has_text="Cancel round").click()
        page.get_by_role("button", name="Cancel round 1").click()
        expect(page.locator("h1 .badge")).to_have_text("cancelled", timeout=180_000)
    expect(page.locator("[data-stage=policy] .stage-state")).to_have_text("cancelled")
    session.expire_all()
    assert session.scalars(select(Round.state)).one() == "cancelled"
    page.get_by_role("link", name="Rounds").click()
    page.get_by_role("link", name="Start a round").click()
    expect(page.get_by_role("button", name="Start round")).to_be_enabled()


def test_a_failed_round_says_why_and_is_retried(
    open_page: OpenPage, session: Session, settings: Settings, project: Project, tmp_path: Path
) -> None:
    (tmp_path / "model").rename(tmp_path / "gone")
    page = open_page("operator")
    start_round(page, project, prompts="4", max_new_tokens="4")
    with worker(settings):
        expect(page.get_by_text("The round failed.")).to_be_visible(timeout=180_000)
    expect(page.locator("#round-head")).to_contain_text("does not exist")
    take_picture(page, "round-failed-1440")
    (tmp_path / "gone").rename(tmp_path / "model")
    other_tab = page.context.new_page()
    other_tab.goto(page.url)
    other_tab.get_by_role("button", name="Retry the stage that failed").click()
    expect(other_tab.locator("h1 .badge")).to_have_text("reward")
    page.bring_to_front()  # one comes back to the first tab, which was hidden or not, as the browser likes
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("h1 .badge")).to_have_text("reward")
    other_tab.close()
    with worker(settings):
        expect(page.locator("h1 .badge")).to_have_text("done", timeout=180_000)
