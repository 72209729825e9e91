"""Run RLOO and GRPO, ours and TRL's, with equal prompts, reward, group size, lengths, batches, epochs and KL penalty.

Each rollout is one optimiser batch, trained on `epochs` times. For the timing, each side samples its own answers. To
compare losses, TRL also runs once on our answers: our recorded answers replace its sampling, and the losses of all
rollouts must agree. The reward is a function of the tokens, so that it takes no time and answers of a group never tie.
"""

import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.rows import PromptRow
from app.specs import GRPOSpec, ModelRef, RLOOSpec
from benchmarks.work import SEED, Clock, Outcome, Work
from trainer.models.loading import load_tokenizer
from trainer.sampling.responses import Response
from trainer.training.experience import PAGE_SAMPLE, draw

SPECS: dict[str, type[RLOOSpec] | type[GRPOSpec]] = {"rloo": RLOOSpec, "grpo": GRPOSpec}
BETA = 0.05  # KL coefficient: in the reward for RLOO, in the loss for GRPO


class RolloutJob(Work):
    """A number of rollouts of `batch_size` answers, with `k` answers per prompt.

    Attributes:
        answers: a file of our answers. Our side writes it and TRL reads it instead of sampling; None: TRL samples.
    """

    prompts: list[PromptRow]
    k: int
    max_new_tokens: int
    rollouts: int
    peer_batch_size: int = 8  # sequences per forward pass of the peer
    answers: Path | None = None

    def spec(self, prompts: str) -> RLOOSpec | GRPOSpec:
        """Return our spec with options that TRL also has: RLOO as published, GRPO without its biases (Dr. GRPO)."""
        ref = ModelRef(base=self.model)
        return SPECS[self.kind](
            policy=ref,
            reference=ref,
            reward_models=("a function",),
            prompts=prompts,
            lora=self.adapter,
            optimiser=self.optimiser,
            episodes=self.rollouts * self.batch_size,
            rollout_size=self.batch_size,
            samples_per_prompt=self.k,
            max_new_tokens=self.max_new_tokens,
            kl_coef=BETA,
            kl_target=None,
            missing_eos_penalty=None,
            normalisation="published" if self.kind == "rloo" else "constant",
            kl_in="reward" if self.kind == "rloo" else "loss",
            evaluate_every=self.rollouts + 1,  # sample pages only before the first and after the last rollout
            seed=SEED,
        )

    @property
    def rows_in_order(self) -> list[PromptRow]:
        """The prompts in the order of our rollouts, one for each group."""
        spec = self.spec("")
        starts = range(0, spec.episodes, self.batch_size)
        return [row for start in starts for row, _ in draw(self.prompts, spec, start, self.batch_size)]


def reward(tokens: Sequence[int]) -> float:
    """Return a reward with a spread of about 1 among answers of 30 tokens, and different for different answers."""
    return 20 * sum(token % 97 for token in tokens) / (97 * len(tokens))


def ours(job: RolloutJob) -> Outcome:
    """Run our recipe unchanged. Each step of the clock is a rollout with its updates."""
    import trainer.recipes.group as group

    said: list[tuple[int, int, list[int]]] = []

    def scorer(responses: Sequence[Response]) -> Tensor:
        said.extend((r.row.id, r.sample_index, list(r.sample.tokens)) for r in responses)
        return torch.tensor([reward(response.sample.tokens) for response in responses])

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("".join(row.model_dump_json() + "\n" for row in job.prompts))
        clock = Clock(job)
        started = job.now()
        group.train(job.spec(str(prompts)), ArtifactStore(Path(folder)), clock, Path(folder) / "out", scorer=scorer)
    if job.answers is not None:
        job.answers.write_text(json.dumps([answer for answer in said if answer[1] != PAGE_SAMPLE]))
    starts = [started, *clock.steps[:-1]]
    seconds = [end - start for start, end in zip(starts, clock.steps, strict=True)]
    return Outcome(seconds, 0.0, clock.losses)


def theirs(job: RolloutJob) -> Outcome:
    """Run TRL's trainer on the same prompts in the same order."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    tokenizer, spec = load_tokenizer(job.model), job.spec("")
    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            ends.append(job.now())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(job.now())

    def reward_function(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(tokens) for tokens in completion_ids]

    with tempfile.TemporaryDirectory() as folder:
        settings = job.peer_settings(folder, job.peer_batch_size) | {
            "max_steps": job.rollouts * job.epochs,
            "num_generations": job.k,
            "steps_per_generation": job.batch_size // job.peer_batch_size,
            "num_iterations": job.epochs,
            "max_completion_length": job.max_new_tokens,
            "temperature": spec.temperature,
            "beta": BETA,
            "epsilon": spec.clip_low,
            "epsilon_high": spec.clip_high,
            "shuffle_dataset": False,
            "model_init_kwargs": {"dtype": job.peer_dtype},
        }
        if job.kind == "rloo":
            trainer_type, config = RLOOTrainer, RLOOConfig(**settings)
        else:
            trainer_type, config = GRPOTrainer, GRPOConfig(loss_type="dr_grpo", scale_rewards="none", **settings)
        if job.answers is not None:
            trainer_type = replaying(trainer_type, job, tokenizer)
        peer = trainer_type(
            job.model,
            reward_funcs=reward_function,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": list(row.messages)} for row in job.rows_in_order]),
            processing_class=tokenizer,
            callbacks=[Watch()],
            **job.peer_adapter(),
        )
        job.copy_our_adapter(peer.model)
        peer.train()
        losses = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    rollout_ends = ends[:: job.epochs]
    seconds = [end - start for start, end in itertools.pairwise(rollout_ends)]
    means = [sum(losses[i : i + job.epochs]) / job.epochs for i in range(0, len(losses), job.epochs)]
    return Outcome(seconds, 0.0, means)


def replaying(trainer_type: Any, job: RolloutJob, tokenizer: Any) -> Any:
    """Return TRL's trainer class with our answers in place of its sampling."""
    assert job.answers is not None
    rows = {row.id: row for row in job.prompts}
    left: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt_id, _, tokens in sorted(json.loads(job.answers.read_text())):
        left.setdefault(prompt_of(rows[prompt_id], tokenizer), []).append(tokens)

    class Replaying(trainer_type):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> Any:
            answers = [left[tuple(ids)].pop(0) for ids in prompt_ids]
            return (answers, None) if job.kind == "grpo" else answers

    return Replaying


def prompt_of(row: PromptRow, tokenizer: Any) -> tuple[int, ...]:
    ids = tokenizer.apply_chat_template(list(row.messages), add_generation_prompt=True, return_dict=True)["input_ids"]
    return tuple(ids)
