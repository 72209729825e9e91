"""SQL of rounds: their runs, models, prompts and samples."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Select,
    and_,
    cast,
    exists,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session, aliased

from app.domain.rounds import ACTIVE
from app.domain.shares import quotas
from app.models import (
    Comparison,
    Completion,
    Demonstration,
    Judgment,
    ModelVersion,
    PlaygroundTurn,
    Project,
    Prompt,
    RedTeamAttempt,
    Round,
    Run,
    Snapshot,
)
from app.rounds.snapshot_queries import PURPOSES


def undecided(session: Session, project_id: int) -> int:
    """Count open or in-review comparisons that a round would read once they are decided."""
    waiting = Comparison.state.in_(("open", "in_review")), Comparison.purpose.in_(PURPOSES)
    return session.scalar(select(func.count()).where(Comparison.project_id == project_id, *waiting)) or 0


def pending_demonstrations(session: Session, project_id: int) -> int:
    pending = (Demonstration.project_id == project_id, Demonstration.state == "pending")
    return session.scalar(select(func.count()).where(*pending)) or 0


def judgments_since(session: Session, project_id: int, moment: datetime | None) -> int:
    """Count live judgments with a preference given after a moment (None: all) on comparisons that a round may read."""
    query = (
        select(func.count())
        .select_from(Judgment)
        .join(Comparison, Comparison.id == Judgment.comparison_id)
        .where(
            Comparison.project_id == project_id,
            Comparison.purpose.in_(PURPOSES),
            Judgment.superseded_at.is_(None),
            Judgment.preference.is_not(None),
        )
    )
    return session.scalar(query if moment is None else query.where(Judgment.created_at > moment)) or 0


# ---- rounds and runs -------------------------------------------------------------------------------------------------


def rounds(session: Session, project_id: int, most: int | None = None, before: int | None = None) -> list[Round]:
    """Return the project's rounds, newest first: all, the newest `most`, or only those with a number below `before`."""
    query = select(Round).where(Round.project_id == project_id).order_by(Round.number.desc()).limit(most)
    return list(session.scalars(query if before is None else query.where(Round.number < before)))


def read_at(session: Session, round_: Round) -> datetime:
    """Return the moment that a round's data is from: when it was frozen, or before that, when it was started."""
    frozen = session.get(Snapshot, round_.snapshot_id) if round_.snapshot_id else None
    return frozen.created_at if frozen else round_.created_at


def by_number(session: Session, project_id: int, number: int) -> Round | None:
    return session.scalars(select(Round).where(Round.project_id == project_id, Round.number == number)).one_or_none()


def active_round(session: Session, project_id: int) -> Round | None:
    return session.scalars(select(Round).where(Round.project_id == project_id, Round.state.in_(ACTIVE))).one_or_none()


def _waiting(*columns: Any) -> Select[Any]:
    """Select the newest finished round of each project if its policy may still be promoted.

    That is so if its policy was not adopted and the project still has the policy that the round began with. While
    another round is active nothing waits, because that round began with the current policy.
    """
    later = aliased(Round)
    followed = later.project_id == Round.project_id, later.number > Round.number
    return (
        select(*columns)
        .select_from(Round)
        .join(Project, Project.id == Round.project_id)
        .where(
            Round.state == "done",
            Round.adopted.is_not(True),
            Round.policy_after_id.is_not(None),
            Round.policy_before_id == Project.policy_id,
            ~exists().where(*followed, later.state.in_(("done", *ACTIVE))),
        )
    )


def projects_with_waiting_policy(session: Session) -> list[int]:
    """Return projects whose newest policy waits for people's judgments and already has a closed comparison."""
    judged = Comparison.round_id == Round.id, Comparison.purpose == "human_eval", Comparison.state != "open"
    return list(session.scalars(_waiting(Project.id).where(exists().where(*judged)).order_by(Project.id)))


def round_with_waiting_policy(session: Session, project_id: int) -> Round | None:
    return session.scalars(_waiting(Round).where(Round.project_id == project_id)).one_or_none()


def runs_of(session: Session, round_id: int) -> list[Run]:
    """Return the round's runs in the order they were created, which is the order of the stages."""
    return list(session.scalars(select(Run).where(Run.round_id == round_id).order_by(Run.id)))


def unfinished_runs(session: Session, round_id: int) -> list[Run]:
    """Return the unfinished runs, locked, so that the worker waits before it continues with them."""
    query = select(Run).where(Run.round_id == round_id, Run.state.in_(("queued", "running"))).order_by(Run.id)
    return list(session.scalars(query.with_for_update(key_share=True)))


def has_unfinished_run(session: Session, round_id: int) -> bool:
    unfinished = Run.round_id == round_id, Run.state.in_(("queued", "running"))
    return bool(session.scalar(select(func.count()).where(*unfinished)))


def count_runs(session: Session, project_id: int) -> int:
    return session.scalar(select(func.count()).where(Run.project_id == project_id)) or 0


def sampling_runs(session: Session, project_id: int) -> list[Run]:
    """Return runs that sampled outside any round, newest first."""
    query = select(Run).where(Run.project_id == project_id, Run.round_id.is_(None), Run.kind == "sample")
    return list(session.scalars(query.order_by(Run.id.desc()).limit(5)))


def model_of(session: Session, project_id: int, base: str, adapter: str | None) -> ModelVersion | None:
    """Return the model version stored at these locations."""
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
    """Return the LoRA rank of a policy's adapter, from the run that trained it; None for a policy
    without an adapter."""
    policy = session.get(ModelVersion, policy_id) if policy_id else None
    run = session.get(Run, policy.run_id) if policy and policy.adapter and policy.run_id else None
    lora = run.spec.get("lora") if run else None
    return lora["rank"] if lora else None


# ---- prompts and samples ---------------------------------------------------------------------------------------------


def _spread(seed: int) -> Any:
    """Order prompts in a way that looks random but is the same every time."""
    return func.md5(func.concat(seed, "/", Prompt.id))


def train_prompts(session: Session, project_id: int) -> list[Prompt]:
    return list(
        session.scalars(
            select(Prompt).where(Prompt.project_id == project_id, Prompt.split == "train").order_by(Prompt.id)
        )
    )


def prompts_to_sample(
    session: Session, project_id: int, limit: int, seed: int, shares: Mapping[str, float], heldout_share: float
) -> list[Prompt]:
    """Return train and held-out prompts, at most `limit`.

    Train prompts with the fewest comparisons come first, mixed by difficulty in proportion to the shares. Held-out
    prompts fill at most `heldout_share` of the limit, and at least one place unless the share is 0. Those on which
    policies were compared least come first, so each policy is measured on fresh prompts as long as there are any.
    """
    compared = select(func.count()).where(Comparison.prompt_id == Prompt.id, Comparison.purpose == "human_eval")
    of_heldout = max(1, int(limit * heldout_share + 1e-9)) if heldout_share else 0
    asked = select(func.count()).where(Comparison.prompt_id == Prompt.id).correlate(Prompt).scalar_subquery()
    of_split = select(Prompt).where(Prompt.project_id == project_id)
    fresh_first = of_split.where(Prompt.split == "heldout").order_by(
        compared.correlate(Prompt).scalar_subquery(), _spread(0)
    )
    heldout = list(session.scalars(fresh_first.limit(of_heldout)))
    counted = select(Prompt.difficulty, func.count()).where(Prompt.project_id == project_id, Prompt.split == "train")
    there_are = dict(session.execute(counted.group_by(Prompt.difficulty).order_by(Prompt.difficulty)).all())
    found = heldout
    for difficulty, n in quotas(there_are, shares, max(limit - len(heldout), 0)).items():
        train = of_split.where(Prompt.split == "train", Prompt.difficulty == difficulty)
        found = found + list(session.scalars(train.order_by(asked, _spread(seed)).limit(n)))
    return sorted(found, key=lambda prompt: prompt.id)


def prompts_to_evaluate(session: Session, project_id: int, limit: int) -> list[Prompt]:
    """Return held-out and regression prompts, always the same ones; if the project has neither, train prompts."""
    of_project = select(Prompt).where(Prompt.project_id == project_id).order_by(_spread(0)).limit(limit)
    unseen = list(session.scalars(of_project.where(Prompt.split.in_(("heldout", "regression")))))
    return unseen or list(session.scalars(of_project.where(Prompt.split == "train")))


def prompts_by_id(session: Session, ids: set[int]) -> dict[int, Prompt]:
    return {prompt.id: prompt for prompt in session.scalars(select(Prompt).where(Prompt.id.in_(ids)))}


def heldout_among(session: Session, prompt_ids: set[int]) -> set[int]:
    """Return the prompts among these that are held out."""
    return set(session.scalars(select(Prompt.id).where(Prompt.id.in_(prompt_ids), Prompt.split == "heldout")))


def completions_of_run(session: Session, run_id: int, prompt_ids: set[int]) -> list[Completion]:
    query = select(Completion).where(Completion.run_id == run_id, Completion.prompt_id.in_(prompt_ids))
    return list(session.scalars(query.order_by(Completion.id)))


def stored_samples(session: Session, run_id: int) -> set[tuple[int, int]]:
    """Return (prompt id, sample index) of the samples that a run has stored."""
    query = select(Completion.prompt_id, Completion.sample_index).where(Completion.run_id == run_id)
    return {(prompt_id, index) for prompt_id, index in session.execute(query) if index is not None}


def sampled(session: Session, run_id: int) -> dict[str, int]:
    """Count a sampling run's stored responses, those that ended with an end-of-text token, and their tokens."""
    query = select(
        func.count().label("samples"),
        func.count().filter(Completion.finish_reason == "eos").label("finished"),
        cast(func.coalesce(func.sum(Completion.n_tokens), 0), BigInteger).label("tokens"),
    ).where(Completion.run_id == run_id)
    return dict(session.execute(query).one()._mapping)


def store_answer(session: Session, run_id: int, sample: dict[str, Any]) -> None:
    """Store the policy's answer to the run's red-team attempt, unless it has one.

    `prompt_id` is the attempt's id. Nothing is stored if the attempt has another run by now.
    """
    own = (RedTeamAttempt.id == sample["prompt_id"], RedTeamAttempt.run_id == run_id, RedTeamAttempt.answer.is_(None))
    answer = {name: sample[name] for name in ("text", "finish_reason", "n_tokens", "seed", "sampling")}
    session.execute(update(RedTeamAttempt).where(*own).values(answer=answer))


def store_turn(session: Session, run_id: int, sample: dict[str, Any]) -> None:
    """Store a model's answer in the run's playground turn, unless it has one.

    Both models answer both conversations, 0 and 1; a model's answer to the other model's conversation is dropped.
    """
    if sample["prompt_id"] != sample["sample_index"]:
        return
    column = (PlaygroundTurn.first, PlaygroundTurn.second)[sample["sample_index"]]
    answer = {name: sample[name] for name in ("text", "finish_reason", "n_tokens")}
    own = update(PlaygroundTurn).where(PlaygroundTurn.run_id == run_id, column.is_(None))
    session.execute(own.values({column: answer}))


def newest_completions(session: Session, prompt_ids: set[int], model_id: int) -> dict[int, list[Completion]]:
    """Return, by prompt, a model's samples from the last run in which it answered that prompt."""
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


def has_answered(session: Session, prompt_ids: set[int], model_id: int, sampling: dict[str, Any]) -> bool:
    """Tell whether a model was sampled with these settings on all of these prompts."""
    answered = select(func.count(Completion.prompt_id.distinct())).where(
        Completion.prompt_id.in_(prompt_ids),
        Completion.model_version_id == model_id,
        Completion.sampling.contains(sampling),
    )
    return session.scalar(answered) == len(prompt_ids)


def answers(
    session: Session, prompt_ids: set[int], model_id: int, sampling: dict[str, Any], most: int
) -> dict[int, list[str]]:
    """Return, by prompt, a model's oldest responses with these sampling settings, at most `most`.

    Seeds may differ, because responses with any seed are equally distributed.
    """
    place = func.row_number().over(partition_by=Completion.prompt_id, order_by=Completion.id)
    numbered = (
        select(Completion.prompt_id, Completion.text, place.label("place"))
        .where(
            Completion.prompt_id.in_(prompt_ids),
            Completion.model_version_id == model_id,
            Completion.run_id.is_not(None),
            Completion.sampling.contains(sampling),
        )
        .subquery()
    )
    found: dict[int, list[str]] = {}
    rows = select(numbered.c.prompt_id, numbered.c.text).where(numbered.c.place <= most)
    for prompt_id, text in session.execute(rows.order_by(numbered.c.prompt_id, numbered.c.place)):
        found.setdefault(prompt_id, []).append(text)
    return found


def samples(session: Session, project_id: int, *, split: str | None, round_id: int | None) -> Select[Any]:
    """Select sampled responses with prompt and model, to be read page by page or streamed."""
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
