"""SQL of rounds' measurements, and of people's judgments on their policies."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Float, Text, case, cast, func, or_, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session, aliased

from app.models import Comparison, Completion, Judgment, Metric, Prompt, Round, Run, Snapshot, SnapshotComparison, User

MOST_PROMPTS = 5000  # that are compared with those that were judged


def metrics_from(session: Session, run_ids: list[int], run_id: int, step: int) -> Sequence[Any]:
    """Return metrics over all rows from a run's step on, including that step, which may have been
    written in two parts."""
    query = select(Metric.run_id, Metric.name, Metric.step, Metric.value).where(
        Metric.run_id.in_(run_ids), Metric.slice == "", tuple_(Metric.run_id, Metric.step) >= (run_id, step)
    )
    return session.execute(query.order_by(Metric.run_id, Metric.step, Metric.name)).all()


def all_metrics(session: Session, run_ids: list[int]) -> Sequence[Any]:
    """Return every metric of the runs, by slice and step."""
    query = select(Metric.run_id, Metric.name, Metric.slice, Metric.step, Metric.value).where(
        Metric.run_id.in_(run_ids)
    )
    return session.execute(query.order_by(Metric.run_id, Metric.name, Metric.slice, Metric.step)).all()


def last_values(session: Session, run_ids: list[int]) -> Sequence[Any]:
    """Return the newest value of every metric and slice of the runs."""
    query = (
        select(Metric.run_id, Metric.name, Metric.slice, Metric.step, Metric.value)
        .where(Metric.run_id.in_(run_ids))
        .ext(distinct_on(Metric.run_id, Metric.name, Metric.slice))
        .order_by(Metric.run_id, Metric.name, Metric.slice, Metric.step.desc())
    )
    return session.execute(query).all()


def round_values(session: Session, round_ids: list[int], names: Sequence[str], *, slices: bool = True) -> Sequence[Any]:
    """Return the newest value of these metrics, by slice, of the runs that measure a round; without `slices`, only over
    all prompts."""
    query = (
        select(Run.round_id, Run.kind, Metric.name, Metric.slice, Metric.value)
        .join(Run, Run.id == Metric.run_id)
        .where(Run.round_id.in_(round_ids), Run.kind.in_(("reward", "evaluate")), Metric.name.in_(names))
        .ext(distinct_on(Run.round_id, Run.kind, Metric.name, Metric.slice))
        .order_by(Run.round_id, Run.kind, Metric.name, Metric.slice, Metric.step.desc())
    )
    return session.execute(query if slices else query.where(Metric.slice == "")).all()


def snapshots_of(session: Session, round_ids: list[int]) -> dict[int, dict[str, Any]]:
    """Return the counts of each round's snapshot, by round id."""
    query = select(Round.id, Snapshot.counts).join(Snapshot, Snapshot.id == Round.snapshot_id)
    return {row[0]: row[1] for row in session.execute(query.where(Round.id.in_(round_ids)))}


def evaluated(session: Session, round_ids: Sequence[int]) -> Sequence[Any]:
    """Return people's judgments on rounds' new policies and their rivals: one row per round, rival and prompt.

    Rows are in the order in which the prompts entered.

    - value: share of the prompt's judgments for the new policy; a tie and "both bad" count one half. Each labeler's
      live judgment on each comparison counts once. Reviewers' verdicts and AI judges' judgments do not count.
    - entered: when the last of these labelers first answered. It does not move when they change their answer.
    - is_whole: every comparison has all its judgments. Comparisons in review count as complete; withdrawn ones are
      ignored. A prompt that is not whole has not entered.
    - judgments: how many the value is based on; prompts without any have no value and come last.
    - longer: mean tokens of the new policy's responses divided by the rival's.
    """
    a, b = aliased(Completion), aliased(Completion)
    new_is_b = b.model_version_id == Round.policy_after_id
    tokens_a, tokens_b = (func.coalesce(each.n_tokens, func.char_length(each.text)) for each in (a, b))
    of_rounds = (Comparison.round_id.in_(round_ids), Comparison.purpose == "human_eval")
    pair = (
        select(
            Comparison.id,
            Comparison.round_id,
            Comparison.prompt_id,
            (Comparison.state != "open").label("is_closed"),
            case((new_is_b, 1), else_=-1).label("side"),
            case((new_is_b, a.model_version_id), else_=b.model_version_id).label("rival_id"),
            case((new_is_b, tokens_b), else_=tokens_a).label("tokens"),
            case((new_is_b, tokens_a), else_=tokens_b).label("rival_tokens"),
        )
        .join(Round, Round.id == Comparison.round_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .where(*of_rounds, Comparison.state != "withdrawn")
        .where(Round.policy_after_id.in_((a.model_version_id, b.model_version_id)))
        .subquery()
    )
    # Looked up for each judgment, by an index. Grouping all of them to join the groups takes time that grows with the
    # square of the rounds: PostgreSQL expects few pairs, and goes through all groups for each.
    earlier = aliased(Judgment)
    same = earlier.comparison_id == Judgment.comparison_id, earlier.labeler_id == Judgment.labeler_id
    first = select(func.min(earlier.created_at)).where(*same).scalar_subquery()
    said = (
        select(Judgment.comparison_id, func.sign(Judgment.preference).label("side"), first.label("at"))
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(User, User.id == Judgment.labeler_id)
        .where(*of_rounds)
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None), User.kind != "ai_judge")
        .subquery()
    )
    entered, judgments = func.max(said.c.at), func.count(said.c.comparison_id)
    alike = (pair.c.round_id, pair.c.rival_id, pair.c.prompt_id)
    slices = (Prompt.domain, Prompt.difficulty, Prompt.safety_category)
    query = (
        select(
            *alike,
            *slices,
            cast(func.avg((1 + pair.c.side * said.c.side) / 2.0), Float).label("value"),
            judgments.label("judgments"),
            entered.label("entered"),
            func.bool_and(pair.c.is_closed).label("is_whole"),
            cast(func.avg(pair.c.tokens) / func.greatest(func.avg(pair.c.rival_tokens), 1), Float).label("longer"),
        )
        .join(Prompt, Prompt.id == pair.c.prompt_id)
        .outerjoin(said, said.c.comparison_id == pair.c.id)
        .group_by(*alike, *slices)
        .order_by(entered.asc().nulls_last(), pair.c.prompt_id)
    )
    return session.execute(query).all()


def judges(session: Session, round_: Round) -> dict[str, tuple[int, int]]:
    """Count, by kind of labeler, those who compared the new policy with the previous one, and their live judgments."""
    a, b = aliased(Completion), aliased(Completion)
    query = (
        select(User.kind, func.count(User.id.distinct()), func.count())
        .select_from(Judgment)
        .join(User, User.id == Judgment.labeler_id)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .join(a, a.id == Comparison.completion_a_id)
        .join(b, b.id == Comparison.completion_b_id)
        .where(Comparison.round_id == round_.id, Comparison.purpose == "human_eval", Comparison.state != "withdrawn")
        .where(or_(*(each.model_version_id == round_.policy_before_id for each in (a, b))))
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None), User.kind != "ai_judge")
        .group_by(User.kind)
        .order_by(User.kind)
    )
    return {kind: (labelers, n) for kind, labelers, n in session.execute(query)}


def opened_comparisons(session: Session, round_ids: list[int]) -> dict[tuple[int, str], tuple[int, int]]:
    """Count, by round and purpose, comparisons opened from its samples, and how many of them are decided."""
    query = (
        select(
            Comparison.round_id,
            Comparison.purpose,
            func.count(),
            func.count().filter(Comparison.state.in_(("settled", "adjudicated"))),
        )
        .where(Comparison.round_id.in_(round_ids))
        .group_by(Comparison.round_id, Comparison.purpose)
    )
    return {(row[0] or 0, row[1]): (row[2], row[3]) for row in session.execute(query)}


def prompts_of(session: Session, round_: Round) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(domain, words) of the prompts of the comparisons that a round read, and of those that its policy answered."""
    judged = (
        select(Comparison.prompt_id)
        .join(SnapshotComparison, SnapshotComparison.comparison_id == Comparison.id)
        .where(SnapshotComparison.snapshot_id == round_.snapshot_id)
    )
    answered = (
        select(Completion.prompt_id)
        .join(Run, Run.id == Completion.run_id)
        .where(Run.round_id == round_.id, Run.kind.in_(("sample", "evaluate")))
    )
    last = cast(Prompt.messages[-1]["content"].astext, Text)
    words = func.array_length(func.regexp_split_to_array(func.btrim(last), r"\s+"), 1)
    found = []
    for ids in (judged, answered):
        rows = session.execute(
            select(Prompt.domain, words).where(Prompt.id.in_(ids)).order_by(Prompt.id).limit(MOST_PROMPTS)
        )
        found.append([(domain or "", count or 0) for domain, count in rows])
    return found[0], found[1]
