"""SQL of a model's history."""

from typing import NamedTuple

from sqlalchemy import literal, select
from sqlalchemy.orm import Session, aliased

from app.models import ModelVersion, Round, Run, Snapshot


def model(session: Session, project_id: int, model_id: int) -> ModelVersion | None:
    return session.scalars(
        select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.id == model_id)
    ).one_or_none()


class Origin(NamedTuple):
    """A model, and the round and snapshot it came from; a base model has neither."""

    model: ModelVersion
    round: Round | None
    snapshot: Snapshot | None


def chain(session: Session, model_id: int) -> list[Origin]:
    """The model, its parent, the parent's parent and so on to the base model."""
    start = select(ModelVersion.id, ModelVersion.parent_id, literal(0).label("depth")).where(
        ModelVersion.id == model_id
    )
    line = start.cte("line", recursive=True)
    parent = aliased(ModelVersion)
    line = line.union_all(
        select(parent.id, parent.parent_id, line.c.depth + 1).join(line, line.c.parent_id == parent.id)
    )
    found = (
        select(ModelVersion, Round, Snapshot)
        .join(line, line.c.id == ModelVersion.id)
        .outerjoin(Run, Run.id == ModelVersion.run_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .outerjoin(Snapshot, Snapshot.id == Round.snapshot_id)
        .order_by(line.c.depth)
    )
    return [Origin(*row) for row in session.execute(found)]


def children(session: Session, model_id: int) -> list[ModelVersion]:
    query = select(ModelVersion).where(ModelVersion.parent_id == model_id)
    return list(session.scalars(query.order_by(ModelVersion.id)))
