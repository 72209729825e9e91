"""One small job for every recipe that trains, run in a separate process that tests kill or run several times.

`python -m tests.trainer.jobs FOLDER OUT NAME...` runs several jobs. NAME is a kind, or KIND/full for full weights.
With a + at the end, the job writes checkpoints and keeps them all. Process P writes its outputs to OUT-P, the reported
losses to OUT-P/losses.json, and its share of a model's weights during training to OUT-P/share.json.
"""

import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from app.artifacts import ArtifactStore
from app.rows import DemonstrationRow, PromptRow
from app.specs import (
    BestOfNSpec,
    DPOSpec,
    GRPOSpec,
    Lora,
    ModelRef,
    OnPolicyDPOSpec,
    Optimiser,
    PPOSpec,
    RewardSpec,
    RLOOSpec,
    RunSpec,
    SFTSpec,
)
from tests.trainer.conftest import build_model, separable_pairs, user, write_rows
from trainer.checkpoints import Checkpoints
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.models.policy import Policy
from trainer.processes import accelerator
from trainer.recipes import best_of_n, dpo, group, on_policy_dpo, ppo, reward, sft
from trainer.reporting import ConsoleReporter
from trainer.reward.model import new_reward_model, save_reward_model
from trainer.training.training import Training

KINDS = ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo", "on_policy_dpo", "best_of_n")
RECIPES: dict[str, Any] = {
    "sft": sft,
    "reward": reward,
    "dpo": dpo,
    "ppo": ppo,
    "rloo": group,
    "grpo": group,
    "on_policy_dpo": on_policy_dpo,
    "best_of_n": best_of_n,
}
CHECKPOINTS = "checkpoints"


def prepare(folder: Path) -> None:
    """Write the inputs of all jobs: a tiny model, an untrained reward model, and files of rows."""
    build_model(folder / "tiny")
    pairs = separable_pairs(36, 8)
    write_rows(folder / "snapshot.jsonl", pairs)
    write_rows(folder / "more.jsonl", separable_pairs(48, 8))  # enough for two folds
    demonstrations = [
        DemonstrationRow(id=row.prompt_id, messages=row.messages, response=row.response_a, split=row.split)
        for row in pairs
    ]
    write_rows(folder / "demonstrations.jsonl", demonstrations)
    prompts = [PromptRow(id=i, messages=user("Hm" * (1 + i % 3)), slices={"domain": "ab"[i % 2]}) for i in range(10)]
    write_rows(folder / "prompts.jsonl", prompts)
    torch.manual_seed(1)
    model = new_reward_model(ModelRef(base=str(folder / "tiny")), None)
    save_reward_model(model, load_tokenizer(str(folder / "tiny")), folder / "reward")


def spec_of(kind: str, folder: Path, lora: bool = True) -> RunSpec:
    """Return the job's spec: it takes a few seconds and has more than one epoch or rollout."""
    tiny = ModelRef(base=str(folder / "tiny"))
    optimiser = Optimiser(learning_rate=1e-3, epochs=2, batch_size=8, microbatch_size=3)
    snapshot = str(folder / "snapshot.jsonl")
    common: dict[str, Any] = {
        "lora": Lora(rank=4, alpha=8) if lora else None,
        "optimiser": optimiser,
        "max_length": 128,
        "seed": 3,
    }
    match kind:
        case "sft":
            return SFTSpec(policy=tiny, demonstrations=str(folder / "demonstrations.jsonl"), **common)
        case "reward":
            more = str(folder / "more.jsonl")
            return RewardSpec(
                trunk="trained", backbone=tiny, snapshot=more, folds=2, ensemble=2, ties="davidson", **common
            )
        case "dpo" | "kto":
            loss: Any = kind
            return DPOSpec(policy=tiny, reference=tiny, snapshot=snapshot, loss=loss, **common)
        case "ppo":
            return PPOSpec(
                policy=tiny,
                reference=tiny,
                reward_models=(str(folder / "reward"),),
                prompts=str(folder / "prompts.jsonl"),
                episodes=24,
                rollout_size=8,
                max_new_tokens=8,
                critic="reward",
                ptx=str(folder / "demonstrations.jsonl"),
                **common,
            )
        case "rloo" | "grpo":
            groups: dict[str, Any] = {
                "policy": tiny,
                "reference": tiny,
                "reward_models": (str(folder / "reward"),),
                "prompts": str(folder / "prompts.jsonl"),
                "episodes": 24,
                "rollout_size": 8,
                "samples_per_prompt": 4,
                "max_new_tokens": 8,
                **common,
            }
            if kind == "rloo":
                return RLOOSpec(**groups)
            ptx = str(folder / "demonstrations.jsonl")
            return GRPOSpec(normalisation="published", kl_in="loss", length_weight=0.1, ptx=ptx, **groups)
        case "on_policy_dpo" | "best_of_n":
            turns: dict[str, Any] = {
                "policy": tiny,
                "reward_models": (str(folder / "reward"),),
                "prompts": str(folder / "prompts.jsonl"),
                "snapshot": snapshot,
                "samples_per_prompt": 32,  # few answers of an untrained model are finished
                "max_new_tokens": 32,
                "kl_budget": 0.05,
                **common,
            }
            if kind == "best_of_n":
                return BestOfNSpec(turns=2, best=4, **turns)
            turns["kl_budget"] = 50  # never reached: the other job tests shortened steps
            return OnPolicyDPOSpec(turns=1, human_learning_rate=1e-4, human_share=0.2, min_margin=0.01, **turns)
    raise ValueError(kind)


def run(
    kind: str, folder: Path, out: Path, checkpoints: bool = False, lora: bool = True, keep: int | None = None
) -> ConsoleReporter:
    """Run a job into the new folder `out`; with `checkpoints`, save after every step and resume from the last one.

    Checkpoints are removed at the end, unless `keep` says how many stay.
    """
    torch.set_num_threads(1)
    spec, store, reporter = spec_of(kind, folder, lora), ArtifactStore(folder / "store"), ConsoleReporter(stream=None)
    kept = Checkpoints(store, f"{CHECKPOINTS}/{out.name}", spec, 0, keep or 2) if checkpoints else None
    with ArtifactStore(out.parent).folder(out.name) as staging:
        RECIPES[spec.kind].train(spec, store, reporter, staging, kept)
    if kept is not None and keep is None:
        kept.remove()
    return reporter


def losses_of(kind: str, reporter: ConsoleReporter) -> list[float]:
    return reporter.values("loss/policy_avg" if kind in ("ppo", "rloo", "grpo") else "loss")


def run_all(folder: Path, out: Path, names: Sequence[str], checkpoints: Collection[str] = ()) -> dict[str, list[float]]:
    """Run jobs into `out` and return the losses of each job; keep all checkpoints of jobs in `checkpoints`."""
    losses = {}
    for name in names:
        kind, _, weights = name.partition("/")
        said = run(kind, folder, out / folder_of(name), name in checkpoints, weights != "full", keep=1000)
        losses[name] = losses_of(kind, said)
    return losses


def folder_of(name: str) -> str:
    return name.replace("/", "-")


def share_held(folder: Path) -> float:
    """Return the share of a policy's weights that this process has in memory during training."""
    causal = load_causal_lm(ModelRef(base=str(folder / "tiny")), trainable=True)
    model = Training(Policy(causal), Optimiser(learning_rate=1e-3), 8, seed=0).model
    parts = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(part.numel() for part in parts) / sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    folder, out, *names = sys.argv[1:]
    mine = Path(f"{out}-{accelerator().process_index}")
    checkpoints = {name.removesuffix("+") for name in names if name.endswith("+")}
    losses = run_all(Path(folder), mine, [name.removesuffix("+") for name in names], checkpoints)
    (mine / "losses.json").write_text(json.dumps(losses))
    (mine / "share.json").write_text(json.dumps(share_held(Path(folder))))
    if torch.distributed.is_initialized():
        accelerator().wait_for_everyone()
        torch.distributed.destroy_process_group()  # otherwise gloo's threads may abort a process that is ending
    os._exit(0)  # in rare cases, they still abort it on a busy machine while the interpreter shuts down
