"""SQL of a model's history."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models import ModelVersion, Round, Run, Snapshot
from app.rounds.model_queries import adoptions, had_policies, line_of, policies


def model(session: Session, project_id: int, model_id: int) -> ModelVersion | None:
    return session.scalars(
        select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.id == model_id)
    ).one_or_none()


def by_name(session: Session, project_id: int, name: str) -> ModelVersion | None:
    """The newest model of that name."""
    found = select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.name == name)
    return session.scalars(found.order_by(ModelVersion.id.desc()).limit(1)).one_or_none()


__all__ = ["Origin", "adoptions", "chain", "children", "had_policies", "model", "policies"]


class Origin(NamedTuple):
    """A model, and the round and snapshot it came from; a base model has neither."""

    model: ModelVersion
    round: Round | None
    snapshot: Snapshot | None


def chain(session: Session, model_id: int) -> list[Origin]:
    """The model, its parent, the parent's parent and so on to the base model."""
    line = line_of(model_id)
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
