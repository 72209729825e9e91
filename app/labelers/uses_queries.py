"""SQL of where a labeler's judgments, demonstrations, thumbs and prompts were used: snapshots and models."""

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.domain.rounds import SAMPLING_ALGORITHMS
from app.labelers.removal_queries import own_prompts
from app.models import (
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    ModelVersion,
    Prompt,
    RedTeamAttempt,
    Round,
    Run,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotThumb,
    Thumb,
)
from app.models.prompt import WITHDRAWN

WEIGHING = ("dawid_skene", "crowd_bt")  # methods in which everybody's judgments affect everybody's weight


class UsedIn(NamedTuple):
    """A snapshot that contains something from a labeler, and the round that read it, if any.

    judgments: their judgments on its comparisons. demonstrations, thumbs: theirs in it. prompts: comparisons,
    demonstrations and thumbs in it on prompts they wrote. weighed: its posteriors come from a method that weights
    labelers and that was fitted over their judgments too. Its numbers depend on these even if they judged none of its
    comparisons.
    """

    snapshot_id: int
    digest: str
    created_at: datetime
    judgments: int
    demonstrations: int
    thumbs: int
    prompts: int
    weighed: bool
    round_number: int | None
    round_id: int | None


def snapshots_with(session: Session, project_id: int, labeler_id: int) -> list[UsedIn]:
    """Return snapshots frozen with something from the labeler. Judgments count if they were live at that time."""
    judgments = _by_snapshot(session, _judged(project_id, labeler_id))
    demonstrations = _by_snapshot(session, _demonstrated(project_id, labeler_id))
    thumbs = _by_snapshot(session, _thumbs(project_id, labeler_id))
    prompts = [_by_snapshot(session, found) for found in _on_own_prompts(project_id, labeler_id)]
    weighed = set(session.scalars(_weighed(project_id, labeler_id)))
    ids = weighed.union(judgments, demonstrations, thumbs, *prompts)
    found = (
        select(Snapshot.id, Snapshot.digest, Snapshot.created_at, Round.number, Round.id)
        .outerjoin(Round, Snapshot.id.in_((Round.snapshot_id, Round.ptx_snapshot_id, Round.thumbs_snapshot_id)))
        .where(Snapshot.id.in_(ids))
        .order_by(Snapshot.id, Round.number)
    )
    return [
        UsedIn(
            snapshot_id=id_,
            digest=digest,
            created_at=created_at,
            judgments=judgments.get(id_, 0),
            demonstrations=demonstrations.get(id_, 0),
            thumbs=thumbs.get(id_, 0),
            prompts=sum(each.get(id_, 0) for each in prompts),
            weighed=id_ in weighed,
            round_number=number,
            round_id=round_id,
        )
        for id_, digest, created_at, number, round_id in session.execute(found)
    ]


def _by_snapshot(session: Session, found: Select[int, int]) -> dict[int, int]:
    return {row[0]: row[1] for row in session.execute(found)}


def _live_at(snapshot: type[Snapshot]) -> ColumnElement[bool]:
    return and_(
        Judgment.created_at <= snapshot.created_at,
        or_(Judgment.superseded_at.is_(None), Judgment.superseded_at > snapshot.created_at),
    )


def _judged(project_id: int, labeler_id: int) -> Select[int, int]:
    return (
        select(SnapshotComparison.snapshot_id, func.count())
        .join(Snapshot, Snapshot.id == SnapshotComparison.snapshot_id)
        .join(Judgment, Judgment.comparison_id == SnapshotComparison.comparison_id)
        .where(Snapshot.project_id == project_id, Judgment.labeler_id == labeler_id, _live_at(Snapshot))
        .group_by(SnapshotComparison.snapshot_id)
    )


def _weighed(project_id: int, labeler_id: int) -> Select[int]:
    fitted = exists().where(
        Judgment.comparison_id == Comparison.id,
        Comparison.project_id == project_id,
        Comparison.purpose != "repeat",
        Judgment.labeler_id == labeler_id,
        Judgment.preference.is_not(None),
        _live_at(Snapshot),
    )
    return select(Snapshot.id).where(Snapshot.project_id == project_id, Snapshot.consensus.in_(WEIGHING), fitted)


def _demonstrated(project_id: int, labeler_id: int) -> Select[int, int]:
    return (
        select(SnapshotDemonstration.snapshot_id, func.count())
        .join(Demonstration, Demonstration.id == SnapshotDemonstration.demonstration_id)
        .where(Demonstration.project_id == project_id, Demonstration.author_id == labeler_id)
        .group_by(SnapshotDemonstration.snapshot_id)
    )


def _thumbs(project_id: int, labeler_id: int) -> Select[int, int]:
    return (
        select(SnapshotThumb.snapshot_id, func.count())
        .join(Thumb, Thumb.id == SnapshotThumb.thumb_id)
        .where(Thumb.project_id == project_id, Thumb.labeler_id == labeler_id)
        .group_by(SnapshotThumb.snapshot_id)
    )


def _on_own_prompts(project_id: int, labeler_id: int) -> tuple[Select[int, int], ...]:
    prompts = own_prompts(project_id, labeler_id)
    return (
        select(SnapshotComparison.snapshot_id, func.count())
        .join(Comparison, Comparison.id == SnapshotComparison.comparison_id)
        .where(Comparison.prompt_id.in_(prompts))
        .group_by(SnapshotComparison.snapshot_id),
        select(SnapshotDemonstration.snapshot_id, func.count())
        .join(Demonstration, Demonstration.id == SnapshotDemonstration.demonstration_id)
        .where(Demonstration.prompt_id.in_(prompts))
        .group_by(SnapshotDemonstration.snapshot_id),
        select(SnapshotThumb.snapshot_id, func.count())
        .join(Thumb, Thumb.id == SnapshotThumb.thumb_id)
        .join(Completion, Completion.id == Thumb.completion_id)
        .where(Completion.prompt_id.in_(prompts))
        .group_by(SnapshotThumb.snapshot_id),
    )


class Made(NamedTuple):
    """A model, the round that made it, and the models that the round began with.

    sampled: training could have sampled a response to a prompt that the labeler wrote.
    """

    id: int
    name: str
    role: str
    parent_id: int | None
    round_id: int | None
    round_number: int | None
    sampled: bool
    began_with: tuple[int, ...]


def models(session: Session, project_id: int, labeler_id: int) -> list[Made]:
    """Return all models of the project, oldest first.

    Algorithms that sample during training use all train prompts. The earlier split of a withdrawn prompt is unknown, so
    it counts as train.
    """
    gone = exists().where(RedTeamAttempt.prompt_id == Prompt.id, RedTeamAttempt.withdrawn_at < Run.created_at)
    there = exists().where(
        Prompt.id.in_(own_prompts(project_id, labeler_id)),
        Prompt.split.in_(("train", WITHDRAWN)),
        Prompt.created_at <= Run.created_at,
        ~gone.correlate(Prompt, Run),
    )
    found = (
        select(
            ModelVersion.id,
            ModelVersion.name,
            ModelVersion.role,
            ModelVersion.parent_id,
            Round.id,
            Round.number,
            func.coalesce(and_(Run.kind.in_(SAMPLING_ALGORITHMS), there), False),
            Round.policy_before_id,
            Round.reward_model_id,
            Round.reference_id,
        )
        .outerjoin(Run, Run.id == ModelVersion.run_id)
        .outerjoin(Round, Round.id == Run.round_id)
        .where(ModelVersion.project_id == project_id)
        .order_by(ModelVersion.id)
    )
    return [
        Made(*row[:7], tuple(id_ for id_ in row[7:] if id_ is not None and id_ != row[0]))
        for row in session.execute(found)
    ]
