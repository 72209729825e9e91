"""SQL of a model's history."""

from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session, aliased

from app.db import among
from app.models import Comparison, Judgment, ModelVersion, Round, Run, Snapshot, User
from app.rounds.model_queries import adoptions, had_policies, line_of
from app.rounds.snapshot_queries import PURPOSES


def model(session: Session, project_id: int, model_id: int) -> ModelVersion | None:
    return session.scalars(
        select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.id == model_id)
    ).one_or_none()


def by_name(session: Session, project_id: int, name: str) -> ModelVersion | None:
    """Return the newest model of that name."""
    found = select(ModelVersion).where(ModelVersion.project_id == project_id, ModelVersion.name == name)
    return session.scalars(found.order_by(ModelVersion.id.desc()).limit(1)).one_or_none()


__all__ = ["Origin", "Version", "adoptions", "chain", "children", "had_policies", "model", "versions"]


class Version(NamedTuple):
    """A model of the list, with its parent and the round that made it; a model that was brought in has neither."""

    model: ModelVersion
    parent: ModelVersion | None
    round: Round | None


PAGE = 100  # models of a page of the list


def versions(session: Session, project_id: int, before: int | None, only: Collection[int] | None) -> list[Version]:
    """The newest `PAGE` models of a project, reward models too, and one more, if there is one.

    Args:
        before: only models with a smaller id.
        only: only models with these ids.
    """
    parent = aliased(ModelVersion)
    found = (
        select(ModelVersion, parent, Round)
        .outerjoin(parent, parent.id == ModelVersion.parent_id)
        .outerjoin(Run, Run.id == ModelVersion.run_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .where(ModelVersion.project_id == project_id)
        .order_by(ModelVersion.id.desc())
        .limit(PAGE + 1)
    )
    if before is not None:
        found = found.where(ModelVersion.id < before)
    if only is not None:
        found = found.where(among(ModelVersion.id, only))
    return [Version(*row) for row in session.execute(found)]


class Origin(NamedTuple):
    """A model and the round and snapshot it came from; a base model has neither."""

    model: ModelVersion
    round: Round | None
    snapshot: Snapshot | None


def chain(session: Session, model_id: int) -> list[Origin]:
    """Return the model, its parent, the parent's parent and so on, up to the base model."""
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


def agreement_by_prompt(session: Session, project_id: int, at: datetime) -> list[tuple[float, int]]:
    """Return, for each prompt, the summed agreement of its comparisons and how many comparisons these are.

    A comparison's agreement is the share of pairs of labelers who chose the same side. Only comparisons count that at
    least two labelers had judged by `at`. A tie counts as a random side, so it agrees with any answer by one half.
    Comparisons still in dispute count too; judgments by AI judges do not.
    """
    stood = or_(Judgment.superseded_at.is_(None), Judgment.superseded_at > at)
    said = (
        select(
            Comparison.prompt_id,
            func.count().filter(Judgment.preference < 0).label("a"),
            func.count().filter(Judgment.preference > 0).label("b"),
            func.count().label("n"),
        )
        .join(Judgment, Judgment.comparison_id == Comparison.id)
        .join(User, User.id == Judgment.labeler_id)
        .where(Comparison.project_id == project_id, Comparison.purpose.in_(PURPOSES), Comparison.state != "withdrawn")
        .where(Judgment.preference.is_not(None), Judgment.created_at <= at, stood, User.kind != "ai_judge")
        .group_by(Comparison.id)
        .having(func.count() > 1)
        .subquery()
    )
    a, b, n = said.c.a, said.c.b, said.c.n
    sided = a + b
    alike = a * (a - 1) + b * (b - 1) + (n * (n - 1) - sided * (sided - 1)) / 2.0
    query = select(func.sum(alike / (n * (n - 1))), func.count()).group_by(said.c.prompt_id)
    return [(float(total), count) for total, count in session.execute(query)]


def children(session: Session, model_id: int) -> list[ModelVersion]:
    query = select(ModelVersion).where(ModelVersion.parent_id == model_id)
    return list(session.scalars(query.order_by(ModelVersion.id)))
