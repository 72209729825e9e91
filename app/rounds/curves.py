"""The curves of a round's runs over their steps: which exist, and each as a chart to download."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.charts import Chart, Panel, Series, as_csv
from app.domain.rounds import SAMPLING_ALGORITHMS
from app.models import Round, Run
from app.rounds import queries, result_queries
from app.rounds.stages import plan_of


class Curves(NamedTuple):
    """Curves of one run over its steps. `kinds` are the kinds of run that report them; on a page it is a
    single kind."""

    title: str
    kinds: tuple[str, ...]
    names: tuple[str, ...]
    hint: str = ""

    @property
    def labels(self) -> list[str]:
        """What a person reads for each of the names."""
        return [LABELS[name] for name in self.names]

    @property
    def is_of_two(self) -> bool:
        """Whether the curves are shares of choices between two responses, of which chance makes half."""
        return all(name.endswith(("accuracy", "accuracies")) for name in self.names)


PAIRWISE, TURNS = ("dpo", "on_policy_dpo"), ("on_policy_dpo", "best_of_n")
ROLLOUTS = ("ppo", "rloo", "grpo")

SCORES = "mean per response"
SHARES = "shares of the answers that the run samples"
UNSURE = "doubted: answers unlike the compared ones; ceiling: answers scored above 99% of the compared ones"

LABELS = {
    "loss": "training loss",
    "eval_loss": "evaluation loss",
    "accuracy": "training accuracy",
    "eval_accuracy": "evaluation accuracy",
    "margin": "training margin",
    "eval_margin": "evaluation margin",
    "rewards/chosen": "chosen",
    "rewards/rejected": "rejected",
    "rewards/margins": "margin",
    "rewards/accuracies": "training accuracy",
    "eval_rewards/accuracies": "evaluation accuracy",
    "objective/scores": "score",
    "objective/rlhf_reward": "score minus KL penalty",
    "objective/kl": "KL",
    "objective/kl_k3": "KL",
    "heldout/accuracy": "held-out accuracy",
    "objective/kl_coef": "KL coefficient",
    "loss/policy_avg": "policy loss",
    "loss/value_avg": "critic loss",
    "monitor/length": "tokens",
    "monitor/finished": "finished",
    "monitor/variety": "variety",
    "monitor/repetition": "repetition",
    "monitor/refusals": "refusals",
    "monitor/hedging": "hedging",
    "monitor/flattery": "flattery",
    "monitor/beyond": "doubted",
    "monitor/ceiling": "ceiling",
}  # what a person reads in place of a metric's name

CURVES = (
    Curves("Reward model: loss", ("reward",), ("loss", "eval_loss")),
    Curves(
        "Reward model: accuracy",
        ("reward",),
        ("accuracy", "eval_accuracy"),
        "share of comparisons decided as people did",
    ),
    Curves(
        "Reward model: margin",
        ("reward",),
        ("margin", "eval_margin"),
        "mean reward of the chosen minus the rejected response",
    ),
    Curves("Policy: loss", ("sft", "best_of_n"), ("loss", "eval_loss"), "nats per token of the answers"),
    Curves("Policy: loss", ("dpo", "on_policy_dpo"), ("loss", "eval_loss")),
    Curves("Policy: implicit reward", PAIRWISE, ("rewards/chosen", "rewards/rejected", "rewards/margins")),
    Curves("Policy: accuracy", PAIRWISE, ("rewards/accuracies", "eval_rewards/accuracies")),
    Curves("Policy: reward", SAMPLING_ALGORITHMS, ("objective/scores", "objective/rlhf_reward"), SCORES),
    Curves("Policy: KL", ROLLOUTS, ("objective/kl",), "nats per response, to the reference model"),
    Curves("Policy: KL", TURNS, ("objective/kl_k3",), "nats per response, to the policy the round began with"),
    Curves(
        "Policy: held-out comparisons",
        TURNS,
        ("heldout/accuracy",),
        "share of comparisons whose winner became more likely",
    ),
    Curves("Monitors: length", SAMPLING_ALGORITHMS, ("monitor/length",), "tokens of an answer"),
    Curves(
        "Monitors: answers", SAMPLING_ALGORITHMS, ("monitor/finished", "monitor/variety", "monitor/repetition"), SHARES
    ),
    Curves(
        "Monitors: phrases", SAMPLING_ALGORITHMS, ("monitor/refusals", "monitor/hedging", "monitor/flattery"), SHARES
    ),
    Curves("Monitors: reward model", SAMPLING_ALGORITHMS, ("monitor/beyond", "monitor/ceiling"), UNSURE),
    Curves(
        "Policy: KL coefficient",
        ROLLOUTS,
        ("objective/kl_coef",),
        "weight of the KL penalty; higher keeps the policy closer",
    ),
    Curves("Policy: loss", ROLLOUTS, ("loss/policy_avg", "loss/value_avg")),
)


def curves_of(round_: Round, runs: Sequence[Run]) -> list[Curves]:
    """Return the curves that a round of this algorithm has."""
    used = {"reward"} & {*plan_of(round_)} | {round_.algorithm}
    if any(run.kind == "reward" and run.spec.get("trunk") == "frozen" for run in runs):
        used -= {"reward"}  # fitted in one step, so there is no curve
    return [each._replace(kinds=tuple(used & {*each.kinds})) for each in CURVES if used & {*each.kinds}]


def chart(session: Session, round_: Round, place: int) -> Chart | None:
    """Return the curves at a place of the round's page; None if there is no such place."""
    runs = queries.runs_of(session, round_.id)
    there = curves_of(round_, runs)
    if place >= len(there):
        return None
    curves = there[place]
    ids = [run.id for run in runs if run.kind == curves.kinds[0]]
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in curves.names}
    for row in result_queries.metrics_from(session, ids, 0, 0):
        if row.name in points and math.isfinite(row.value):
            points[row.name].append((float(row.step), row.value))
    series = [Series(LABELS[name], found, smooth=True) for name, found in points.items()]
    panel = Panel(curves.title, series, even=0.5 if curves.is_of_two else None)
    return Chart(f"Round {round_.number}", "step", [panel], height=300)


def metrics_csv(session: Session, round_: Round) -> str:
    """Return everything that the round's runs recorded, with a CSV row for each value."""
    runs = {run.id: run.kind for run in queries.runs_of(session, round_.id)}
    rows = result_queries.all_metrics(session, list(runs))
    values = [[runs[row.run_id], row.name, row.slice, row.step, row.value] for row in rows]
    return as_csv(["run", "metric", "slice", "step", "value"], values)
