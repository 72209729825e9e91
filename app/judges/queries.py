"""SQL of AI judges: who they are, what they said, what people said of the same, and what may reach training."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    Select,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session, aliased

from app.access.gate_queries import newest_published
from app.db import among
from app.domain.alternative_annotator import Said
from app.domain.judges import Card, RubricText
from app.models import (
    Comparison,
    Completion,
    Judge,
    JudgeAdmission,
    JudgeJudgment,
    Judgment,
    Prompt,
    Round,
    Rubric,
    Run,
    User,
)

# Live judgments that say a preference, by people. Simulated and imported labelers stand for people; old data may hold
# labelers who are marked as AI, and those do not.
OF_PEOPLE = (Judgment.superseded_at.is_(None), Judgment.preference.is_not(None), User.kind != "ai_judge")
STANDS = (~JudgeJudgment.is_anchor, JudgeJudgment.verdict.is_not(None))


AT_ONCE = 1000  # rows of a download in memory


# ---- judges ----------------------------------------------------------------------------------------------------------


def judges(session: Session, project_id: int) -> list[Judge]:
    """By name, those that are switched off last."""
    query = select(Judge).where(Judge.project_id == project_id).order_by(Judge.off_at.is_not(None), Judge.name)
    return list(session.scalars(query))


def by_id(session: Session, project_id: int, judge_id: int) -> Judge | None:
    return session.scalars(select(Judge).where(Judge.id == judge_id, Judge.project_id == project_id)).one_or_none()


def lock(session: Session, judge: Judge) -> None:
    session.refresh(judge, with_for_update={"key_share": True})


def newest_rubric(session: Session, project_id: int) -> Rubric | None:
    return session.scalars(newest_published(project_id)).one_or_none()


def runs(session: Session, judge: Judge, most: int) -> list[Run]:
    """The judge's newest runs, newest first."""
    query = select(Run).where(
        Run.project_id == judge.project_id, Run.kind == "judge", Run.spec["judge"].as_integer() == judge.id
    )
    return list(session.scalars(query.order_by(Run.id.desc()).limit(most)))


def run_of(session: Session, project_id: int, run_id: int) -> Run | None:
    """Only runs of judges."""
    query = select(Run).where(Run.id == run_id, Run.project_id == project_id, Run.kind == "judge")
    return session.scalars(query).one_or_none()


class Spent(NamedTuple):
    """Totals of a judge's answers. `cost` is None without prices; `failed` counts answers that could not be read."""

    judged: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    seconds: float  # a comparison, mean


def spent(session: Session, judge_ids: Sequence[int]) -> dict[int, Spent]:
    """By judge, anchors included."""
    query = select(
        JudgeJudgment.judge_id,
        func.count().filter(JudgeJudgment.verdict.is_not(None)),
        func.count().filter(JudgeJudgment.error.is_not(None)),
        func.sum(JudgeJudgment.prompt_tokens),
        func.sum(JudgeJudgment.completion_tokens),
        func.sum(JudgeJudgment.cost),
        func.avg(JudgeJudgment.ms),
    ).where(JudgeJudgment.judge_id.in_(judge_ids))
    rows = session.execute(query.group_by(JudgeJudgment.judge_id))
    return {row[0]: Spent(row[1], row[2], int(row[3]), int(row[4]), row[5], float(row[6]) / 1000) for row in rows}


class Consistency(NamedTuple):
    """How a judge's two orders compare. first: of the sides it chose, how many stood first."""

    judged: int
    flips: int
    chosen: int
    first: int


def consistency(session: Session, judge_id: int) -> Consistency:
    one, two = JudgeJudgment.first, JudgeJudgment.second
    query = select(
        func.count(),
        func.count().filter(one != two),
        func.count().filter(one != 0) + func.count().filter(two != 0),
        func.count().filter(one == -1) + func.count().filter(two == 1),
    ).where(JudgeJudgment.judge_id == judge_id, *STANDS)
    return Consistency(*session.execute(query).one())


# ---- what a run asks and stores --------------------------------------------------------------------------------------


def rubric_text(session: Session, rubric_id: int) -> RubricText:
    rubric = session.get_one(Rubric, rubric_id)
    return RubricText(rubric.guideline, rubric.allow_tie, rubric.examples)


def cards(session: Session, project_id: int, ids: Sequence[int]) -> dict[int, Card]:
    """By comparison, those of the project that are not withdrawn."""
    a, b = aliased(Completion), aliased(Completion)
    query = (
        select(Comparison.id, Prompt.messages, a.text, b.text)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .where(among(Comparison.id, ids), Comparison.project_id == project_id, Comparison.state != "withdrawn")
    )
    return {row[0]: Card(row[1], row[2], row[3]) for row in session.execute(query)}


def judged_already(
    session: Session, judge_id: int, rubric_id: int, run_id: int, ids: Sequence[int], anchors: Sequence[int]
) -> tuple[set[int], set[int]]:
    """Which of these comparisons, and of the run's anchors, have their judgment. A failed one is asked again."""
    own = (JudgeJudgment.judge_id == judge_id, JudgeJudgment.verdict.is_not(None))
    plain = select(JudgeJudgment.comparison_id).where(
        *own, ~JudgeJudgment.is_anchor, JudgeJudgment.rubric_id == rubric_id, among(JudgeJudgment.comparison_id, ids)
    )
    again = select(JudgeJudgment.comparison_id).where(
        JudgeJudgment.is_anchor, JudgeJudgment.run_id == run_id, among(JudgeJudgment.comparison_id, anchors)
    )
    return set(session.scalars(plain)), set(session.scalars(again))


def store(session: Session, values: dict[str, Any]) -> None:
    """Stores a judgment. One that stands already stays as it is; a failed one is replaced."""
    statement = upsert(JudgeJudgment).values(**values)
    replaced = {name: statement.excluded[name] for name in values if name not in ("judge_id", "comparison_id")}
    if values["is_anchor"]:
        statement = statement.on_conflict_do_nothing(
            index_elements=["run_id", "comparison_id"], index_where=JudgeJudgment.is_anchor.is_(True)
        )
    else:
        statement = statement.on_conflict_do_update(
            index_elements=["judge_id", "rubric_id", "comparison_id"],
            index_where=~JudgeJudgment.is_anchor,
            set_=replaced | {"created_at": func.now()},
            where=JudgeJudgment.verdict.is_(None),
        )
    session.execute(statement)


# ---- what people said of the same ------------------------------------------------------------------------------------


def verdicts(session: Session, judge_id: int, rubric_id: int, served: str = "") -> dict[int, int]:
    """By comparison, under one rubric version; served: only those of this model."""
    query = select(JudgeJudgment.comparison_id, JudgeJudgment.verdict).where(
        JudgeJudgment.judge_id == judge_id, JudgeJudgment.rubric_id == rubric_id, *STANDS
    )
    if served:
        query = query.where(JudgeJudgment.served_model == served)
    return {row[0]: row[1] or 0 for row in session.execute(query)}


def people_on(session: Session, rubric_id: int, ids: Collection[int]) -> list[Said]:
    """People's judgments of these comparisons under a rubric version, without comparisons that measure policies."""
    query = (
        select(Judgment.comparison_id, Judgment.labeler_id, func.sign(Judgment.preference))
        .join(User, User.id == Judgment.labeler_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(*OF_PEOPLE, among(Judgment.comparison_id, ids), Judgment.rubric_id == rubric_id)
        .where(Comparison.state != "withdrawn", Comparison.purpose.in_(("train", "heldout")))
        .order_by(Judgment.id)
    )
    return [Said(row[0], row[1], int(row[2])) for row in session.execute(query)]


def agreement_since(session: Session, judge_id: int, rubric_id: int, since: datetime) -> tuple[float | None, int]:
    """Compute `app.domain.judges.agreement` in the database, for a judge's verdicts since a moment.

    Returns:
        the mean over comparisons of the share of people who agree with the judge, and the number of comparisons. A
        known answer counts instead of people. Comparisons that measure policies are left out.
    """
    agrees = case((func.sign(Judgment.preference) == JudgeJudgment.verdict, 1.0), else_=0.0)
    by_people = (
        select(func.avg(agrees))
        .select_from(Judgment)
        .join(User, User.id == Judgment.labeler_id)
        .where(*OF_PEOPLE, Judgment.comparison_id == Comparison.id, Judgment.rubric_id == rubric_id)
        .where(Comparison.purpose.in_(("train", "heldout")))
        .correlate(JudgeJudgment, Comparison)
        .scalar_subquery()
    )
    known = case((func.sign(Comparison.gold) == JudgeJudgment.verdict, 1.0), else_=0.0)
    shares = (
        select(case((Comparison.gold.is_not(None), known), else_=by_people).label("share"))
        .select_from(JudgeJudgment)
        .join(Comparison, Comparison.id == JudgeJudgment.comparison_id)
        .where(JudgeJudgment.judge_id == judge_id, JudgeJudgment.rubric_id == rubric_id, *STANDS)
        .where(JudgeJudgment.created_at > since, Comparison.state != "withdrawn")
        .subquery()
    )
    mean, n = session.execute(select(func.avg(shares.c.share), func.count(shares.c.share))).one()
    return None if mean is None else float(mean), n


def names(session: Session, ids: Collection[int]) -> dict[int, str]:
    return {row[0]: row[1] for row in session.execute(select(User.id, User.name).where(among(User.id, ids)))}


# ---- admission and drift ---------------------------------------------------------------------------------------------


def newest_admissions(project_id: int) -> Select[JudgeAdmission]:
    """The newest test of each of the project's judges under the newest rubric version."""
    rubric = newest_published(project_id).subquery()
    return (
        select(JudgeAdmission)
        .join(Judge, Judge.id == JudgeAdmission.judge_id)
        .where(Judge.project_id == project_id, JudgeAdmission.rubric_id == select(rubric.c.id).scalar_subquery())
        .ext(distinct_on(JudgeAdmission.judge_id))
        .order_by(JudgeAdmission.judge_id, JudgeAdmission.id.desc())
    )


def admissions(session: Session, project_id: int) -> dict[int, JudgeAdmission]:
    """By judge: the one that counts."""
    return {row.judge_id: row for row in session.scalars(newest_admissions(project_id))}


def history(session: Session, judge_id: int, most: int) -> list[tuple[JudgeAdmission, int]]:
    """A judge's tests, newest first, with the rubric's version."""
    query = (
        select(JudgeAdmission, Rubric.version)
        .join(Rubric, Rubric.id == JudgeAdmission.rubric_id)
        .where(JudgeAdmission.judge_id == judge_id)
        .order_by(JudgeAdmission.id.desc())
        .limit(most)
    )
    return [(row[0], row[1] or 0) for row in session.execute(query)]


def anchor_rows(session: Session, judge_id: int, since: datetime, anchors: Collection[int]) -> list[Any]:
    """(run_id, comparison_id, first, second, verdict) of the anchors judged again since a moment, in order of runs."""
    query = select(
        JudgeJudgment.run_id,
        JudgeJudgment.comparison_id,
        JudgeJudgment.first,
        JudgeJudgment.second,
        JudgeJudgment.verdict,
    ).where(
        JudgeJudgment.judge_id == judge_id,
        JudgeJudgment.is_anchor,
        JudgeJudgment.verdict.is_not(None),
        JudgeJudgment.created_at > since,
        among(JudgeJudgment.comparison_id, anchors),
    )
    return list(session.execute(query.order_by(JudgeJudgment.run_id, JudgeJudgment.comparison_id)))


def orders(session: Session, judge_id: int, rubric_id: int, ids: Collection[int]) -> dict[int, tuple[int, int]]:
    """The judge's verdicts on these comparisons in both orders, by comparison."""
    query = select(JudgeJudgment.comparison_id, JudgeJudgment.first, JudgeJudgment.second).where(
        JudgeJudgment.judge_id == judge_id,
        JudgeJudgment.rubric_id == rubric_id,
        among(JudgeJudgment.comparison_id, ids),
        *STANDS,
    )
    return {row[0]: (row[1] or 0, row[2] or 0) for row in session.execute(query)}


def served_in(session: Session, run_id: int) -> list[str]:
    """The endpoint's names for its model in a run, usually one."""
    query = select(JudgeJudgment.served_model).where(JudgeJudgment.run_id == run_id, JudgeJudgment.served_model != "")
    return sorted(set(session.scalars(query)))


def recent(session: Session, judge_id: int, most: int, *, failed: bool = False) -> list[JudgeJudgment]:
    query = select(JudgeJudgment).where(JudgeJudgment.judge_id == judge_id, ~JudgeJudgment.is_anchor)
    query = query.where(JudgeJudgment.error.is_not(None) if failed else JudgeJudgment.verdict.is_not(None))
    return list(session.scalars(query.order_by(JudgeJudgment.id.desc()).limit(most)))


def unjudged() -> tuple[Any, ...]:
    """A train comparison that no person has judged, on a train prompt.

    Comparisons with an AI revision are left out, because a judge may have written it and people decide about it.
    """
    sides = Completion.id.in_((Comparison.completion_a_id, Comparison.completion_b_id))
    return (
        ~exists().where(sides, Completion.ai_revised),
        Comparison.purpose == "train",
        Comparison.state == "open",
        Comparison.judgment_count == 0,
        Comparison.gold.is_(None),
        Comparison.ranking_id.is_(None),
        Prompt.split == "train",
    )


# ---- beside people's evaluation --------------------------------------------------------------------------------------


def on_evaluation(session: Session, round_: Round) -> tuple[dict[int, list[dict[int, float]]], list[str]]:
    """What judges said of the round's policy beside the one before it.

    Returns:
        by prompt, for each of its comparisons, each judge's value: 1 for the new policy, one half a tie; and the
        judges' names. Judges that are switched off are left out.
    """
    a, b = aliased(Completion), aliased(Completion)
    side = case((b.model_version_id == round_.policy_after_id, 1), else_=-1)
    query = (
        select(
            Comparison.prompt_id,
            Comparison.id,
            Judge.id,
            Judge.name,
            (1 + side * JudgeJudgment.verdict) / 2.0,
        )
        .join(Comparison, Comparison.id == JudgeJudgment.comparison_id)
        .join(Judge, Judge.id == JudgeJudgment.judge_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .where(Comparison.round_id == round_.id, Comparison.purpose == "human_eval", Comparison.state != "withdrawn")
        .where(*STANDS, Judge.off_at.is_(None))
        .where(or_(*(each.model_version_id == round_.policy_after_id for each in (a, b))))
        .where(or_(*(each.model_version_id == round_.policy_before_id for each in (a, b))))
        .order_by(JudgeJudgment.id)  # under several rubric versions the last one counts
    )
    found: dict[int, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    named: dict[int, str] = {}
    for prompt, comparison, judge, name, value in session.execute(query):
        found[prompt][comparison][judge] = float(value)
        named[judge] = name
    return {prompt: list(each.values()) for prompt, each in found.items()}, list(named.values())


def export_rows(session: Session, judge: Judge) -> Iterator[Any]:
    """All that a judge said, oldest first, with prompt, both responses and the rubric's version. Read in parts."""
    a, b = aliased(Completion), aliased(Completion)
    query = (
        select(JudgeJudgment, Prompt.messages, a.text, b.text, Rubric.version)
        .join(Comparison, Comparison.id == JudgeJudgment.comparison_id)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .join(Rubric, Rubric.id == JudgeJudgment.rubric_id)
        .where(JudgeJudgment.judge_id == judge.id, *STANDS, Comparison.state != "withdrawn")
        .order_by(JudgeJudgment.id)
    )
    return iter(session.execute(query.execution_options(yield_per=AT_ONCE)))


def set_tested(session: Session, judge_id: int, error: str | None, served: str | None) -> None:
    """Store a test's result. `served` is the endpoint's name for its model; None if it did not answer, and then the
    last name stays, because without a name an admission would count every model's verdicts."""
    values: dict[str, Any] = {"tested_at": func.now(), "test_error": error}
    if served is not None:
        values["served_model"] = served
    session.execute(update(Judge).where(Judge.id == judge_id).values(values))
