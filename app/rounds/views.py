"""What the pages and JSON of rounds show, built from rows."""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy.orm import Session

from app.artifacts import ArtifactStore
from app.domain.consensus import Consensus, side
from app.domain.proportions import wilson
from app.domain.rounds import ACTIVE, stage_of
from app.domain.slices import of_prompt
from app.models import ModelVersion, Project, Round, Run, Snapshot
from app.queue import has_worker
from app.rounds import queries, result_queries
from app.rounds.stages import checkpoints_of, plan_of, samples_of

ACCURACY, KL, REWARD = "eval_accuracy", "eval_objective/kl", "eval_objective/scores"

STAGE_LABELS = {
    "reward": "Reward model",
    "policy": "Policy",
    "sampling": "New samples",
    "evaluating": "Evaluation",
}


class Chart(NamedTuple):
    """Curves of one run, over its steps. `kinds` are the kinds of run that report them."""

    title: str
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    hint: str = ""


CHARTS = (
    Chart("Reward model: loss", ("reward",), ("loss", "eval_loss")),
    Chart("Reward model: accuracy", ("reward",), ("accuracy", "eval_accuracy"), "eval_: held-out comparisons"),
    Chart("Reward model: margin", ("reward",), ("margin", "eval_margin"), "mean reward of chosen less rejected"),
    Chart("Policy: loss", ("sft",), ("loss", "eval_loss"), "nats a token of the answers"),
    Chart("Policy: loss", ("dpo",), ("loss", "eval_loss")),
    Chart("Policy: reward", ("dpo",), ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    Chart("Policy: accuracy", ("dpo",), ("rewards/accuracies", "eval_rewards/accuracies")),
    Chart("Policy: reward", ("ppo",), ("objective/scores", "objective/rlhf_reward"), "scores: before the KL leash"),
    Chart("Policy: KL", ("ppo",), ("objective/kl",), "nats a sequence, to the reference"),
    Chart("Policy: KL coefficient", ("ppo",), ("objective/kl_coef",), "the leash: higher holds closer"),
    Chart("Policy: loss", ("ppo",), ("loss/policy_avg", "loss/value_avg")),
)


POLICY_KINDS = ("sft", "dpo", "ppo")


class StageView(NamedTuple):
    name: str
    label: str
    state: str  # waiting | queued | running | succeeded | failed | cancelled
    run: Run | None

    @property
    def remarks(self) -> list[str]:
        """What a reader of the stage's figures has to know: rows that were left out, above all."""
        result = (self.run and self.run.result) or {}
        return [*result.get("dropped", ()), *result.get("notes", ())]


def stages_of(round_: Round, runs: Sequence[Run]) -> list[StageView]:
    """The stages of the round's plan with their runs; a stage that is not reached yet waits."""
    by_stage = {stage_of(run.kind): run for run in runs}
    found: list[StageView] = []
    for stage in plan_of(round_):
        run = by_stage.get(stage)
        # A stage whose run could not even be made.
        stopped = round_.state == "failed" and all(each.state == "succeeded" for each in found)
        state = run.state if run else "failed" if stopped else "waiting"
        found.append(StageView(stage, STAGE_LABELS[stage], state, run))
    return found


def status(round_: Round, runs: Sequence[Run]) -> dict[str, Any]:
    """Where a round stands, as JSON."""
    return {
        "number": round_.number,
        "state": round_.state,
        "algorithm": round_.algorithm,
        "finished": round_.state not in ACTIVE,
        "cancelling": round_.state in ACTIVE and any(run.cancel_requested for run in runs),
        "error": round_.error,
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
                "result": stage.run.result if stage.run else None,
            }
            for stage in stages_of(round_, runs)
        ],
    }


def metrics(session: Session, round_: Round, after: str) -> dict[str, Any]:
    """The round's status, whether a worker is there, and the metrics from a cursor on, which the answer renews.

    `cursor` goes into the next call.

    The step of the cursor comes again, since more may have been recorded for it; readers replace by run, name and step.
    """
    runs = queries.runs_of(session, round_.id)
    run_id, step = parse_cursor(after)
    rows = result_queries.metrics_from(session, [run.id for run in runs], run_id, step)
    cursor = f"{rows[-1].run_id}.{rows[-1].step}" if rows else f"{run_id}.{step}"
    kinds = {run.id: run.kind for run in runs}
    return status(round_, runs) | {
        "worker": has_worker(session),
        "cursor": cursor,
        "metrics": [
            {"kind": kinds[row.run_id], "name": row.name, "step": row.step, "value": finite(row.value)} for row in rows
        ],
    }


def parse_cursor(after: str) -> tuple[int, int]:
    """`run.step` of the last metric seen; anything else begins anew."""
    run_id, _, step = after.partition(".")
    return (int(run_id), int(step)) if run_id.isdecimal() and step.isdecimal() and len(after) < 30 else (0, 0)


def finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


class Page(NamedTuple):
    """A round's page."""

    round: Round
    stages: list[StageView]
    snapshot: Snapshot | None
    mixed: Snapshot | None  # the demonstrations that PPO mixed in
    models: dict[str, ModelVersion | None]
    charts: list[Chart]
    summaries: dict[str, dict[str, float]]  # by kind of run: newest value of each metric over all rows
    slices: list[tuple[str, dict[str, dict[str, float]]]]  # the same by slice, its name first
    opened: dict[str, tuple[int, int]]  # by purpose: comparisons opened, decided
    wins: "WinRate | None"
    cancelling: bool
    worker: bool  # whether there is one
    reads: str  # what it trained on, in words
    has_training_samples: bool
    checkpoint_bytes: int  # kept for a retry of a failed round
    can_retry: bool  # it failed, and is the newest

    @property
    def active(self) -> bool:
        return self.round.state in ACTIVE


def reads(algorithm: str, counts: dict[str, Any]) -> str:
    """`300 new + 120 earlier comparisons`, what a round trains on, of a snapshot's counts."""
    if algorithm == "sft":
        return f"{counts['train']:,} demonstrations"
    earlier = sum(counts.get("earlier", {}).values())
    new = counts.get("new", counts["train"])
    return f"{new:,} new + {earlier:,} earlier comparisons" if earlier else f"{new:,} comparisons"


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
    used = {"reward"} & {stage.name for stage in stages} | {round_.algorithm}
    snapshot = session.get(Snapshot, round_.snapshot_id) if round_.snapshot_id else None
    return Page(
        round=round_,
        stages=stages,
        snapshot=snapshot,
        mixed=session.get(Snapshot, round_.ptx_snapshot_id) if round_.ptx_snapshot_id else None,
        models={label: models.get(model_id) if model_id else None for label, model_id in named.items()},
        charts=[chart for chart in CHARTS if used & set(chart.kinds)],
        summaries=dict(summaries),
        slices=sorted(by_slice.items()),
        opened={p: counts for (_, p), counts in result_queries.opened_comparisons(session, [round_.id]).items()},
        wins=win_rates(session, [round_.id]).get((round_.id, "")),
        cancelling=round_.state in ACTIVE and any(run.cancel_requested for run in runs),
        worker=has_worker(session),
        reads=reads(round_.algorithm, snapshot.counts) if snapshot else "",
        has_training_samples=training_samples_of(session, store, round_) is not None,
        checkpoint_bytes=sum(store.size(checkpoints_of(run.id)) for run in runs) if round_.state == "failed" else 0,
        can_retry=round_.state == "failed" and queries.by_number(session, round_.project_id, round_.number + 1) is None,
    )


# ---- over rounds -----------------------------------------------------------------------------------------------------


class WinRate(NamedTuple):
    """How often people preferred the new policy's response to the previous one's; a tie is half a win."""

    value: float
    low: float
    high: float
    n: int


def win_rates(session: Session, round_ids: list[int]) -> dict[tuple[int, str], WinRate]:
    """By round and slice ("" is all)."""
    won: dict[tuple[int, str], float] = defaultdict(float)
    judged: dict[tuple[int, str], int] = defaultdict(int)
    for row in result_queries.human_eval(session, round_ids):
        tags = of_prompt(row.domain, row.difficulty, row.safety_category, "")
        for name in ["", *(f"{kind}={value}" for kind, value in tags.items())]:
            won[row.round_id, name] += row.n * (1 + _winner(row) * (1 if row.new_is_b else -1)) / 2
            judged[row.round_id, name] += row.n
    return {key: WinRate(won[key] / n, *interval, n) for key, n in judged.items() if (interval := wilson(won[key], n))}


def _winner(row: Any) -> int:
    """-1 for A, 0 for a tie, 1 for B: as training reads it, by the labelers' votes and not by their mean strength."""
    if row.p_b is None or row.p_tie is None:
        return side(row.consensus)
    found = Consensus(row.consensus, row.p_b, row.p_tie)
    return 0 if found.is_tie else side(found.p_b - 0.5)


class RoundRow(NamedTuple):
    """A round among the others, for all prompts or one slice of them."""

    round: Round
    judgments: int
    pairs: int
    accuracy: float | None  # of the reward model on held-out comparisons
    kl: float | None  # nats a sequence, to the reference model
    reward: float | None  # mean score of the new policy's responses
    wins: WinRate | None


class Loop(NamedTuple):
    """All rounds of a project, oldest first, over all prompts and by slice."""

    rows: list[RoundRow]
    slices: dict[str, list[RoundRow]]

    @property
    def chart(self) -> str:
        """What the charts draw, as JSON."""
        return json.dumps(
            {
                "round": [row.round.number for row in self.rows],
                "accuracy": [row.accuracy for row in self.rows],
                "kl": [row.kl for row in self.rows],
                "reward": [row.reward for row in self.rows],
                "win_rate": [row.wins.value if row.wins else None for row in self.rows],
                "win_low": [row.wins.low if row.wins else None for row in self.rows],
                "win_high": [row.wins.high if row.wins else None for row in self.rows],
            }
        )


def loop(session: Session, project: Project) -> Loop:
    rounds = queries.rounds(session, project.id)[::-1]
    ids = [round_.id for round_ in rounds]
    values: dict[tuple[int, str, str, str], float] = {}
    for row in result_queries.round_values(session, ids, (ACCURACY, KL, REWARD)):
        if math.isfinite(row.value):  # the chart is JSON, which has no NaN
            values[row.round_id, row.kind, row.name, row.slice] = row.value
    wins = win_rates(session, ids)
    snapshots = result_queries.snapshots_of(session, ids)

    def row_of(round_: Round, slice_: str) -> RoundRow:
        counts = snapshots.get(round_.id, {})
        return RoundRow(
            round=round_,
            judgments=counts.get("judgments", 0),
            pairs=counts.get("train", 0) + counts.get("heldout", 0),
            accuracy=values.get((round_.id, "reward", ACCURACY, slice_)),
            kl=values.get((round_.id, "evaluate", KL, slice_)),
            reward=values.get((round_.id, "evaluate", REWARD, slice_)),
            wins=wins.get((round_.id, slice_)),
        )

    names = sorted({key[3] for key in values if key[3]} | {name for _, name in wins if name})
    return Loop(
        rows=[row_of(round_, "") for round_ in rounds],
        slices={name: [row_of(round_, name) for round_ in rounds] for name in names if not name.startswith("split=")},
    )


# ---- samples ---------------------------------------------------------------------------------------------------------


def training_samples_of(session: Session, store: ArtifactStore, round_: Round) -> Path | None:
    """The file of what the round's policy said while it was trained, if there is one."""
    runs = [run for run in queries.runs_of(session, round_.id) if run.kind in POLICY_KINDS]
    return next((store.resolve(samples_of(run.id)) for run in runs if store.exists(samples_of(run.id))), None)


Split = Literal["train", "heldout", "regression", "calibration"]


def sample_lines(session: Session, project_id: int, *, split: str | None, round_id: int | None) -> Iterator[str]:
    """Sampled responses as JSONL: prompt, model version and text of each."""
    query = queries.samples(session, project_id, split=split, round_id=round_id)
    for row in session.execute(query.execution_options(yield_per=500)):
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
