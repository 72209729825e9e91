"""SQL of what judges said that may reach training, and of what a snapshot holds of it."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Subquery,
    and_,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import Session

from app.db import among
from app.judges.queries import STANDS, newest_admissions, unjudged
from app.models import Comparison, Judge, JudgeJudgment, Prompt, SnapshotJudgeJudgment


def _admitted(project_id: int) -> Subquery:
    """Judges that may reach training now, with the rubric version: switched on, admitted by the newest test under the
    newest version, and not paused since."""
    newest = newest_admissions(project_id).subquery()
    return (
        select(newest.c.judge_id, newest.c.rubric_id, newest.c.served_model)
        .join(Judge, Judge.id == newest.c.judge_id)
        .where(newest.c.admitted, newest.c.paused_at.is_(None), Judge.off_at.is_(None))
        .subquery()
    )


def _by_admitted(session: Session, project_id: int) -> ColumnElement[bool]:
    """Condition on judgments: an admitted judge gave them.

    The judges are read first, because PostgreSQL badly misjudges how many rows a join with them finds.
    """
    found: list[ColumnElement[bool]] = [false()]
    for judge, rubric, served in session.execute(select(_admitted(project_id))):
        own = and_(JudgeJudgment.judge_id == judge, JudgeJudgment.rubric_id == rubric, *STANDS)
        # What another model said, behind the same address, is not what was admitted.
        found.append(and_(own, JudgeJudgment.served_model == served) if served else own)
    return or_(*found)


class ForTraining(NamedTuple):
    """A comparison that nobody judged, and what the admitted judges said of it."""

    comparison: int
    judgments: list[int]
    verdicts: list[int]


def for_training(session: Session, project_id: int) -> list[ForTraining]:
    """Return the verdicts of admitted judges on train comparisons that no person has judged, by comparison id."""
    found = (
        select(JudgeJudgment.comparison_id, func.array_agg(JudgeJudgment.id), func.array_agg(JudgeJudgment.verdict))
        .join(Comparison, Comparison.id == JudgeJudgment.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .where(_by_admitted(session, project_id), Comparison.project_id == project_id, *unjudged())
        .group_by(JudgeJudgment.comparison_id)
        .order_by(JudgeJudgment.comparison_id)
    )
    return [ForTraining(row[0], list(row[1]), [each or 0 for each in row[2]]) for row in session.execute(found)]


def count_for_training(session: Session, project_id: int) -> int:
    """Count what `for_training` returns."""
    own = exists().where(JudgeJudgment.comparison_id == Comparison.id, _by_admitted(session, project_id))
    found = select(func.count()).select_from(Comparison).join(Prompt, Prompt.id == Comparison.prompt_id)
    return session.scalar(found.where(Comparison.project_id == project_id, *unjudged(), own)) or 0


def add_held(session: Session, snapshot_id: int, judgments: Sequence[int]) -> None:
    """Records which judgments of judges a snapshot's rows count."""
    held = select(literal(snapshot_id, BigInteger), func.unnest(literal(list(judgments), ARRAY(BigInteger))))
    session.execute(insert(SnapshotJudgeJudgment).from_select(["snapshot_id", "judgment_id"], held))


def any_withdrawn(session: Session, project_id: int, judgments: Sequence[int]) -> bool:
    """Whether the comparison of one of these judgments was withdrawn, or its judge may not reach training any more."""
    admitted = select(_admitted(project_id).c.judge_id)
    query = (
        select(JudgeJudgment.id)
        .join(Comparison, Comparison.id == JudgeJudgment.comparison_id)
        .where(among(JudgeJudgment.id, judgments))
        .where(or_(Comparison.state == "withdrawn", JudgeJudgment.judge_id.not_in(admitted)))
    )
    return session.scalar(query.limit(1)) is not None


class Read(NamedTuple):
    """How many comparisons of a judge a snapshot reads."""

    judge: int
    name: str
    n: int


def read_by(session: Session, snapshot_ids: Sequence[int]) -> list[Read]:
    """By judge, most first."""
    n = func.count()
    query = (
        select(Judge.id, Judge.name, n)
        .join(JudgeJudgment, JudgeJudgment.judge_id == Judge.id)
        .join(SnapshotJudgeJudgment, SnapshotJudgeJudgment.judgment_id == JudgeJudgment.id)
        .where(SnapshotJudgeJudgment.snapshot_id.in_(snapshot_ids))
        .group_by(Judge.id, Judge.name)
        .order_by(n.desc(), Judge.id)
    )
    return [Read(*row) for row in session.execute(query)]
