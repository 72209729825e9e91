"""A reward model's predictions for the comparisons it has read, stored beside people's judgments."""

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.columns import load_columns
from app.models import ModelVersion
from app.rows import REWARD_VIEWS, RewardView

READ = "comparison JOIN reward_view AS said ON comparison.id = said.id AND comparison.project_id = :project"


def store_views(session: Session, store: ArtifactStore, model: ModelVersion) -> int:
    """Write a reward model's prediction for each comparison to `comparison.reward_p_b`; return how many.

    A model that was trained elsewhere has no file of predictions. Objects loaded before are not refreshed.
    """
    path = store.root / model.base / REWARD_VIEWS
    if not path.exists():
        return 0
    views = [RewardView.model_validate_json(line) for line in path.read_text().splitlines()]
    _write(session, model, views)
    return len(views)


def _write(session: Session, model: ModelVersion, views: list[RewardView]) -> None:
    """Write the predictions with three statements, however many there are."""
    columns = {
        "id": np.array([view.comparison_id for view in views], dtype=np.int64),
        "p_b": np.array([view.p_b for view in views], dtype=np.float64),
        "trained": np.array([view.trained for view in views], dtype=np.int64),
    }
    load_columns(session, "reward_view", columns)
    named = {"project": model.project_id, "model": model.id}
    # Locked by ascending id, so that transactions that write many comparisons cannot deadlock.
    session.execute(text(f"SELECT FROM {READ} ORDER BY comparison.id FOR NO KEY UPDATE OF comparison"), named)
    session.execute(
        text(
            "UPDATE comparison SET reward_p_b = said.p_b, reward_trained = said.trained > 0, reward_model_id = :model"
            f" FROM (SELECT said.* FROM {READ}) AS said WHERE comparison.id = said.id"
        ),
        named,
    )
