"""SQL of the models of a project: what each came from, and which of them a policy has learned from."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, func, literal, select, union
from sqlalchemy.orm import Session, aliased

from app.models import AuditEvent, ModelVersion, Project, Round, Run, User


def line_of(model_id: Any) -> CTE:
    """A model, its parent, the parent's parent and so on to the base model: id and depth (0 is the model itself)."""
    line = (
        select(ModelVersion.id, ModelVersion.parent_id, literal(0).label("depth"))
        .where(ModelVersion.id == model_id)
        .cte("line", recursive=True)
    )
    parent = aliased(ModelVersion)
    above = select(parent.id, parent.parent_id, line.c.depth + 1).join(line, line.c.parent_id == parent.id)
    return line.union_all(above)


def reference_behind(session: Session, model_id: int) -> int:
    """The nearest fine-tuned or base model in a model's line, itself included; the model where there is none."""
    line = line_of(model_id)
    query = select(line.c.id).join(ModelVersion, ModelVersion.id == line.c.id)
    query = query.where(ModelVersion.role.in_(("base", "sft"))).order_by(line.c.depth).limit(1)
    return session.scalar(query) or model_id


def digests_of(session: Session, locations: list[str]) -> dict[str, str]:
    """By location: the digest of the files that a run wrote there, of those of these locations that hold its model."""
    location = func.coalesce(ModelVersion.adapter, ModelVersion.base)
    found = select(location, ModelVersion.digest).where(location.in_(locations), ModelVersion.digest.is_not(None))
    return {where: digest for where, digest in session.execute(found) if digest}


def round_of(session: Session, model: ModelVersion) -> Round | None:
    """The round that made a model; none of a model that was brought in."""
    return session.scalar(select(Round).join(Run, Run.round_id == Round.id).where(Run.id == model.run_id))


def had_policies(session: Session, project_id: int) -> set[int]:
    """The models that were adopted after a round, or that a round began with: the project has had them as policies."""
    of_project = Round.project_id == project_id
    adopted = select(Round.policy_after_id).where(
        of_project, Round.adopted.is_(True), Round.policy_after_id.is_not(None)
    )
    return set(session.scalars(union(adopted, select(Round.policy_before_id).where(of_project))))


def adoptions(session: Session, project_id: int, limit: int) -> Sequence[Any]:
    """How the project's policy changed, newest first: when, who did it (none: people's judgments), which model, why."""
    query = (
        select(AuditEvent.at, User.name.label("by"), AuditEvent.details)
        .outerjoin(User, User.id == AuditEvent.actor_id)
        .where(AuditEvent.project_id == project_id, AuditEvent.action == "model.adopted")
        .order_by(AuditEvent.id.desc())
    )
    return session.execute(query.limit(limit)).all()


def current_line(project_id: int) -> CTE:
    """`line_of` the project's policy."""
    return line_of(select(Project.policy_id).where(Project.id == project_id).scalar_subquery())
