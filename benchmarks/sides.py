"""Run one side of a comparison in a separate process: our recipes, or TRL's trainers on the same tokens.

`python -m benchmarks.sides SIDE JOB` reads a job file and prints one JSON line: the seconds of each optimiser step (for
RLOO and GRPO, of each rollout with its updates, see `benchmarks.rollouts`), the seconds of the reference pass if there
was one, the losses, and the peak memory.
"""

import functools
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import trainer.reward.cross_fitting
import trainer.training.training
from app.artifacts import ArtifactStore
from app.rows import PairRow
from app.specs import DPOSpec, ModelRef, RewardSpec
from benchmarks import rollouts
from benchmarks.work import SEED, Clock, Outcome, Work
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import encode_pairs, length_batches
from trainer.models.loading import load_tokenizer, seed_everything
from trainer.processes import generator_at
from trainer.speed.memory import PeakMemory


class Job(Work):
    """Training with DPO, or of a reward model, on pairs."""

    rows: list[PairRow]
    # Pairs per forward pass of the peer. With 8, its default, it needs over 24 GiB for pairs of HH's lengths; with
    # fewer it also pads less.
    peer_batch_size: int = 2
    precomputed: bool = False  # the peer computes reference log-probs before it starts


def ours(job: Job) -> Outcome:
    """Run our recipe, but with random batches: sorting by length across batches would change the order of the data."""
    import trainer.recipes.dpo as dpo

    trainer.training.training.length_batches = functools.partial(length_batches, window=1)
    trainer.reward.cross_fitting.length_batches = trainer.training.training.length_batches
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot.jsonl"
        snapshot.write_text("".join(row.model_dump_json() + "\n" for row in job.rows))
        store, clock, ref = ArtifactStore(Path(folder)), Clock(job), ModelRef(base=job.model)
        common: dict[str, Any] = {
            "snapshot": str(snapshot),
            "lora": job.adapter,
            "optimiser": job.optimiser,
            "seed": SEED,
        }
        if job.kind == "dpo":
            dpo.train(DPOSpec(policy=ref, reference=ref, **common), store, clock, Path(folder) / "out")
        else:
            import trainer.recipes.reward as reward

            spec = RewardSpec(trunk="trained", backbone=ref, folds=0, soft_labels=False, centering=0, **common)
            reward.train(spec, store, clock, Path(folder) / "out")
    training = next(times for message, times in clock.phases.items() if message.startswith("training"))
    reference = clock.phases.get("log-probs of the reference")
    starts = [training[0], *clock.steps[:-1]]
    return Outcome(
        [end - start for start, end in zip(starts, clock.steps, strict=True)],
        training[0] - reference[0] if reference else 0.0,
        clock.losses,
    )


def theirs(job: Job) -> Outcome:
    """Run TRL on the same tokens in the same optimiser batches."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

    tokenizer = load_tokenizer(job.model)
    pairs = encode_pairs(job.rows, ChatEncoder(tokenizer, 1024), close_cut=True).train
    lengths = [0] * len(pairs)
    columns: list[dict[str, list[int]]] = []
    for epoch in range(job.epochs):
        for batch in length_batches(lengths, job.batch_size, generator_at(SEED, epoch), window=1):
            for pair in (pairs[i] for i in batch):
                if job.kind == "dpo":
                    tokens = {"prompt_ids": pair.chosen.prompt, "chosen_ids": pair.chosen.completion}
                    columns.append(
                        {k: list(v) for k, v in (tokens | {"rejected_ids": pair.rejected.completion}).items()}
                    )
                else:
                    sides = {"chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
                    columns.append({name: [*side.prompt, *side.completion] for name, side in sides.items()})

    steps: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            steps.append(job.now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append(job.now())

    with tempfile.TemporaryDirectory() as folder:
        settings = job.peer_settings(folder, job.peer_batch_size)
        settings |= {"train_sampling_strategy": "sequential", "max_length": 1024}
        common: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [Watch()]}
        if job.kind == "dpo":

            class Peer(DPOTrainer):
                def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                    return dataset  # already tokenised, so that both sides read the same tokens

            config = DPOConfig(
                precompute_ref_log_probs=job.precomputed, model_init_kwargs={"dtype": job.peer_dtype}, **settings
            )
            common |= job.peer_adapter()
            peer = Peer(job.model, args=config, train_dataset=Dataset.from_list(columns), **common)
            job.copy_our_adapter(peer.model)
        else:
            from trainer.reward.model import new_reward_model

            seed_everything(SEED)
            head = new_reward_model(ModelRef(base=job.model), job.adapter, dtype=job.dtype)
            classifier = head.classifier
            classifier.config.pad_token_id = tokenizer.pad_token_id = 0  # a token that ends no response
            config = RewardConfig(**settings)
            peer = RewardTrainer(classifier, args=config, train_dataset=Dataset.from_list(columns), **common)
        peer.train()
        losses = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    return Outcome([b - a for a, b in itertools.pairwise(steps)], 0.0, losses)


def main() -> None:
    side, path = sys.argv[1:]
    said = Path(path).read_bytes()
    memory = PeakMemory()
    if json.loads(said)["kind"] in rollouts.SPECS:
        rollout_job = rollouts.RolloutJob.model_validate_json(said)
        torch.set_num_threads(rollout_job.threads)
        outcome = {"ours": rollouts.ours, "theirs": rollouts.theirs}[side](rollout_job)
    else:
        job = Job.model_validate_json(said)
        torch.set_num_threads(job.threads)
        outcome = {"ours": ours, "theirs": theirs}[side](job)
    print(json.dumps({**outcome._asdict(), "peak_mib": memory.peak() / 2**20}))


if __name__ == "__main__":
    main()
