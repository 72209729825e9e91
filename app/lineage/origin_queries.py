"""SQL between models and people: what a model learned from, and which models learned from a person."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Subquery, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.judges import training_queries as judge_queries
from app.models import (
    AIRevision,
    Comparison,
    Completion,
    Demonstration,
    Judge,
    JudgeJudgment,
    Judgment,
    ModelVersion,
    Round,
    Rubric,
    Run,
    Snapshot,
    SnapshotComparison,
    SnapshotDemonstration,
    SnapshotJudgeJudgment,
    SnapshotThumb,
    Thumb,
    User,
)


class Count(NamedTuple):
    """Number of judgments, demonstrations and thumbs in a snapshot from one person, or under one rubric version.

    key: the person's id, or the version. name: the person's name, or the version in words.
    """

    key: int
    name: str
    n: int


class AIRevised(NamedTuple):
    """Texts by AI critics that a round read: in comparisons, in demonstrations, and in responses with thumbs.

    `critics` counts revisions by judge. After an import of a full export the judges are unknown.
    """

    comparisons: int
    demonstrations: int
    thumbs: int
    critics: list[Count]

    @property
    def any(self) -> bool:
        return bool(self.comparisons or self.demonstrations or self.thumbs)


class LearnedFrom(NamedTuple):
    """What the snapshots of a model's round contain. people: most contributions first. rubrics: of its judgments, by
    version.

    judges: AI judges whose comparisons the round read beside people's; a comparison of several judges counts for each.
    ai_revised: how much of this contains texts by AI critics.
    """

    judgments: int
    demonstrations: int
    thumbs: int
    people: list[Count]
    rubrics: list[Count]
    judges: list[Count]  # AI judges, comparisons of each
    ai_revised: AIRevised


def _was_read() -> ColumnElement[bool]:
    """Condition: a judgment with a preference on a snapshot's comparison was live when the snapshot was made."""
    return and_(
        Judgment.preference.is_not(None),
        Judgment.created_at <= Snapshot.created_at,
        or_(Judgment.superseded_at.is_(None), Judgment.superseded_at > Snapshot.created_at),
    )


def learned_from(session: Session, round_: Round) -> LearnedFrom:
    """Return what the round's snapshots contain from people."""
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
        judges=[Count(*row) for row in judge_queries.read_by(session, ids)],
        ai_revised=_ai_revised(session, ids),
    )


def _ai_revised(session: Session, snapshot_ids: Sequence[int]) -> AIRevised:
    shown = (Comparison.completion_a_id, Comparison.completion_b_id)
    compared = (
        select(Comparison.id, Completion.id.label("completion"))
        .join(SnapshotComparison, SnapshotComparison.comparison_id == Comparison.id)
        .join(Completion, Completion.id.in_(shown))
        .where(SnapshotComparison.snapshot_id.in_(snapshot_ids), Completion.ai_revised)
        .cte("compared")
    )
    written = (
        select(Demonstration.id)
        .join(SnapshotDemonstration, SnapshotDemonstration.demonstration_id == Demonstration.id)
        .where(SnapshotDemonstration.snapshot_id.in_(snapshot_ids), Demonstration.ai_revised)
        .cte("written")
    )
    liked = (
        select(Thumb.id)
        .join(SnapshotThumb, SnapshotThumb.thumb_id == Thumb.id)
        .join(Completion, Completion.id == Thumb.completion_id)
        .where(SnapshotThumb.snapshot_id.in_(snapshot_ids), Completion.ai_revised)
        .cte("liked")
    )
    counts = select(
        select(func.count(compared.c.id.distinct())).scalar_subquery(),
        select(func.count()).select_from(written).scalar_subquery(),
        select(func.count()).select_from(liked).scalar_subquery(),
    )
    critics = (
        select(Judge.id, Judge.name, func.count())
        .join(AIRevision, AIRevision.judge_id == Judge.id)
        .where(
            or_(
                AIRevision.revised_id.in_(select(compared.c.completion)),
                AIRevision.demonstration_id.in_(select(written.c.id)),
            )
        )
        .group_by(Judge.id, Judge.name)
        .order_by(func.count().desc(), Judge.id)
    )
    return AIRevised(*session.execute(counts).one(), [Count(*row) for row in session.execute(critics)])


def models_of_labeler(session: Session, project_id: int, labeler_id: int) -> Sequence[int]:
    """Return ids of the models whose round read something from this person, and of the models made from these."""
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
    """Return ids of the models whose round read a comparison, and of the models made from these."""
    holds = select(SnapshotComparison.comparison_id).where(SnapshotComparison.comparison_id == comparison_id)
    judged = (
        select(JudgeJudgment.id)
        .join(SnapshotJudgeJudgment, SnapshotJudgeJudgment.judgment_id == JudgeJudgment.id)
        .where(JudgeJudgment.comparison_id == comparison_id, SnapshotJudgeJudgment.snapshot_id == Snapshot.id)
    )
    by_people = exists(holds.where(SnapshotComparison.snapshot_id == Snapshot.id))
    return _models(session, project_id, or_(by_people, exists(judged)))


def _models(session: Session, project_id: int, read: ColumnElement[bool]) -> Sequence[int]:
    """Return ids of models that learned from snapshots that match, and of models derived from them."""
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
    """Return the name of a person who has judged, written or given a thumb in the project; None for others."""
    judged = exists().where(Judgment.labeler_id == User.id, Judgment.comparison_id == Comparison.id)
    said = (
        judged.where(Comparison.project_id == project_id),
        exists().where(Demonstration.author_id == User.id, Demonstration.project_id == project_id),
        exists().where(Thumb.labeler_id == User.id, Thumb.project_id == project_id),
    )
    return session.scalar(select(User.name).where(User.id == user_id, or_(*said)))
