"""SQL of one comparison under review, with everything known about it."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from app.access.queries import may_label
from app.domain.slices import MOST_LISTED
from app.models import (
    Adjudication,
    AuditEvent,
    Comparison,
    Completion,
    Judgment,
    LabelerGroup,
    LabelerGroupMember,
    Lease,
    ModelVersion,
    ProjectLabeler,
    Prompt,
    Rubric,
    User,
)
from app.review.queues import about


class Response(NamedTuple):
    text: str
    source: str  # the model's name, or where it was imported from


class Case(NamedTuple):
    """A comparison with everything that a reviewer sees.

    asked_again: the comparison that replaced it under a newer rubric. before: the comparison it replaced.
    before_version: the rubric version of `before`.
    """

    comparison: Comparison
    prompt: Prompt
    rubric: Rubric
    a: Response
    b: Response
    reward_model: str | None
    asked_again: int | None
    before: int | None
    before_version: int | None


def case(session: Session, project_id: int, comparison_id: int) -> Case | None:
    a, b = aliased(Completion), aliased(Completion)
    model_a, model_b, reward_model = aliased(ModelVersion), aliased(ModelVersion), aliased(ModelVersion)
    newer, older, older_rubric = aliased(Comparison), aliased(Comparison), aliased(Rubric)
    found = (
        select(
            Comparison,
            Prompt,
            Rubric,
            a.text,
            func.coalesce(model_a.name, a.source),
            b.text,
            func.coalesce(model_b.name, b.source),
            reward_model.name,
            newer.id,
            older.id,
            older_rubric.version,
        )
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(Rubric, Rubric.id == Comparison.rubric_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .outerjoin(model_a, model_a.id == a.model_version_id)
        .outerjoin(model_b, model_b.id == b.model_version_id)
        .outerjoin(reward_model, reward_model.id == Comparison.reward_model_id)
        .outerjoin(newer, newer.relabel_of_id == Comparison.id)
        .outerjoin(older, older.id == Comparison.relabel_of_id)
        .outerjoin(older_rubric, older_rubric.id == older.rubric_id)
        .where(Comparison.id == comparison_id, Comparison.project_id == project_id)
    )
    row = session.execute(found).one_or_none()
    if row is None:
        return None
    comparison, prompt, rubric, text_a, source_a, text_b, source_b, *rest = row
    return Case(comparison, prompt, rubric, Response(text_a, source_a), Response(text_b, source_b), *rest)


class Said(NamedTuple):
    """A judgment and its labeler; `reliability` is None if it was not measured."""

    judgment: Judgment
    labeler: str
    kind: str
    reliability: float | None


def judgments(session: Session, comparison: Comparison) -> list[Said]:
    """Return all judgments, including superseded ones, in the order they were given."""
    found = (
        select(Judgment, User.name, User.kind, ProjectLabeler.reliability)
        .join(User, User.id == Judgment.labeler_id)
        .outerjoin(
            ProjectLabeler,
            (ProjectLabeler.labeler_id == User.id) & (ProjectLabeler.project_id == comparison.project_id),
        )
        .where(Judgment.comparison_id == comparison.id)
        .order_by(Judgment.created_at, Judgment.id)
    )
    return [Said(*row) for row in session.execute(found)]


def could_not_judge(session: Session, comparison_id: int) -> int:
    """Count its live judgments without a preference."""
    without = Judgment.preference.is_(None), Judgment.superseded_at.is_(None)
    return session.scalar(select(func.count()).where(Judgment.comparison_id == comparison_id, *without)) or 0


def preferences(session: Session, comparison_id: int) -> tuple[list[int], list[int]]:
    """Return (labelers, preferences) of the live judgments that have a preference."""
    found = select(Judgment.labeler_id, Judgment.preference).where(Judgment.comparison_id == comparison_id)
    found = found.where(Judgment.superseded_at.is_(None)).order_by(Judgment.id)
    rows = [(labeler, preference) for labeler, preference in session.execute(found) if preference is not None]
    return [labeler for labeler, _ in rows], [preference for _, preference in rows]


def newest(session: Session, comparison_id: int) -> tuple[int, int]:
    """Return ids of its newest judgment and of reviewers' last action on it; 0 for none."""
    judgment = select(func.max(Judgment.id)).where(Judgment.comparison_id == comparison_id).scalar_subquery()
    decision = select(func.max(AuditEvent.id)).where(*_of_reviewers(comparison_id)).scalar_subquery()
    row = session.execute(select(func.coalesce(judgment, 0), func.coalesce(decision, 0))).one()
    return row[0], row[1]


class Skip(NamedTuple):
    labeler: str
    reason: str
    at: datetime


def skips(session: Session, comparison_id: int) -> list[Skip]:
    """Return who skipped it, and why."""
    found = (
        select(User.name, Lease.reason, Lease.created_at)
        .join(User, User.id == Lease.labeler_id)
        .where(Lease.comparison_id == comparison_id, Lease.state == "skipped")
        .order_by(Lease.created_at)
    )
    return [Skip(*row) for row in session.execute(found)]


class Decision(NamedTuple):
    """A reviewer's action, such as `review.adjudicated`, with its details."""

    id: int
    action: str
    reviewer: str
    at: datetime
    details: dict[str, Any]


def decisions(session: Session, comparison_id: int) -> list[Decision]:
    """Return reviewers' actions on a comparison, oldest first."""
    found = (
        select(AuditEvent.id, AuditEvent.action, User.name, AuditEvent.at, AuditEvent.details)
        .join(User, User.id == AuditEvent.actor_id)
        .where(*_of_reviewers(comparison_id))
        .order_by(AuditEvent.id)
    )
    return [Decision(*row) for row in session.execute(found)]


def _of_reviewers(comparison_id: int) -> tuple[ColumnElement[bool], ...]:
    by_reviewers = or_(AuditEvent.action.startswith("review."), AuditEvent.action == "calibration.added")
    return about == str(comparison_id), by_reviewers


class Verdict(NamedTuple):
    adjudication: Adjudication
    reviewer: str


def verdict(session: Session, comparison_id: int) -> Verdict | None:
    found = (
        select(Adjudication, User.name)
        .join(User, User.id == Adjudication.reviewer_id)
        .where(Adjudication.comparison_id == comparison_id)
    )
    row = session.execute(found).one_or_none()
    return Verdict(*row) if row else None


def lock(session: Session, project_id: int, comparison_id: int) -> Comparison | None:
    """Return the comparison, locked until the transaction ends."""
    wanted = select(Comparison).where(Comparison.id == comparison_id, Comparison.project_id == project_id)
    wanted = wanted.with_for_update(key_share=True)
    return session.scalars(wanted, execution_options={"populate_existing": True}).one_or_none()


def replacement(session: Session, comparison_id: int) -> int | None:
    """Return the comparison that asks this one again under a newer rubric."""
    return session.scalar(select(Comparison.id).where(Comparison.relabel_of_id == comparison_id))


def domains(session: Session, project_id: int) -> list[str]:
    found = select(Prompt.domain).where(Prompt.project_id == project_id, Prompt.domain != "")
    return list(session.scalars(found.distinct().order_by(Prompt.domain).limit(MOST_LISTED)))


def safety_categories(session: Session, project_id: int) -> list[str]:
    found = select(Prompt.safety_category).where(Prompt.project_id == project_id, Prompt.safety_category.is_not(None))
    found = found.distinct().order_by(Prompt.safety_category).limit(MOST_LISTED)
    return [category for category in session.scalars(found) if category]


def versions(session: Session, project_id: int) -> list[Rubric]:
    """Return published rubric versions, newest first."""
    published = select(Rubric).where(Rubric.project_id == project_id, Rubric.version.is_not(None))
    return list(session.scalars(published.order_by(Rubric.version.desc())))


class Asked(NamedTuple):
    """A person whom a reviewer can ask, or a group with the number of its members who can still be asked."""

    id: int
    name: str
    people: int = 1


def people_to_ask(session: Session, comparison: Comparison) -> list[Asked]:
    """Return labelers who may judge in the project and have neither judged nor reviewed this comparison, by name."""
    found = select(User.id, User.name).where(*_can_be_asked(comparison)).order_by(User.name, User.id).limit(500)
    return [Asked(*row) for row in session.execute(found)]


def groups_to_ask(session: Session, comparison: Comparison) -> list[Asked]:
    found = (
        select(LabelerGroup.id, LabelerGroup.name, func.count())
        .join(LabelerGroupMember, LabelerGroupMember.group_id == LabelerGroup.id)
        .join(User, User.id == LabelerGroupMember.labeler_id)
        .where(LabelerGroup.project_id == comparison.project_id, *_can_be_asked(comparison))
        .group_by(LabelerGroup.id)
        .order_by(LabelerGroup.name)
    )
    return [Asked(*row) for row in session.execute(found)]


def _can_be_asked(comparison: Comparison) -> tuple[Any, ...]:
    judged = exists().where(Judgment.comparison_id == comparison.id, Judgment.labeler_id == User.id)
    recused = exists().where(
        Lease.comparison_id == comparison.id, Lease.labeler_id == User.id, Lease.state == "recused"
    )
    return *may_label(comparison.project_id), ~judged, ~recused
