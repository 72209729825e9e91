"""A reward model's views of its snapshot's comparisons are stored with these comparisons."""

from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.rounds import service
from app.rounds.reward_views import store_views
from app.rows import REWARD_VIEWS, RewardView
from tests import factories
from tests.rounds.loop import config, frozen, last_run, make_project


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def leave(store: ArtifactStore, location: str, *views: tuple[int, float, bool]) -> None:
    """Write what the recipe writes with the model."""
    lines = [RewardView(comparison_id=id_, p_b=p, trained=trained).model_dump_json() for id_, p, trained in views]
    with store.folder(location) as folder:
        (folder / REWARD_VIEWS).write_text("\n".join(lines) + "\n")


def test_they_are_stored_and_replaced_by_a_newer_models(session: Session, store: ArtifactStore) -> None:
    project = factories.project(session)
    first, second, unread = (factories.comparison(session, project) for _ in range(3))
    elsewhere = factories.comparison(session)
    models = [factories.model(session, project, "reward", base=f"models/{name}") for name in ("old", "new", "bare")]
    leave(store, "models/old", (first.id, 0.9, True), (second.id, 0.25, False), (elsewhere.id, 0.5, True))
    leave(store, "models/new", (second.id, 0.75, True))
    assert store_views(session, store, models[0]) == 3
    assert store_views(session, store, models[1]) == 1
    assert store_views(session, store, models[2]) == 0  # brought along from elsewhere, without such a file
    session.expire_all()
    assert (first.reward_p_b, first.reward_trained, first.reward_model_id) == (0.9, True, models[0].id)
    assert (second.reward_p_b, second.reward_trained, second.reward_model_id) == (0.75, True, models[1].id)
    assert (unread.reward_p_b, unread.reward_model_id) == (None, None)
    assert (elsewhere.reward_p_b, elsewhere.reward_model_id) == (None, None)


def test_a_finished_reward_run_stores_them(session: Session, store: ArtifactStore) -> None:
    project = make_project(session)
    round_ = service.start(session, store, project, factories.user(session, "operator"), config())
    frozen(session, store, round_)
    run = last_run(session, round_)
    comparison = factories.comparison(session, project)
    leave(store, service.output_of(run.id), (comparison.id, 0.125, False))
    service.run_started(session, run)
    service.run_finished(session, store, run, {}, "digest")
    session.refresh(comparison)
    assert (comparison.reward_p_b, comparison.reward_model_id) == (0.125, round_.reward_model_id)
