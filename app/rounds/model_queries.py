"""SQL of a project's models: each model's ancestors, and which models have been policies."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, func, literal, select, union
from sqlalchemy.orm import Session, aliased

from app.models import AuditEvent, ModelVersion, Project, Round, Run, User


def line_of(model_id: Any) -> CTE:
    """Select a model and its ancestors up to the base model: id and depth (0 is the model itself)."""
    line = (
        select(ModelVersion.id, ModelVersion.parent_id, literal(0).label("depth"))
        .where(ModelVersion.id == model_id)
        .cte("line", recursive=True)
    )
    parent = aliased(ModelVersion)
    above = select(parent.id, parent.parent_id, line.c.depth + 1).join(line, line.c.parent_id == parent.id)
    return line.union_all(above)


def reference_behind(session: Session, model_id: int) -> int:
    """Return the nearest fine-tuned or base model among a model and its ancestors; the model itself if
    there is none."""
    line = line_of(model_id)
    query = select(line.c.id).join(ModelVersion, ModelVersion.id == line.c.id)
    query = query.where(ModelVersion.role.in_(("base", "sft"))).order_by(line.c.depth).limit(1)
    return session.scalar(query) or model_id


def digests_of(session: Session, locations: list[str]) -> dict[str, str]:
    """Return, by location, the digest of the model files that a run wrote there; other locations are left out."""
    location = func.coalesce(ModelVersion.adapter, ModelVersion.base)
    found = select(location, ModelVersion.digest).where(location.in_(locations), ModelVersion.digest.is_not(None))
    return {where: digest for where, digest in session.execute(found) if digest}


def round_of(session: Session, model: ModelVersion) -> Round | None:
    """Return the round that made a model; None for a model that was not trained here."""
    return session.scalar(select(Round).join(Run, Run.round_id == Round.id).where(Run.id == model.run_id))


def had_policies(session: Session, project_id: int) -> set[int]:
    """Return the models that the project has had as policies: adopted after a round, or the start of one."""
    of_project = Round.project_id == project_id
    adopted = select(Round.policy_after_id).where(
        of_project, Round.adopted.is_(True), Round.policy_after_id.is_not(None)
    )
    return set(session.scalars(union(adopted, select(Round.policy_before_id).where(of_project))))


def adoptions(session: Session, project_id: int, limit: int) -> Sequence[Any]:
    """Return how the project's policy changed, newest first: when, by whom (None: people's judgments), which model, and
    why."""
    query = (
        select(AuditEvent.at, User.name.label("by"), AuditEvent.details)
        .outerjoin(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id, AuditEvent.action == "model.adopted")
        .order_by(AuditEvent.id.desc())
    )
    return session.execute(query.limit(limit)).all()


def current_line(project_id: int) -> CTE:
    """Select `line_of` the project's policy."""
    return line_of(select(Project.policy_id).where(Project.id == project_id).scalar_subquery())
