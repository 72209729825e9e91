"""Data for the pages and JSON of rounds."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.intervals import Interval
from app.domain.monitors import Finding
from app.domain.rounds import ACTIVE, ALGORITHMS, stage_of
from app.domain.strengths import STRENGTHS
from app.domain.verdicts import Verdict, by_reward_model
from app.judges import training_queries as judge_queries
from app.models import ModelVersion, Project, Round, Run, Snapshot
from app.queue import has_worker
from app.render import duration
from app.rounds import queries, result_queries
from app.rounds.adoption import difference_of
from app.rounds.curves import ROLLOUTS, Curves, curves_of
from app.rounds.outcomes import Rivals, WinRate, people_on, verdict_of, win_rates
from app.rounds.powered import Together, powered_on
from app.rounds.stages import checkpoints_of, plan_of, samples_of
from app.rounds.watched import Raised, alarms_of, findings_of
from app.suites import queries as suite_queries
from app.suites import service as suites
from app.suites.queries import Measured

STAGE_LABELS = {
    "freezing": "Snapshot",
    "reward": "Reward model",
    "policy": "Policy",
    "sampling": "New samples",
    "evaluating": "Evaluation",
}


class StageView(NamedTuple):
    name: str
    label: str
    state: str  # waiting | queued | running | succeeded | failed | cancelled | skipped
    run: Run | None

    @property
    def note(self) -> str:
        """What an active stage is doing, and for how long: `3 of 10 epochs, 2 minutes so far`."""
        if self.run is None or self.state not in ("queued", "running"):
            return ""
        if self.state == "queued":
            return "waiting for a worker"
        run = self.run
        doing = run.progress_message or "starting"
        if run.progress_total:
            doing = f"{run.progress_done:,} of {run.progress_total:,} {run.progress_message}"
        if run.started_at is None:
            return doing
        doing = f"{doing}, {duration((datetime.now(UTC) - run.started_at).total_seconds())} so far"
        if run.seconds_left is not None:
            doing += f", about {duration(run.seconds_left)} left"
        speed = f"{run.tokens_per_second:,.0f} tokens a second" if run.tokens_per_second else ""
        return ". ".join(each for each in (doing, ", ".join(part for part in (speed, run.device) if part)) if each)

    @property
    def remarks(self) -> list[str]:
        """Notes that a reader of the stage's figures needs, above all about rows that were left out."""
        result = (self.run and self.run.result) or {}
        return [*result.get("dropped", ()), *result.get("notes", ())]


def stages_of(round_: Round, runs: Sequence[Run]) -> list[StageView]:
    """Return the stages of the round's plan with their runs. A stage that is not reached yet waits, or is skipped if
    the round was cancelled."""
    by_stage = {stage_of(run.kind): run for run in runs}
    found: list[StageView] = []
    for stage in plan_of(round_):
        run = by_stage.get(stage)
        # The stage failed before its run could be created.
        stopped = round_.state == "failed" and all(each.state == "succeeded" for each in found)
        never = "skipped" if round_.state == "cancelled" else "waiting"
        state = run.state if run else "failed" if stopped else never
        found.append(StageView(stage, STAGE_LABELS[stage], state, run))
    return found


def status(session: Session, round_: Round, runs: Sequence[Run]) -> dict[str, Any]:
    """Return a round's status as JSON."""
    people = people_on(session, round_)
    found = verdict_of(session, round_, people)
    return {
        "number": round_.number,
        "state": round_.state,
        "algorithm": round_.algorithm,
        "finished": round_.state not in ACTIVE,
        "cancelling": round_.state in ACTIVE and any(run.cancel_requested for run in runs),
        "error": round_.error,
        "adopted": round_.adopted,
        "held_by": [held.words for held in suites.held_back(session, round_)] if round_.state == "done" else [],
        "verdict": {"word": found.word, "by": found.by, **found.interval._asdict()} if found else None,
        "log": log_of(runs),
        "people": {"before": _said(people.before), "first": _said(people.first)},
        "stages": [
            {
                "stage": stage.name,
                "label": stage.label,
                "state": stage.state,
                "run": stage.run.id if stage.run else None,
                "attempt": stage.run.attempts if stage.run else 0,
                "done": stage.run.progress_done if stage.run else 0,
                "total": stage.run.progress_total if stage.run else 0,
                "message": stage.run.progress_message if stage.run else "",
                "note": stage.note,
                "result": stage.run.result if stage.run else None,
            }
            for stage in stages_of(round_, runs)
        ],
    }


def log_of(runs: Sequence[Run]) -> str:
    """Return the end of the log of the newest run that has one."""
    return next((run.log for run in reversed(runs) if run.log), "")


def _said(wins: WinRate | None) -> dict[str, Any] | None:
    """Return people's preference between two policies as JSON."""
    return wins.said._asdict() | {"judgments": wins.n} if wins and wins.said else None


def metrics(session: Session, round_: Round, after: str) -> dict[str, Any]:
    """Return the round's status, whether a worker is running, and the metrics from a cursor on.

    The response's `cursor` goes into the next call. It repeats the cursor's step, because more may have been recorded
    for that step; readers replace values by run, name and step.
    """
    runs = queries.runs_of(session, round_.id)
    run_id, step = parse_cursor(after)
    rows = result_queries.metrics_from(session, [run.id for run in runs], run_id, step)
    cursor = f"{rows[-1].run_id}.{rows[-1].step}" if rows else f"{run_id}.{step}"
    kinds = {run.id: run.kind for run in runs}
    return status(session, round_, runs) | {
        "worker": has_worker(session),
        "cursor": cursor,
        "metrics": [
            {"kind": kinds[row.run_id], "name": row.name, "step": row.step, "value": finite(row.value)} for row in rows
        ],
    }


def parse_cursor(after: str) -> tuple[int, int]:
    """Parse `run.step` of the last metric seen; anything else starts from the beginning."""
    run_id, _, step = after.partition(".")
    return (int(run_id), int(step)) if run_id.isdecimal() and step.isdecimal() and len(after) < 30 else (0, 0)


def finite(value: float) -> float | None:
    """Replace NaN and infinities, which JSON does not have, by None."""
    return value if math.isfinite(value) else None


class Use(NamedTuple):
    """The time, tokens and memory of a finished run."""

    label: str
    tokens: int | None
    seconds: float | None
    peak_memory: int | None  # bytes
    device: str | None

    @classmethod
    def of(cls, stage: StageView) -> "Use":
        result = (stage.run and stage.run.result) or {}
        tokens, seconds, memory = (result.get(name) for name in ("tokens", "seconds", "peak_memory"))
        return cls(stage.label, tokens, seconds, memory, stage.run.device if stage.run else None)

    @property
    def rate(self) -> float | None:
        """Tokens per second."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


class Beside(NamedTuple):
    """A figure of the previous and the new policy, with the interval of their difference if known."""

    label: str
    before: float
    new: float
    is_share: bool
    difference: Interval | None

    @property
    def change(self) -> float:
        return self.new - self.before


# Figures of both policies: name after `eval_before/`, name of the new policy's, label, whether it is a share.
_BESIDE = (
    ("scores", "eval_objective/scores", "Reward", False),
    ("length", "eval_length", "Tokens a response", False),
    ("finished", "eval_finished", "Finished", True),
    ("repetition", "eval_repetition", "Repetition", True),
    ("refusals", "eval_refusals", "Refusals", True),
)


def beside(metrics: Mapping[str, float]) -> list[Beside]:
    """Return both policies' figures from an evaluation's metrics; empty if it did not compare them."""
    return [
        Beside(
            label,
            metrics[f"eval_before/{name}"],
            metrics[new],
            is_share,
            difference_of(metrics) if name == "scores" else None,
        )
        for name, new, label, is_share in _BESIDE
        if f"eval_before/{name}" in metrics and new in metrics
    ]


class Page(NamedTuple):
    """Data for a round's page."""

    round: Round
    stages: list[StageView]
    snapshot: Snapshot | None
    mixed: Snapshot | None  # the demonstrations that PPO mixed in
    thumbs: Snapshot | None  # thumbs that KTO learned from
    models: dict[str, ModelVersion | None]
    charts: list[Curves]
    summaries: dict[str, dict[str, float]]  # by kind of run: the newest value of each metric over all rows
    slices: list[tuple[str, dict[str, dict[str, float]]]]  # the same by slice, as (slice, figures)
    opened: dict[str, tuple[int, int]]  # by purpose: comparisons opened, and how many are decided
    verdict: Verdict | None
    people: Rivals
    powered: Together | None  # people's win rate and AI judges' together
    judges: list[judge_queries.Read]  # AI judges whose comparisons it trained on
    beside: list[Beside]  # the new and the previous policy, on the same prompts
    monitors: list[Finding]  # of reward hacking, those that need a look first
    alarms: list[Raised]  # of monitors while the policy was trained
    suites: list[Measured]  # both policies' results on suites
    held_by: list[str]  # reasons why the new policy is not adopted automatically, whatever people say
    policy_id: int | None  # the project's policy
    cancelling: bool
    worker: bool  # a worker is running
    reads: str  # what it trained on, in words
    has_training_samples: bool
    checkpoint_bytes: int  # size of a failed round's checkpoints, kept for a retry
    log: str  # the end of the newest run's log
    can_retry: bool  # it failed and is the newest round
    is_busy: bool  # a round of the project is active, so that no model can be adopted
    waits: bool  # the new policy becomes the project's once people prefer it

    @property
    def active(self) -> bool:
        return self.round.state in ACTIVE

    @property
    def has_rollouts(self) -> bool:
        return self.round.algorithm in ROLLOUTS

    @property
    def found_worse(self) -> bool:
        """Tell whether the reward model found the new policy worse when the round ended."""
        evaluated = next((stage.run.result for stage in self.stages if stage.name == "evaluating" and stage.run), None)
        found = by_reward_model(difference_of((evaluated or {}).get("metrics", {})))
        return found is not None and found.word == "worse"

    @property
    def budget(self) -> float | None:
        """The KL budget in nats per response, as it was set; None for an algorithm without one."""
        config = self.round.config
        fixed = config.get("kl_control") == "fixed"
        return config.get("kl_budget") or (None if fixed else config.get("kl_target"))

    @property
    def strength(self) -> str:
        """The strength, if it set the budget."""
        chosen = STRENGTHS.get(self.round.config.get("strength", ""))
        decides = "kl_budget" if self.round.config.get("kl_budget") else "kl_target"
        return chosen.label.lower() if chosen and getattr(chosen, decides) == self.budget else ""

    @property
    def before(self) -> ModelVersion | None:
        return self.models["Policy before"]

    @property
    def new(self) -> ModelVersion | None:
        return self.models["New policy"]

    @property
    def uses(self) -> list[Use]:
        return [Use.of(stage) for stage in self.stages if stage.run and stage.run.result]


def reads(algorithm: str, counts: dict[str, Any]) -> str:
    """Say what a round trains on from a snapshot's counts: `300 new + 120 earlier comparisons`."""
    revised = f", {counts['ai_revised']:,} of them with AI revisions" if counts.get("ai_revised") else ""
    if algorithm == "sft":
        return f"{counts['train']:,} demonstrations{revised}"
    earlier = sum(counts.get("earlier", {}).values())
    new = counts.get("new", counts["train"])
    by_judges = f" by people, {counts['ai']:,} more by AI judges" if counts.get("ai") else ""
    read = f"{new:,} new + {earlier:,} earlier comparisons" if earlier else f"{new:,} comparisons"
    return read + revised + by_judges


def page(session: Session, store: ArtifactStore, round_: Round) -> Page:
    runs = queries.runs_of(session, round_.id)
    kinds = {run.id: run.kind for run in runs}
    summaries: dict[str, dict[str, float]] = defaultdict(dict)
    by_slice: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in result_queries.last_values(session, [run.id for run in runs]):
        if row.slice:
            by_slice[row.slice][kinds[row.run_id]][row.name] = row.value
        else:
            summaries[kinds[row.run_id]][row.name] = row.value
    models = queries.models_by_id(
        session, {round_.policy_before_id, round_.policy_after_id, round_.reward_model_id, round_.reference_id}
    )
    named = {
        "Policy before": round_.policy_before_id,
        "Reference": round_.reference_id,
        "Reward model": round_.reward_model_id,
        "New policy": round_.policy_after_id,
    }
    stages = stages_of(round_, runs)
    snapshot = session.get(Snapshot, round_.snapshot_id) if round_.snapshot_id else None
    evaluated = summaries.get("evaluate", {})
    wins = win_rates(session, [round_])
    people = wins.get((round_.id, ""), Rivals())
    return Page(
        round=round_,
        stages=stages,
        snapshot=snapshot,
        mixed=session.get(Snapshot, round_.ptx_snapshot_id) if round_.ptx_snapshot_id else None,
        thumbs=session.get(Snapshot, round_.thumbs_snapshot_id) if round_.thumbs_snapshot_id else None,
        models={label: models.get(model_id) if model_id else None for label, model_id in named.items()},
        charts=curves_of(round_, runs),
        summaries=dict(summaries),
        slices=sorted(by_slice.items()),
        opened={p: counts for (_, p), counts in result_queries.opened_comparisons(session, [round_.id]).items()},
        verdict=verdict_of(session, round_, people),
        people=people,
        powered=powered_on(session, round_) if round_.state == "done" else None,
        judges=judge_queries.read_by(session, [snapshot.id]) if snapshot and snapshot.counts.get("ai") else [],
        beside=beside(evaluated),
        monitors=findings_of(
            session,
            round_,
            {"": evaluated} | {name: kinds.get("evaluate", {}) for name, kinds in by_slice.items()},
            wins,
        ),
        alarms=alarms_of(round_, runs),
        suites=suite_queries.of_round(session, round_.id),
        held_by=[held.words for held in suites.held_back(session, round_)],
        policy_id=session.get_one(Project, round_.project_id).policy_id,
        cancelling=round_.state in ACTIVE and any(run.cancel_requested for run in runs),
        worker=has_worker(session),
        reads=reads(round_.algorithm, snapshot.counts) if snapshot else "",
        has_training_samples=training_samples_of(session, store, round_) is not None,
        checkpoint_bytes=sum(store.size(checkpoints_of(run.id)) for run in runs) if round_.state == "failed" else 0,
        log=log_of(runs),
        can_retry=round_.state == "failed" and queries.by_number(session, round_.project_id, round_.number + 1) is None,
        is_busy=queries.active_round(session, round_.project_id) is not None,
        waits=queries.round_with_waiting_policy(session, round_.project_id) is round_,
    )


# ---- samples ---------------------------------------------------------------------------------------------------------


def training_samples_of(session: Session, store: ArtifactStore, round_: Round) -> Path | None:
    """Return the file of the policy's responses during training, if there is one."""
    runs = [run for run in queries.runs_of(session, round_.id) if run.kind in ALGORITHMS]
    return next((store.resolve(samples_of(run.id)) for run in runs if store.exists(samples_of(run.id))), None)


Split = Literal["train", "heldout", "regression", "calibration"]
AT_ONCE = 500  # samples fetched together


def sample_lines(session: Session, project_id: int, *, split: str | None, round_id: int | None) -> Iterator[str]:
    """Yield sampled responses as JSONL: prompt, model version and text of each."""
    query = queries.samples(session, project_id, split=split, round_id=round_id)
    for row in session.execute(query.execution_options(yield_per=AT_ONCE)):
        line = {
            "prompt_id": row.prompt_id,
            "prompt": row.messages,
            "split": row.split,
            "domain": row.domain,
            "model": row.model,
            "model_version_id": row.model_version_id,
            "sample_index": row.sample_index,
            "text": row.text,
            "finish_reason": row.finish_reason,
            "n_tokens": row.n_tokens,
        }
        yield json.dumps(line, ensure_ascii=False) + "\n"
