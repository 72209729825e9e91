"""SQL between models and what people said: what a model learned from, and which models learned from somebody."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Subquery, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.models import (
    Comparison,
    Demonstration,
    Judgment,
    ModelVersion,
    Round,
    Rubric,
    Run,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotThumb,
    Thumb,
    User,
)


class Count(NamedTuple):
    """How many judgments, demonstrations and thumbs of one person a snapshot reads, or of one rubric version.

    key: the person's id, or the version. name: the person's.
    """

    key: int
    name: str
    n: int


class LearnedFrom(NamedTuple):
    """What the snapshots of a model's round read. people: most first. rubrics: of its judgments, by version."""

    judgments: int
    demonstrations: int
    thumbs: int
    people: list[Count]
    rubrics: list[Count]


def _was_read() -> ColumnElement[bool]:
    """Whether a judgment on one of a snapshot's comparisons stood when the snapshot was made, and said a preference."""
    return and_(
        Judgment.preference.is_not(None),
        Judgment.created_at <= Snapshot.created_at,
        or_(Judgment.superseded_at.is_(None), Judgment.superseded_at > Snapshot.created_at),
    )


def learned_from(session: Session, round_: Round) -> LearnedFrom:
    """What the round's snapshots read of people."""
    snapshots = [round_.snapshot_id, round_.ptx_snapshot_id, round_.thumbs_snapshot_id]
    ids = [each for each in snapshots if each is not None]
    judged = (
        select(Judgment.labeler_id.label("who"), Judgment.rubric_id)
        .join(SnapshotComparison, SnapshotComparison.comparison_id == Judgment.comparison_id)
        .join(Snapshot, Snapshot.id == SnapshotComparison.snapshot_id)
        .where(Snapshot.id.in_(ids), _was_read())
        .subquery()
    )
    wrote = select(Demonstration.author_id.label("who")).join(
        SnapshotDemonstration, SnapshotDemonstration.demonstration_id == Demonstration.id
    )
    written = wrote.where(SnapshotDemonstration.snapshot_id.in_(ids)).subquery()
    liked = select(Thumb.labeler_id.label("who")).join(SnapshotThumb, SnapshotThumb.thumb_id == Thumb.id)
    thumbs = liked.where(SnapshotThumb.snapshot_id.in_(ids)).subquery()
    said = select(judged.c.who).union_all(select(written.c.who), select(thumbs.c.who)).subquery()
    people = select(User.id, User.name, func.count()).join(said, said.c.who == User.id)
    people = people.group_by(User.id, User.name).order_by(func.count().desc(), User.id)
    rubrics = select(Rubric.version, func.count()).join(judged, judged.c.rubric_id == Rubric.id)
    rubrics = rubrics.group_by(Rubric.version).order_by(Rubric.version)
    of_versions = [(version or 0, n) for version, n in session.execute(rubrics)]

    def count(part: Subquery) -> int:
        return session.scalar(select(func.count()).select_from(part)) or 0

    return LearnedFrom(
        judgments=count(judged),
        demonstrations=count(written),
        thumbs=count(thumbs),
        people=[Count(*row) for row in session.execute(people)],
        rubrics=[Count(version, f"version {version}", n) for version, n in of_versions],
    )


def models_of_labeler(session: Session, project_id: int, labeler_id: int) -> Sequence[int]:
    """Ids of the models whose round read something that a person said, and of the models made from these."""
    judged = (
        select(Judgment.id)
        .join(SnapshotComparison, SnapshotComparison.comparison_id == Judgment.comparison_id)
        .where(Judgment.labeler_id == labeler_id, SnapshotComparison.snapshot_id == Snapshot.id, _was_read())
    )
    wrote = select(Demonstration.id).join(
        SnapshotDemonstration, SnapshotDemonstration.demonstration_id == Demonstration.id
    )
    wrote = wrote.where(Demonstration.author_id == labeler_id, SnapshotDemonstration.snapshot_id == Snapshot.id)
    liked = select(Thumb.id).join(SnapshotThumb, SnapshotThumb.thumb_id == Thumb.id)
    liked = liked.where(Thumb.labeler_id == labeler_id, SnapshotThumb.snapshot_id == Snapshot.id)
    return _models(session, project_id, or_(exists(judged), exists(wrote), exists(liked)))


def models_of_comparison(session: Session, project_id: int, comparison_id: int) -> Sequence[int]:
    """Ids of the models whose round read a comparison, and of the models made from these."""
    holds = select(SnapshotComparison.comparison_id).where(SnapshotComparison.comparison_id == comparison_id)
    return _models(session, project_id, exists(holds.where(SnapshotComparison.snapshot_id == Snapshot.id)))


def _models(session: Session, project_id: int, read: ColumnElement[bool]) -> Sequence[int]:
    """Ids of the models that learned from the project's snapshots of a condition, or come from models that did."""
    snapshots = select(Snapshot.id).where(Snapshot.project_id == project_id, read)
    columns = Round.snapshot_id, Round.ptx_snapshot_id, Round.thumbs_snapshot_id
    own = select(ModelVersion.id).join(Run, Run.id == ModelVersion.run_id).join(Round, Round.id == Run.round_id)
    learned = own.where(or_(*(column.in_(snapshots) for column in columns))).cte("learned", recursive=True)
    made_from = select(ModelVersion.id).join(learned, learned.c.id == ModelVersion.parent_id)
    return list(session.scalars(select(learned.union(made_from).c.id)))


def has_comparison(session: Session, project_id: int, comparison_id: int) -> bool:
    found = select(Comparison.id).where(Comparison.project_id == project_id, Comparison.id == comparison_id)
    return session.scalar(found) is not None


def name_of(session: Session, project_id: int, user_id: int) -> str | None:
    """The name of somebody who has judged, written or given a thumb in the project; none for others."""
    judged = exists().where(Judgment.labeler_id == User.id, Judgment.comparison_id == Comparison.id)
    said = (
        judged.where(Comparison.project_id == project_id),
        exists().where(Demonstration.author_id == User.id, Demonstration.project_id == project_id),
        exists().where(Thumb.labeler_id == User.id, Thumb.project_id == project_id),
    )
    return session.scalar(select(User.name).where(User.id == user_id, or_(*said)))
