"""SQL of rounds: what they read, what they wrote, where they stand."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    and_,
    cast,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session, aliased

from app.domain.rounds import ACTIVE
from app.domain.shares import quotas
from app.models import (
    Adjudication,
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    ModelVersion,
    Prompt,
    RedTeamAttempt,
    Round,
    Rubric,
    Run,
    SnapshotComparison,
    SnapshotDemonstration,
)
from app.rounds.model_queries import current_line

PURPOSES = ("train", "heldout", "human_eval")
# What a round may read. Repeats and calibration items measure labelers, not responses.
_USABLE = (
    Comparison.state.in_(("settled", "adjudicated")),
    Comparison.purpose.in_(PURPOSES),
    Prompt.split.in_(("train", "heldout")),
)
_HELDOUT = or_(Prompt.split == "heldout", Comparison.purpose == "heldout")


def usable_comparisons(session: Session, project_id: int, *, texts: bool) -> Sequence[Any]:
    """Comparisons a round may read, with live judgments and verdict, and with texts where they are wanted.

    One statement, so one moment in time. Judgments that could not say a preference do not count. `first_round` is the
    number of the round that first trained on it.
    """
    a, b, asked = aliased(Completion), aliased(Completion), aliased(Comparison)
    live = (
        select(
            Judgment.comparison_id,
            func.array_agg(aggregate_order_by(Judgment.id, Judgment.id)).label("judgments"),
            func.array_agg(aggregate_order_by(cast(Judgment.preference, Integer), Judgment.id)).label("preferences"),
            func.avg(cast(Judgment.both_bad, Integer)).label("both_bad"),
            func.jsonb_agg(Judgment.aspects).filter(Judgment.aspects != {}).label("aspects"),
        )
        .join(asked, asked.id == Judgment.comparison_id)
        .where(asked.project_id == project_id)
        .where(Judgment.superseded_at.is_(None), Judgment.preference.is_not(None))
        .group_by(Judgment.comparison_id)
        .subquery()
    )
    read = (
        select(SnapshotComparison.comparison_id, func.min(Round.number).label("first_round"))
        .join(Round, Round.snapshot_id == SnapshotComparison.snapshot_id)
        .where(*_trained(project_id))
        .group_by(SnapshotComparison.comparison_id)
        .subquery()
    )
    columns = (
        Comparison.id,
        Adjudication.verdict,
        func.coalesce(live.c.judgments, []).label("judgments"),
        func.coalesce(live.c.preferences, []).label("preferences"),
        Comparison.consensus,
        Comparison.p_b,
        Comparison.p_tie,
        _HELDOUT.label("heldout"),
        read.c.first_round,
    )
    query = (
        select(*columns)
        .join(Prompt, Prompt.id == Comparison.prompt_id)
        .outerjoin(Adjudication, Adjudication.comparison_id == Comparison.id)
        .outerjoin(live, live.c.comparison_id == Comparison.id)
        .outerjoin(read, read.c.comparison_id == Comparison.id)
        .where(Comparison.project_id == project_id, *_USABLE)
        .order_by(Comparison.id)
    )
    if texts:
        query = (
            query.add_columns(
                Comparison.prompt_id,
                Comparison.ranking_id,
                func.coalesce(live.c.both_bad, 0).label("both_bad"),
                func.coalesce(live.c.aspects, []).label("aspects"),
                Prompt.messages,
                Prompt.split.label("prompt_split"),
                Prompt.domain,
                Prompt.difficulty,
                Prompt.safety_category,
                a.text.label("text_a"),
                b.text.label("text_b"),
                func.coalesce(a.finish_reason != "length", True).label("finished_a"),
                func.coalesce(b.finish_reason != "length", True).label("finished_b"),
                Rubric.version.label("rubric_version"),
            )
            .join(a, a.id == Comparison.completion_a_id)
            .join(b, b.id == Comparison.completion_b_id)
            .join(Rubric, Rubric.id == Comparison.rubric_id)
        )
    return session.execute(query).all()


def _trained(project_id: int) -> tuple[ColumnElement[bool], ...]:
    """Rounds whose comparisons the project's policy has learned from: it, or what it came from, was made by them."""
    line = current_line(project_id)
    return Round.project_id == project_id, Round.algorithm != "sft", Round.policy_after_id.in_(select(line.c.id))


def trained_rounds(session: Session, project_id: int) -> list[int]:
    """Numbers of the rounds whose comparisons the policy has learned from: see `_trained`."""
    return list(session.scalars(select(Round.number).where(*_trained(project_id)).order_by(Round.number)))


def add_snapshot_comparisons(session: Session, snapshot_id: int, comparison_ids: list[int]) -> None:
    held = select(literal(snapshot_id, BigInteger), func.unnest(literal(comparison_ids, ARRAY(BigInteger))))
    session.execute(insert(SnapshotComparison).from_select(["snapshot_id", "comparison_id"], held))


def add_snapshot_demonstrations(session: Session, snapshot_id: int, demonstration_ids: list[int]) -> None:
    held = select(literal(snapshot_id, BigInteger), func.unnest(literal(demonstration_ids, ARRAY(BigInteger))))
    session.execute(insert(SnapshotDemonstration).from_select(["snapshot_id", "demonstration_id"], held))


def undecided(session: Session, project_id: int) -> int:
    """Comparisons that are open or in review, of those that a round would read once they are decided."""
    waiting = Comparison.state.in_(("open", "in_review")), Comparison.purpose.in_(PURPOSES)
    return session.scalar(select(func.count()).where(Comparison.project_id == project_id, *waiting)) or 0


def approved_demonstrations(session: Session, project_id: int) -> Sequence[Any]:
    """Approved demonstrations on train and held-out prompts, with the prompt's messages and tags."""
    query = (
        select(
            Demonstration.id,
            Demonstration.text,
            Prompt.messages,
            Prompt.split,
            Prompt.domain,
            Prompt.difficulty,
            Prompt.safety_category,
        )
        .join(Prompt, Prompt.id == Demonstration.prompt_id)
        .where(
            Demonstration.project_id == project_id,
            Demonstration.state == "approved",
            Prompt.split.in_(("train", "heldout")),
        )
        .order_by(Demonstration.id)
    )
    return session.execute(query).all()


def pending_demonstrations(session: Session, project_id: int) -> int:
    pending = (Demonstration.project_id == project_id, Demonstration.state == "pending")
    return session.scalar(select(func.count()).where(*pending)) or 0


def judgments_since(session: Session, project_id: int, moment: datetime | None) -> int:
    """Live judgments given after a moment (all of them for none), of comparisons that a round may read."""
    query = (
        select(func.count())
        .select_from(Judgment)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(
            Comparison.project_id == project_id,
            Comparison.purpose.in_(PURPOSES),
            Judgment.superseded_at.is_(None),
        )
    )
    return session.scalar(query if moment is None else query.where(Judgment.created_at > moment)) or 0


# ---- rounds and runs -------------------------------------------------------------------------------------------------


def rounds(session: Session, project_id: int) -> list[Round]:
    """Newest first."""
    return list(session.scalars(select(Round).where(Round.project_id == project_id).order_by(Round.number.desc())))


def by_number(session: Session, project_id: int, number: int) -> Round | None:
    return session.scalars(select(Round).where(Round.project_id == project_id, Round.number == number)).one_or_none()


def active_round(session: Session, project_id: int) -> Round | None:
    return session.scalars(select(Round).where(Round.project_id == project_id, Round.state.in_(ACTIVE))).one_or_none()


def runs_of(session: Session, round_id: int) -> list[Run]:
    """In the order they were made, which is the order of the stages."""
    return list(session.scalars(select(Run).where(Run.round_id == round_id).order_by(Run.id)))


def unfinished_runs(session: Session, round_id: int) -> list[Run]:
    """Locked: what the worker does next with them waits for us."""
    query = select(Run).where(Run.round_id == round_id, Run.state.in_(("queued", "running"))).order_by(Run.id)
    return list(session.scalars(query.with_for_update(key_share=True)))


def has_unfinished_run(session: Session, round_id: int) -> bool:
    unfinished = Run.round_id == round_id, Run.state.in_(("queued", "running"))
    return bool(session.scalar(select(func.count()).where(*unfinished)))


def count_runs(session: Session, project_id: int) -> int:
    return session.scalar(select(func.count()).where(Run.project_id == project_id)) or 0


def sampling_runs(session: Session, project_id: int) -> list[Run]:
    """Runs that sampled outside any round, newest first."""
    query = select(Run).where(Run.project_id == project_id, Run.round_id.is_(None), Run.kind == "sample")
    return list(session.scalars(query.order_by(Run.id.desc()).limit(5)))


def model_of(session: Session, project_id: int, base: str, adapter: str | None) -> ModelVersion | None:
    """The model version stored at these locations."""
    query = select(ModelVersion).where(
        ModelVersion.project_id == project_id,
        ModelVersion.base == base,
        ModelVersion.adapter.is_not_distinct_from(adapter),
        ModelVersion.role != "reward",
    )
    return session.scalars(query.order_by(ModelVersion.id.desc()).limit(1)).one_or_none()


def models_by_id(session: Session, ids: set[int | None]) -> dict[int, ModelVersion]:
    found = session.scalars(select(ModelVersion).where(ModelVersion.id.in_(ids - {None})))
    return {model.id: model for model in found}


def newest_reward_model_id(session: Session, project_id: int) -> int | None:
    query = select(ModelVersion.id).where(ModelVersion.project_id == project_id, ModelVersion.role == "reward")
    return session.scalar(query.order_by(ModelVersion.id.desc()).limit(1))


def adapter_rank(session: Session, policy_id: int | None) -> int | None:
    """The LoRA rank of a policy's adapter, by the run that trained it; None for a policy without one."""
    policy = session.get(ModelVersion, policy_id) if policy_id else None
    run = session.get(Run, policy.run_id) if policy and policy.adapter and policy.run_id else None
    lora = run.spec.get("lora") if run else None
    return lora["rank"] if lora else None


# ---- prompts and samples ---------------------------------------------------------------------------------------------


def _spread(seed: int) -> Any:
    """An order of prompts that looks random and is the same every time."""
    return func.md5(func.concat(seed, "/", Prompt.id))


def train_prompts(session: Session, project_id: int) -> list[Prompt]:
    return list(
        session.scalars(
            select(Prompt).where(Prompt.project_id == project_id, Prompt.split == "train").order_by(Prompt.id)
        )
    )


def prompts_to_sample(
    session: Session, project_id: int, limit: int, seed: int, shares: Mapping[str, float]
) -> list[Prompt]:
    """Train and held-out prompts, at most `limit`.

    Of the train prompts those asked about least, mixed by difficulty in proportion to the shares. Of the held-out ones
    (at most three in ten) always the same, because a new policy is compared with the previous one's responses to them.
    """
    asked = select(func.count()).where(Comparison.prompt_id == Prompt.id).correlate(Prompt).scalar_subquery()
    of_split = select(Prompt).where(Prompt.project_id == project_id)
    heldout = list(
        session.scalars(of_split.where(Prompt.split == "heldout").order_by(_spread(0)).limit(max(1, limit * 3 // 10)))
    )
    counted = select(Prompt.difficulty, func.count()).where(Prompt.project_id == project_id, Prompt.split == "train")
    there_are = dict(session.execute(counted.group_by(Prompt.difficulty).order_by(Prompt.difficulty)).all())
    found = heldout
    for difficulty, n in quotas(there_are, shares, max(limit - len(heldout), 0)).items():
        train = of_split.where(Prompt.split == "train", Prompt.difficulty == difficulty)
        found = found + list(session.scalars(train.order_by(asked, _spread(seed)).limit(n)))
    return sorted(found, key=lambda prompt: prompt.id)


def prompts_to_evaluate(session: Session, project_id: int, limit: int) -> list[Prompt]:
    """Held-out and regression prompts, always the same ones; train prompts in a project that has neither."""
    of_project = select(Prompt).where(Prompt.project_id == project_id).order_by(_spread(0)).limit(limit)
    unseen = list(session.scalars(of_project.where(Prompt.split.in_(("heldout", "regression")))))
    return unseen or list(session.scalars(of_project.where(Prompt.split == "train")))


def prompts_by_id(session: Session, ids: set[int]) -> dict[int, Prompt]:
    return {prompt.id: prompt for prompt in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}


def completions_of_run(session: Session, run_id: int, prompt_ids: set[int]) -> list[Completion]:
    query = select(Completion).where(Completion.run_id == run_id, Completion.prompt_id.in_(prompt_ids))
    return list(session.scalars(query.order_by(Completion.id)))


def stored_samples(session: Session, run_id: int) -> set[tuple[int, int]]:
    """(prompt id, sample index) of what a sampling run has stored."""
    query = select(Completion.prompt_id, Completion.sample_index).where(Completion.run_id == run_id)
    return {(prompt_id, index) for prompt_id, index in session.execute(query) if index is not None}


def sampled(session: Session, run_id: int) -> dict[str, int]:
    """How many responses a sampling run has stored, how many of them ended by themselves, and their tokens."""
    query = select(
        func.count().label("samples"),
        func.count().filter(Completion.finish_reason == "eos").label("finished"),
        cast(func.coalesce(func.sum(Completion.n_tokens), 0), BigInteger).label("tokens"),
    ).where(Completion.run_id == run_id)
    return dict(session.execute(query).one()._mapping)


def store_answer(session: Session, run_id: int, sample: dict[str, Any]) -> None:
    """What the policy said to the red-team attempt that the run is for; what is stored already stays.

    The attempt's id stands where a prompt's does. An attempt that another run answers by now takes nothing.
    """
    own = (RedTeamAttempt.id == sample["prompt_id"], RedTeamAttempt.run_id == run_id, RedTeamAttempt.answer.is_(None))
    answer = {name: sample[name] for name in ("text", "finish_reason", "n_tokens", "seed", "sampling")}
    session.execute(update(RedTeamAttempt).where(*own).values(answer=answer))


def newest_completions(session: Session, prompt_ids: set[int], model_id: int) -> dict[int, list[Completion]]:
    """By prompt: the samples of a model from the last run in which it answered that prompt."""
    last = (
        select(Completion.prompt_id, func.max(Completion.run_id).label("run_id"))
        .where(Completion.prompt_id.in_(prompt_ids), Completion.model_version_id == model_id)
        .group_by(Completion.prompt_id)
        .subquery()
    )
    query = select(Completion).join(
        last, and_(last.c.prompt_id == Completion.prompt_id, last.c.run_id == Completion.run_id)
    )
    found: dict[int, list[Completion]] = {}
    for completion in session.scalars(query.where(Completion.model_version_id == model_id).order_by(Completion.id)):
        found.setdefault(completion.prompt_id, []).append(completion)
    return found


def samples(session: Session, project_id: int, *, split: str | None, round_id: int | None) -> Select[Any]:
    """A query of sampled responses with prompt and model, to be read page by page or streamed."""
    query = (
        select(
            Completion.id,
            Completion.prompt_id,
            Prompt.messages,
            Prompt.split,
            Prompt.domain,
            ModelVersion.name.label("model"),
            Completion.model_version_id,
            Run.round_id,
            Completion.sample_index,
            Completion.text,
            Completion.finish_reason,
            Completion.n_tokens,
        )
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .join(ModelVersion, ModelVersion.id == Completion.model_version_id)
        .join(Run, Run.id == Completion.run_id)
        .where(Prompt.project_id == project_id)
        .order_by(Completion.id)
    )
    if split:
        query = query.where(Prompt.split == split)
    if round_id is not None:
        query = query.where(Run.round_id == round_id)
    return query
