"""The two sides of a comparison, each run in a process of its own: our recipes, and TRL's trainers on the same tokens.

`python -m benchmarks.sides SIDE JOB` reads a job file and prints one JSON line: seconds of each optimiser step, seconds
of the reference pass where there was one, losses, peak memory.
"""

import functools
import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

import trainer.cross_fitting
import trainer.training
from app.artifacts import ArtifactStore
from app.specs import DPOSpec, ModelRef, Optimiser, PairRow, RewardSpec
from trainer.chat import ChatEncoder
from trainer.data import encode_pairs, length_batches
from trainer.modeling import load_tokenizer, seed_everything
from trainer.training import generator_at

SEED = 0


class Job(BaseModel):
    """What both sides do: full fine-tuning in fp32, AdamW, a rate that goes linearly to 0."""

    kind: str  # dpo | reward
    model: str
    rows: list[PairRow]
    batch_size: int
    epochs: int = 1
    # Pairs the peer forwards at once. With 8, its default, it needs over 24 GiB for pairs of HH's lengths; with fewer
    # it also pads less.
    peer_batch_size: int = 2
    precomputed: bool = False  # the peer computes reference log-probs before it starts
    threads: int = 2
    cpu_time: bool = False  # of all threads, for machines that others use too

    def now(self) -> float:
        return time.process_time() if self.cpu_time else time.perf_counter()

    @property
    def optimiser(self) -> Optimiser:
        return Optimiser(
            learning_rate=1e-5,
            epochs=self.epochs,
            batch_size=self.batch_size,
            microbatch_size=64,
            warmup_ratio=0,
            precision="bfloat16" if torch.cuda.is_available() else "float32",
        )


class Clock:
    """A reporter that notes when things happened."""

    def __init__(self, job: Job) -> None:
        self.now = job.now
        self.steps: list[float] = []
        self.losses: list[float] = []
        self.phases: dict[str, list[float]] = {}

    def metrics(self, step: int, values: Mapping[str, float], slice: str = "") -> None:
        if "loss" in values and not slice:
            self.steps.append(self.now())
            self.losses.append(values["loss"])

    def progress(self, done: int, total: int, message: str = "") -> None:
        self.phases.setdefault(message, []).append(self.now())

    def samples(self, step: int, rows: Any) -> None:
        """Nothing is sampled here."""


class Outcome(NamedTuple):
    step_seconds: list[float]
    reference_seconds: float
    losses: list[float]


def ours(job: Job) -> Outcome:
    """Our recipe as it is, but with batches drawn at random: bucketing across batches would be another data order."""
    import trainer.recipes.dpo as dpo

    trainer.training.length_batches = functools.partial(length_batches, window=1)
    trainer.cross_fitting.length_batches = trainer.training.length_batches
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot.jsonl"
        snapshot.write_text("".join(row.model_dump_json() + "\n" for row in job.rows))
        store, clock, ref = ArtifactStore(Path(folder)), Clock(job), ModelRef(base=job.model)
        common: dict[str, Any] = {"snapshot": str(snapshot), "lora": None, "optimiser": job.optimiser, "seed": SEED}
        if job.kind == "dpo":
            dpo.train(DPOSpec(policy=ref, reference=ref, **common), store, clock, Path(folder) / "out")
        else:
            import trainer.recipes.reward as reward

            spec = RewardSpec(backbone=ref, folds=0, soft_labels=False, centering=0, **common)
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
    """TRL on the same tokens in the same optimiser batches."""
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
        settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": job.peer_batch_size,
            "gradient_accumulation_steps": job.batch_size // job.peer_batch_size,
            "num_train_epochs": 1,
            "learning_rate": job.optimiser.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": 0,
            "adam_epsilon": job.optimiser.eps,
            "max_grad_norm": job.optimiser.max_grad_norm,
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "bf16": torch.cuda.is_available(),
            "gradient_checkpointing": False,
            "use_cpu": not torch.cuda.is_available(),
            "max_length": 1024,
        }
        common: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [Watch()]}
        if job.kind == "dpo":

            class Peer(DPOTrainer):
                def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                    return dataset  # tokens already: both sides must read the same ones

            config = DPOConfig(precompute_ref_log_probs=job.precomputed, **settings)
            peer = Peer(job.model, args=config, train_dataset=Dataset.from_list(columns), **common)
        else:
            from trainer.reward_model import new_reward_model

            seed_everything(SEED)
            head = new_reward_model(ModelRef(base=job.model), None)
            classifier = head.classifier
            classifier.config.pad_token_id = tokenizer.pad_token_id = 0  # a token that ends no response
            config = RewardConfig(**settings)
            peer = RewardTrainer(classifier, args=config, train_dataset=Dataset.from_list(columns), **common)
        peer.train()
        losses = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    return Outcome([b - a for a, b in itertools.pairwise(steps)], 0.0, losses)


def main() -> None:
    side, path = sys.argv[1:]
    job = Job.model_validate_json(Path(path).read_bytes())
    torch.set_num_threads(job.threads)
    outcome = {"ours": ours, "theirs": theirs}[side](job)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({**outcome._asdict(), "peak_mib": peak}))


if __name__ == "__main__":
    main()
