"""SQL that chooses the comparisons that a judge has not judged yet."""

from sqlalchemy import Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session

from app.judges.queries import OF_PEOPLE, STANDS, unjudged
from app.models import Comparison, Judge, JudgeJudgment, Judgment, Prompt, User


def _to_judge(judge: Judge, rubric_id: int, what: str) -> Select[int]:
    """Ids of comparisons that the judge has not judged by this version.

    - shared: comparisons that at least one person has judged by this version, including calibration items.
    - evaluation: comparisons that measure the newest round whose policy was compared.
    - open: train comparisons that nobody has judged.
    """
    own = exists().where(
        JudgeJudgment.judge_id == judge.id,
        JudgeJudgment.rubric_id == rubric_id,
        JudgeJudgment.comparison_id == Comparison.id,
        *STANDS,
    )
    query = select(Comparison.id).where(
        Comparison.project_id == judge.project_id, Comparison.state != "withdrawn", ~own
    )
    if what == "shared":
        by_people = exists().where(
            Judgment.comparison_id == Comparison.id,
            Judgment.rubric_id == rubric_id,
            User.id == Judgment.labeler_id,
            *OF_PEOPLE,
        )
        # OFFSET 0 makes PostgreSQL leave out what the judge has judged before it looks for people's judgments.
        among = query.where(Comparison.purpose.in_(("train", "heldout", "calibration"))).offset(0).subquery()
        known = and_(Comparison.gold.is_not(None), Comparison.rubric_id == rubric_id)
        return select(Comparison.id).join(among, among.c.id == Comparison.id).where(or_(by_people, known))
    if what == "evaluation":
        newest = (
            select(func.max(Comparison.round_id))
            .where(Comparison.project_id == judge.project_id, Comparison.purpose == "human_eval")
            .scalar_subquery()
        )
        return query.where(Comparison.purpose == "human_eval", Comparison.round_id == newest)
    return query.join(Prompt, Prompt.id == Comparison.prompt_id).where(*unjudged())


def to_judge(session: Session, judge: Judge, rubric_id: int, what: str, most: int) -> list[int]:
    """Return at most `most` ids of comparisons that the judge has not judged by this version: see `_to_judge`.

    Shared comparisons come in the order of how many people have judged them, open comparisons newest first.
    """
    query = _to_judge(judge, rubric_id, what)
    if what == "shared":
        said = (
            select(Judgment.comparison_id, func.count().label("n"))
            .join(User, User.id == Judgment.labeler_id)
            .where(*OF_PEOPLE, Judgment.rubric_id == rubric_id)
            .group_by(Judgment.comparison_id)
            .subquery()
        )
        query = query.outerjoin(said, said.c.comparison_id == Comparison.id)
        query = query.order_by(func.coalesce(said.c.n, 0).desc(), Comparison.id.desc())
    else:
        query = query.order_by(Comparison.id if what == "evaluation" else Comparison.id.desc())
    return list(session.scalars(query.limit(most)))


def left_to_judge(session: Session, judge: Judge, rubric_id: int, what: str, most: int) -> int:
    """Count what `to_judge` returns."""
    found = _to_judge(judge, rubric_id, what).limit(most).subquery()
    return session.scalar(select(func.count()).select_from(found)) or 0
