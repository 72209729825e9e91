"""What a reward model says of the comparisons it has read, stored beside what people said of them."""

from sqlalchemy import ARRAY, BigInteger, Boolean, Float, any_, func, literal, select, update
from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.models import Comparison, ModelVersion
from app.specs import REWARD_VIEWS, RewardView


def store_views(session: Session, store: ArtifactStore, model: ModelVersion) -> int:
    """Writes what a reward model's folder says of each comparison to `comparison.reward_p_b`; returns how many.

    A model without such a file, trained elsewhere, has none.
    """
    path = store.root / model.base / REWARD_VIEWS
    if not path.exists():
        return 0
    views = [RewardView.model_validate_json(line) for line in path.read_text().splitlines()]
    _write(session, model, views)
    return len(views)


def _write(session: Session, model: ModelVersion, views: list[RewardView]) -> None:
    """Two statements, however many there are."""
    ids = literal([view.comparison_id for view in views], ARRAY(BigInteger))
    # Locked in the order of their ids: two who write to many comparisons must not wait for each other in a circle.
    session.execute(
        select(func.count()).select_from(
            select(Comparison.id)
            .where(Comparison.id == any_(ids), Comparison.project_id == model.project_id)
            .order_by(Comparison.id)
            .with_for_update(key_share=True)
            .subquery()
        )
    )
    said = (
        func.unnest(
            ids,
            literal([view.p_b for view in views], ARRAY(Float)),
            literal([view.trained for view in views], ARRAY(Boolean)),
        )
        .table_valued("id", "p_b", "trained", name="said")
        .render_derived()
    )
    session.execute(
        update(Comparison)
        .where(Comparison.id == said.c.id, Comparison.project_id == model.project_id)
        .values(reward_p_b=said.c.p_b, reward_trained=said.c.trained, reward_model_id=model.id)
        .execution_options(synchronize_session=False)
    )
