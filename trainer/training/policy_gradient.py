"""Code that PPO, RLOO and GRPO share: loading models, collecting rollouts, updating the policy and reporting.

The loop itself stays in the recipe:

    rollouts = Rollouts(spec, sizes, steps, loaded, training, collector, status)
    for rollout in rollouts:                            # sampled now, or from a checkpoint
        scores = rollouts.shaped_scores()
        ...                                             # the recipe computes rewards and advantages
        for minibatch in rollouts.minibatches(planned): # minibatches that are not done yet
            rollouts.step(learner.accumulate(...))      # may end the rollout's updates early
        rollouts.report(scores, non_score, values)      # also adapts beta, the KL coefficient
    return rollouts.result(folder)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.rows import PromptRow
from app.specs import RolloutSpec
from trainer.algorithms.choosing import controlled_scores
from trainer.algorithms.kl import KLController
from trainer.algorithms.ppo import RunningScale, clip_scores, penalise_unfinished
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import chunks, read_prompts
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Scorer, reward_models_scorer, slice_members
from trainer.models.loading import (
    Reference,
    load_policy_and_reference,
    load_tokenizer,
    notes_on,
    read_by_all,
    resolve,
    seed_everything,
    working_dtype,
)
from trainer.models.saving import save_policy
from trainer.models.sizes import Sizes, sizes_for
from trainer.processes import accelerator, generator_at
from trainer.reporting import PolicyResult, Reporter
from trainer.sampling.responses import Sampler, cut_prompts
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of
from trainer.speed.sharding import wants_shards
from trainer.training.experience import (
    MINIBATCHES,
    PAGE_SAMPLE,
    Clock,
    Collected,
    Collector,
    Rollout,
    draw,
    page,
    page_prompts,
    rollout_values,
)
from trainer.training.ptx import Mix
from trainer.training.training import Training
from trainer.training.watching import Monitors

PATIENCE = 2  # consecutive rollouts with a sign before a monitor raises its alarm, because a rollout has few prompts
GOOD = "good/"  # in a checkpoint, the prefix of the weights of the last policy without a sign

# ---- loading ------------------------------------------------------------------------------------------


class Status:
    """Reports the run's progress when called. The reporter raises RunCancelled if the run was cancelled."""

    def __init__(self, reporter: Reporter, total: int) -> None:
        self.reporter, self.total = reporter, total
        self.episodes, self.doing = 0, "loading models"

    def __call__(self) -> None:
        self.reporter.progress(self.episodes, self.total, self.doing)


class Loaded(NamedTuple):
    """Prompts and models of a run.

    Attributes:
        pages: the prompts of the sample pages, whose answers are shown during training.
        mix: demonstrations that join every step; None if the spec names none.
        dropped: sentences that say which prompts were cut and which demonstrations were left out, and why.
    """

    rows: list[PromptRow]
    pages: list[PromptRow]
    tokenizer: Any
    encoder: ChatEncoder
    mix: Mix | None
    dropped: tuple[str, ...]
    dtype: torch.dtype
    scorer: Scorer
    causal: Any
    reference: Reference
    sizes: Sizes
    memory: PeakMemory

    def sampler(self, spec: RolloutSpec, kind: str, status: Status) -> Sampler:
        return Sampler(self.causal, self.encoder, spec.max_new_tokens, spec.temperature, spec.seed, kind, status)


def refuse_shards(method: str) -> None:
    """Raise InvalidInput under FSDP, where no process has the whole policy to sample from."""
    if wants_shards():
        raise InvalidInput(
            f"{method} does not run under FSDP: it samples from the whole policy between its updates.",
            "Launch it with docs/accelerate/ddp.yaml; with LoRA, the frozen base then takes the memory of one copy.",
        )


def load(
    spec: RolloutSpec,
    store: ArtifactStore,
    status: Status,
    checkpoints: Checkpoints | None,
    scorer: Scorer | None,
    also_read_by: Sequence[str] = (),
) -> Loaded:
    """Read the prompts and load the policy, the reference and the reward models, and set all seeds.

    Args:
        scorer: replaces the reward models.
        also_read_by: folders of other models that read the same sequences as the policy; they can limit the length.

    Raises: see the recipes.
    """
    memory, rows = PeakMemory(), read_prompts(store.resolve(spec.prompts))
    policy_ref, reference_ref = resolve(store, spec.policy), resolve(store, spec.reference)
    tokenizer = load_tokenizer(policy_ref)
    encoder = ChatEncoder(tokenizer, read_by_all(spec.max_length, reference_ref.base, *also_read_by))
    pages = page_prompts(rows, spec.seed)
    answered = {row.id: row for row in (*pages, *(row for row, _ in draw(rows, spec, 0, spec.episodes)))}
    dropped = cut_prompts(answered.values(), encoder, spec.max_new_tokens)
    mix = None
    if spec.ptx is not None:
        pad_id = tokenizer.pad_token_id
        mix = Mix(store.resolve(spec.ptx), encoder, spec.ptx_coef, spec.optimiser.batch_size, pad_id)
        dropped += mix.dropped
    status()
    dtype = working_dtype(spec.optimiser.precision, policy_ref, checkpoints)  # for all models, including reward models
    sizes = sizes_for(policy_ref, dtype, full_weights=spec.lora is None)
    if scorer is None:
        folders = [store.resolve(location) for location in spec.reward_models]
        combine, weight = spec.ensemble_score, spec.variance_weight
        scorer = reward_models_scorer(folders, spec.max_length, combine, weight, status, dtype)
    seed_everything(spec.seed)
    causal, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora, dtype)
    loaded = (rows, pages, tokenizer, encoder, mix, dropped, dtype, scorer, causal, reference)
    return Loaded(*loaded, sizes, memory)


# ---- rollouts ------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """The state of a run that a checkpoint stores besides weights and the current rollout.

    Attributes:
        rollout: number of completed rollouts.
        beta, scale: KL coefficient for the current rollout, and the scale of all scores before it.
        watched: metrics of each update of the current rollout so far.
        seconds: seconds spent on the current rollout, by activity.
        values: metrics of the last completed rollout.
        monitors: the monitors' state.
        watched_answers: the monitors' metrics of the current rollout.
        good: step and metrics of the last rollout without a sign. A run that monitors stop keeps that rollout's policy.
    """

    beta: float
    scale: dict[str, Any]
    rollout: int = 0
    watched: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    monitors: dict[str, Any] = field(default_factory=dict)
    watched_answers: dict[str, float] = field(default_factory=dict)
    good: tuple[int, dict[str, float]] = (0, {})


class Rollouts:
    """Iterates over the rollouts of a run, and handles their checkpoints, metrics and sample pages.

    Args:
        sizes: number of episodes in each rollout.
        steps: planned optimiser steps of each rollout. The learning rate follows this plan even if updates end early.

    Attributes:
        rollout: the current rollout, which the iterator has yielded.
        fresh: True if the current rollout was just sampled, so no checkpoint contains it.
        stopped: True if the policy's KL to the reference exceeds `kl_stop`, or a monitor stops the run. There are no
            updates on the current rollout, which is the last one.
        progress: the state that the next checkpoint stores.
    """

    def __init__(
        self,
        spec: RolloutSpec,
        sizes: Sequence[int],
        steps: Sequence[int],
        loaded: Loaded,
        training: Training,
        collector: Collector,
        status: Status,
    ) -> None:
        self.spec, self.sizes, self.steps = spec, sizes, steps
        self.loaded, self.training, self.collector, self.status = loaded, training, collector, status
        self.progress = Progress(spec.kl_coef, asdict(RunningScale()))
        self.rollout: Rollout | None = None
        self.fresh = self.stopped = self._early = False
        self._scale = RunningScale()
        self._clock = Clock()
        self._good: dict[str, Tensor] = {}  # weights of the last policy without a sign; empty if monitors cannot stop
        if training.resumed is not None:
            self.progress = Progress(**training.resumed.state)
            kept = dict(training.resumed.tensors)
            self._good = {name.removeprefix(GOOD): kept.pop(name) for name in [*kept] if name.startswith(GOOD)}
            self.rollout = Rollout(**kept) if kept else None
        self.monitors = Monitors(spec.monitors, PATIENCE, self.progress.monitors)

    @property
    def beta(self) -> float:
        """The coefficient of the KL penalty for the current rollout."""
        return self.progress.beta

    @property
    def first(self) -> bool:
        """Whether the current rollout is the run's first one."""
        return self.progress.rollout == 0

    def __iter__(self) -> Iterator[Rollout]:
        """Yield each remaining rollout: responses of the current policy with log-probs, values and scores."""
        if self.training.resumed is None:
            self._show_page(0)
        while self.progress.rollout < len(self.sizes) and not self.stopped:
            number = self.progress.rollout
            self.status.episodes = sum(self.sizes[:number])
            self._clock = Clock(self.progress.seconds)
            self.fresh = self.rollout is None
            if self.rollout is None:
                self.status.doing = "sampling from the policy"
                wanted = draw(self.loaded.rows, self.spec, self.status.episodes, self.sizes[number])
                collected = self.collector.collect(wanted, self._clock)
                self.rollout = collected.rollout
                self._watch(number + 1, collected)
                self.progress.seconds = self._clock.seconds
            too_far = self.spec.kl_stop is not None and float(self.rollout.kl.mean()) > self.spec.kl_stop
            self.stopped = too_far or self.monitors.stop
            yield self.rollout

    def _watch(self, step: int, collected: Collected) -> None:
        """Let the monitors look at a rollout. If they see no sign and may stop the run, keep the policy's weights."""
        if not self.monitors.is_on:
            return
        responses, rollout, looked = collected
        found = self.monitors.look_at_responses(step, responses, rollout.scores, looked)
        self.progress.watched_answers, self.progress.monitors = found, self.monitors.state
        if self.monitors.mode == "stop" and self.monitors.watch.is_quiet:
            self._good = self.training.weights()

    def shaped_scores(self) -> Tensor:
        """Return the current rollout's scores (B,) for the reward: normalised, clipped, and lowered for length and for
        a missing end.
        """
        spec, rollout = self.spec, self.rollout
        assert rollout is not None
        self._scale = RunningScale(**self.progress.scale).update(rollout.scores)
        scores = self._scale.normalise(rollout.scores) if spec.normalise_scores else rollout.scores
        scores = clip_scores(scores, spec.clip_score)
        scores = controlled_scores(scores, rollout.lengths.float(), rollout.finished, spec.length_weight, 0.0)
        return penalise_unfinished(scores, rollout.finished, spec.missing_eos_penalty, spec.missing_eos)

    def minibatches(self, planned: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Yield the planned minibatches that are not done yet; none if the run is stopped.

        Call `step` after each minibatch, and exhaust the iterator.
        """
        number = self.progress.rollout
        self.status.doing = "training the policy"
        self._early = False
        if self.fresh:
            self._save_if_due()
        for minibatch in [] if self.stopped else planned[len(self.progress.watched) :]:
            yield minibatch
            if self._early:
                break
        if not self.stopped:
            # Count skipped steps as done, so that the learning rate reaches 0 at the planned end.
            self.training.steps = sum(self.steps[: number + 1])
        self._clock.spent_on("update")

    def step(self, watched: dict[str, float]) -> None:
        """Take an optimiser step, or end the rollout's updates without it if approxkl exceeds `approxkl_stop`.

        Raises:
            TrainingDiverged: the loss or the gradient is NaN or infinite.
            StorageFull: the disk has no room for a checkpoint.
        """
        limit = self.spec.approxkl_stop
        self._early = limit is not None and watched["policy/approxkl_avg"] > limit
        if self._early:
            self.training.optimiser.zero_grad(set_to_none=True)  # this step would move the policy even further
            self.progress.watched.append(watched)
            return
        watched["lr"] = self.training.step(watched["loss"]).lr
        self.progress.watched.append(watched)
        self._clock.spent_on("update")
        self.progress.seconds = self._clock.seconds
        self._save_if_due()

    def report(self, scores: Tensor, non_score: Tensor, values: Mapping[str, float]) -> None:
        """Report the metrics of the current rollout, whose updates are done, and adapt beta for the next rollout.

        Args:
            scores: (B,) the result of `shaped_scores`.
            non_score: (B,) the KL penalty in the reward: -beta * k1 per response.
            values: further metrics of the recipe.
        """
        spec, rollout, number, status = self.spec, self.rollout, self.progress.rollout, self.status
        assert rollout is not None
        size = self.sizes[number]
        status.episodes += size
        tokens = int(rollout.lengths.sum())
        self.training.tokens += tokens
        status.reporter.worked(tokens)
        self.progress.values = {
            **rollout_values(rollout, list(range(size))),
            "objective/kl_coef": self.beta,
            "objective/non_score_reward": float(non_score.mean()),
            "objective/rlhf_reward": float((non_score + scores).mean()),
            **averaged(self.progress.watched),
            **({"policy/early_stop": float(self._early)} if spec.approxkl_stop is not None else {}),
            **values,
            "val/num_eos_tokens": float(rollout.finished.sum()),
            **self.progress.watched_answers,
            **{f"time/{what}": seconds for what, seconds in self._clock.seconds.items()},
            "eps": status.episodes / self.training.seconds,
        }
        status.reporter.metrics(number + 1, self.progress.values)
        for name, members in slice_members([self.loaded.rows[i] for i in rollout.rows.tolist()]).items():
            if name:
                status.reporter.metrics(number + 1, rollout_values(rollout, members), name)
        if self.stopped or (number + 1) % spec.evaluate_every == 0 or number + 1 == len(self.sizes):
            self._show_page(number + 1)
        status()
        if self.stopped:
            return
        good = (number + 1, self.progress.values) if self.monitors.watch.is_quiet else self.progress.good
        controller = KLController(self.beta, spec.kl_target, spec.kl_horizon).step(float(rollout.kl.mean()), size)
        self.progress = Progress(
            *(controller.beta, asdict(self._scale), number + 1),
            values=self.progress.values,
            monitors=self.progress.monitors,
            good=good,
        )
        self.rollout = None
        self._save_if_due()

    def result(self, folder: Path) -> PolicyResult:
        """Save the policy to `folder`, without a critic, and return the run's result."""
        spec, loaded, values = self.spec, self.loaded, self.progress.values
        stop_notes: tuple[str, ...] = ()
        if self.monitors.stop:
            step, values = self.progress.good
            self.training.put_back(self._good)
            stop_notes = (self.monitors.note(f"the policy of step {step}, the last one without a sign,"),)
        save_policy(loaded.causal, loaded.tokenizer, folder, spec.policy.base)
        episodes = self.status.episodes or spec.episodes  # status counts 0 if the run resumed after its last rollout
        kl, notes = values["objective/kl"], notes_on(loaded.tokenizer)
        if spec.kl_stop is not None and kl > spec.kl_stop:
            said = f"Stopped after {episodes} of {spec.episodes} episodes: the KL was {kl:.3g} nats per response, "
            notes += (said + f"above the limit kl_stop = {spec.kl_stop:g}.",)
        return PolicyResult(
            values,
            episodes,
            loaded.dropped,
            self.training.tokens,
            self.training.seconds,
            precision=name_of(loaded.dtype),
            sizes={
                "microbatch_tokens": self.training.microbatch_tokens,
                "forward_tokens": self.collector.forward_tokens,
                "rollout_batch_size": self.collector.batch_size,
            },
            peak_memory=loaded.memory.peak(),
            notes=(*notes, *stop_notes, *loaded.memory.notes),
            alarms=tuple(self.monitors.alarms),
        )

    def _save_if_due(self) -> None:
        # After sampling, too, save only if a checkpoint is due: a short rollout can be sampled again quickly.
        good = {f"{GOOD}{name}": weights for name, weights in self._good.items()}
        self.training.save_if_due(asdict(self.progress), good | (self.rollout._asdict() if self.rollout else {}))

    def _show_page(self, step: int) -> None:
        self.status.doing = "sampling from the policy"
        shown = self.collector.collect([(row, [PAGE_SAMPLE]) for row in self.loaded.pages], Clock())
        if accelerator().is_main_process:
            self.status.reporter.samples(step, page(shown.responses, shown.rollout))


# ---- updates ---------------------------------------------------------------------------------------------------------


def minibatches(spec: RolloutSpec, rollout: int, units: Sequence[int], batch_size: int) -> list[list[int]]:
    """Split the units of a rollout (episodes or groups) into minibatches, with a new permutation in each epoch.

    The result depends only on the seed and the rollout's number.
    """
    found: list[list[int]] = []
    for epoch in range(spec.optimiser.epochs):
        generator = generator_at(spec.seed, MINIBATCHES, rollout, epoch)
        order = torch.randperm(len(units), generator=generator).tolist()
        found += [[units[i] for i in chunk] for chunk in chunks(order, batch_size)]
    return found


def averaged(watched: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of a rollout's updates; add the variance of their ratios and the last learning rate.

    The result is empty if there were no updates.
    """
    if not watched:
        return {}
    names = [name for name in watched[0] if name not in ("loss", "lr")]
    ratios = torch.tensor([values["val/ratio"] for values in watched], dtype=torch.float64)
    rates = [values["lr"] for values in watched if "lr" in values]
    return {
        **{name: sum(values[name] for values in watched) / len(watched) for name in names},
        "val/ratio_var": float(ratios.var(correction=0)),
        **({"lr": rates[-1]} if rates else {}),
    }
