"""Code that on-policy DPO and best-of-n distillation share: a chain of phases, a KL budget, and the choice of a policy.

A run is a chain of phases. Each phase trains the previous phase's policy with another recipe and stores the result. A
resumed run finds the completed phases, and the checkpoints of the phase that was interrupted.

Metrics are measured at the end of each phase, with answers to up to `MEASURED_PROMPTS` prompts:

| metric | meaning, for the policy after a phase |
|---|---|
| `objective/scores` | mean `ensemble_score`, without penalties for length or a missing end |
| `objective/disagreement` | standard deviation among the reward models' members, mean over answers |
| `objective/kl`, `objective/kl_k3` | KL to the starting policy, nats per response, by k1 and by k3 (never negative) |
| `val/length`, `val/finished` | tokens per answer; share of finished answers |
| `heldout/accuracy` | share of held-out comparisons for which the margin winner - loser has grown since the start |
| `monitor/FIGURE` | see `trainer.training.watching`; at step 0, of the starting policy |
| `turn/pairs`, `turn/margin` | number of a turn's pairs (or answers to imitate), and their mean score difference |
"""

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.rows import PairRow, PromptRow
from app.specs import BestOfNSpec, ModelRef, OnPolicyDPOSpec, Optimiser, RunSpec
from trainer.algorithms.bradley_terry import ensemble_score
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import encode_pairs, read_prompts
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Heads, reward_heads
from trainer.models.adapters import require_continuable
from trainer.models.interpolation import policy_between
from trainer.models.loading import (
    load_causal_lm,
    load_tokenizer,
    loading,
    notes_on,
    resolve,
    seed_everything,
    working_dtype,
)
from trainer.models.policy import Policy
from trainer.models.reference_logps import completion_logps
from trainer.models.saving import save_policy
from trainer.models.sizes import Sizes, sizes_for
from trainer.processes import accelerator, generator_at, the_main_processes
from trainer.reporting import PolicyResult, Reporter
from trainer.sampling.responses import cut_prompts
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of
from trainer.training.phases import Phase
from trainer.training.scored_answers import Answers, answers_of
from trainer.training.watching import Monitors

MEASURED_PROMPTS, MEASURED_SAMPLES = 48, 2
PATIENCE = 1  # phases with a sign before a monitor raises its alarm: phases are few, each measured on many prompts
LEASH_TRIES = 4  # attempts to shorten a phase's step to fit the KL budget
NEAR_BUDGET = 0.75  # a shortened step is accepted if it uses at least this share of the budget
PROMPTS = 2_000_003  # place in the run for random numbers: which prompts a turn samples


class Candidate(NamedTuple):
    """A policy that can be the run's result.

    Attributes:
        phase: name of the phase that trained it, for people.
        right: (M,) result on each held-out comparison, see `Turns.right`.
    """

    phase: str
    policy: ModelRef
    right: Tensor
    values: dict[str, float]


class Measured(NamedTuple):
    """A policy's answers to the prompts that all phases are measured on, and the metrics of these answers."""

    answers: Answers
    values: dict[str, float]

    @property
    def kl(self) -> float:
        """KL to the starting policy, nats per response."""
        return self.values["objective/kl"]


class Turns:
    """A run in phases.

    Attributes:
        policy: the policy after the phases so far, with resolved locations.
        within_budget: False once the whole KL budget is used. The phase whose step was shortened is then the last one.
        monitors: compare each phase's answers to the measured prompts with those of the starting policy.
    """

    def __init__(
        self,
        spec: OnPolicyDPOSpec | BestOfNSpec,
        store: ArtifactStore,
        reporter: Reporter,
        checkpoints: Checkpoints | None,
        work: ArtifactStore,
        heldout: Sequence[PairRow] = (),
        heads: Callable[[], Heads] | None = None,
    ) -> None:
        """`heads` replaces the reward models."""
        self.spec, self.reporter, self.checkpoints, self.work = spec, reporter, checkpoints, work
        self.memory, self._started = PeakMemory(), time.monotonic()
        self.rows = read_prompts(store.resolve(spec.prompts))
        self.start = self.policy = resolve(store, spec.policy)
        if spec.lora is not None and self.start.adapter is not None:
            with loading(self.start.adapter):  # reject an adapter that cannot be trained further before sampling
                require_continuable(Path(self.start.adapter), spec.lora)
        self.tokenizer = load_tokenizer(self.start)
        self.encoder = ChatEncoder(self.tokenizer, spec.max_length)
        self.dropped = cut_prompts(self.rows, self.encoder, spec.max_new_tokens)
        self.notes: list[str] = []
        optimiser: Optimiser = spec.optimiser
        self.dtype = working_dtype(optimiser.precision, self.start, checkpoints)
        # Choose the sizes once for all phases and for resumed runs: phases find their checkpoints by a spec that
        # contains the sizes.
        sizes = sizes_for(self.start, self.dtype, full_weights=spec.lora is None)
        if checkpoints is not None:
            known = the_main_processes(lambda: checkpoints.remembered("sizes", lambda: json.dumps(sizes)))
            sizes = Sizes(*json.loads(known))
        self.sizes = sizes
        self.optimiser = self.sizes.fill(optimiser.model_copy(update={"precision": name_of(self.dtype)}))
        self.at_once = spec.rollout_batch_size or self.sizes.rollout_batch_size
        folders = [store.resolve(location) for location in spec.reward_models]
        self._heads = heads or partial(reward_heads, folders, spec.max_length, self._tick, self.dtype)
        self.heldout = [pair for pair in encode_pairs(heldout, self.encoder, close_cut=False).heldout if not pair.tied]
        self.within_budget = True
        self.monitors = Monitors(spec.monitors, PATIENCE)
        self._row_of, self._at_start = {row.id: row for row in self.rows}, dict[str, float]()
        self.tokens = self.trained_on = 0
        self._step, self._doing, self._done, self._total = 0, "", 0, 1
        self._start_logps: Tensor | None = None
        self.candidates: list[Candidate] = []

    @property
    def goes_on(self) -> bool:
        """Whether another phase may follow: the KL budget is not used up, and no monitor has stopped the run."""
        return self.within_budget and not self.monitors.stop

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def turn_answers(self, turn: int) -> tuple[Answers, Tensor]:
        """Return the policy's answers to a turn's prompts, and their scores (N,)."""
        order = torch.randperm(len(self.rows), generator=generator_at(self.spec.seed, PROMPTS, turn)).tolist()
        rows = [self.rows[i] for i in sorted(order[: self.spec.prompts_per_turn])]
        answers = self._answers(f"turn-{turn + 1}-answers", rows, self.spec.samples_per_prompt, turn + 1)
        return answers, self.scores(answers)

    def scores(self, answers: Answers) -> Tensor:
        """Return the combined scores (N,) of all members of the reward models."""
        return ensemble_score(answers.heads, self.spec.ensemble_score, self.spec.variance_weight)

    def _answers(self, name: str, rows: Sequence[PromptRow], samples: int, place: int) -> Answers:
        self._doing, self._total = f"{name.replace('-', ' ')}: sampling", len(rows) * samples
        # Each place in the run has its own range of sample indices, so that no answer is drawn twice.
        first = place * 1000
        return answers_of(
            self.policy,
            self.start,
            [(row, range(first, first + samples)) for row in rows],
            self._heads,
            self.work,
            name,
            max_new_tokens=self.spec.max_new_tokens,
            temperature=self.spec.temperature,
            batch_size=self.at_once,
            max_length=self.spec.max_length,
            seed=self.spec.seed,
            purpose=self.spec.kind,
            tick=self._tick,
            on_stored=self._on_stored,
        )

    def _on_stored(self) -> None:
        if self.checkpoints is not None:
            self.checkpoints.on_saved(self._step)  # counts as progress: repeated deaths without progress fail the run

    def _tick(self, done: int | None = None) -> None:
        self._done = self._done if done is None else done
        self.reporter.progress(self._done, self._total, self._doing)

    # ---- phases ------------------------------------------------------------------------------------------------------

    def train(
        self,
        name: str,
        recipe: ModuleType,
        spec: RunSpec,
        values: Mapping[str, float] | None = None,
        budget_share: float = 1.0,
    ) -> tuple[str, ...]:
        """Run a phase: train the policy with a recipe, keep it within the KL budget, and measure it.

        Args:
            name: name of the phase: the name of its folder and, with spaces, the name that people see.
            values: metrics of the phase's training data.
            budget_share: share of the KL budget that the phases so far may use.

        Returns:
            Sentences that say why the recipe left rows out.
        """
        self._look_at_start()
        before, phase = self.policy, Phase(self.reporter, self._step + 1, name.replace("-", " "))
        done = the_main_processes(lambda: self.work.exists(name))
        if not done:
            own = self.checkpoints.of_phase(name, spec) if self.checkpoints else None
            self.memory.peak()  # read the peak now, because the phase resets the counter
            with self._folder(name) as folder:
                result: PolicyResult = recipe.train(spec, self.work, phase, folder, own)
                if own is not None:
                    # If the phase resumed after its last step, it has not reported that step again.
                    phase.last = max(phase.last, phase.first + own.last_step)
                    own.on_saving()  # a finished phase is not repeated, so its reported metrics must be stored now
                if accelerator().is_main_process:
                    done_with = [phase.last, result.train_rows, result.tokens, result.dropped, self.seconds]
                    (folder / STEPS).write_text(json.dumps(done_with))
            accelerator().free_memory()  # the accelerator holds references to all models that it prepared
            if own is not None:
                self.work.remove(f"checkpoints/{name}")
                own.on_saved(phase.last)
        found = json.loads(the_main_processes((self.work.root / name / STEPS).read_text))
        self._step, rows, tokens, dropped, seconds = found
        if done:
            self._started = time.monotonic() - seconds  # count earlier attempts, up to their last finished phase
        self.trained_on += rows
        self.tokens += tokens
        self.policy = self._model(name)
        answers, measured = self._within_budget(before, name, budget_share)
        if self.monitors.is_on:
            measured |= self.monitors.look_at_answers(self._step, answers, self._row_of)
        right = self.right(self.policy)
        if len(right):
            measured["heldout/accuracy"] = float(right.mean())
        measured |= values or {}
        self.reporter.metrics(self._step, measured)
        if self.monitors.stop:
            self.notes.append(self.monitors.note("the policy before that phase"))
            if not self.candidates:
                even = torch.full((len(self.heldout),), 0.5)
                self.candidates.append(Candidate("the start", self.start, even, self._at_start))
        else:
            self.candidates.append(Candidate(name.replace("-", " "), self.policy, right, measured))
        return tuple(dropped)

    def _look_at_start(self) -> None:
        """Let the monitors look at the starting policy, before the first phase."""
        if not self.monitors.is_on or self.monitors.watch.baseline:
            return
        started = self._measure("start")
        seen = self.monitors.look_at_answers(0, started.answers, self._row_of)
        self._at_start = started.values | seen
        self.reporter.metrics(0, seen)

    def written(self, name: str, rows: Sequence[BaseModel]) -> str:
        """Write a phase's training rows as JSONL, once for all processes; return the location."""
        if accelerator().is_main_process:
            with self.work.file(name) as path:
                path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
        accelerator().wait_for_everyone()
        return str(self.work.root / name)

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[Path]:
        """Give the folder for a phase's model. Other processes than the main one get a temporary folder.

        At the end, all processes wait for each other.
        """
        if accelerator().is_main_process:
            with self.work.folder(name) as folder:
                yield folder
        else:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch)
        accelerator().wait_for_everyone()

    def _model(self, name: str) -> ModelRef:
        folder = str(self.work.root / name)
        return ModelRef(base=self.start.base, adapter=folder) if self.spec.lora else ModelRef(base=folder)

    def _measure(self, name: str) -> Measured:
        """Sample the policy's answers to the measured prompts; return them with their metrics."""
        rows = self.rows[:: math.ceil(len(self.rows) / MEASURED_PROMPTS)]
        # Use the same sample indices for every policy, so that policies are compared with the same random numbers.
        answers = self._answers(f"{name}-measured", rows, MEASURED_SAMPLES, 0)
        values = {
            "objective/scores": float(self.scores(answers).mean()),
            "objective/disagreement": float(answers.heads.std(-1, correction=0).mean()),
            "objective/kl": float(answers.kl.mean()),
            "objective/kl_k3": float(answers.kl_k3.mean()),
            "val/length": float(answers.lengths.mean()),
            "val/finished": float(answers.finished.float().mean()),
        }
        return Measured(answers, values)

    # ---- the KL budget -----------------------------------------------------------------------------------------------

    def _within_budget(self, before: ModelRef, name: str, budget_share: float) -> Measured:
        """Measure a phase's policy. If its KL exceeds the budget, replace it by a policy between `before` and it.

        The weights then move only a share of the way. A few attempts find the share; the first attempt assumes that the
        KL grows with the square of the share.
        """
        measured = self._measure(name)
        budget = (self.spec.kl_budget or math.inf) * budget_share
        if measured.kl <= budget:
            return measured
        self.within_budget = budget_share < 1
        whole, kept, low, high = self.policy, (before, measured), 0.0, 1.0
        share = math.sqrt(NEAR_BUDGET * budget / measured.kl)
        for attempt in range(LEASH_TRIES):
            self.policy = self._between(before, whole, share, f"{name}-share-{attempt + 1}")
            measured = self._measure(f"{name}-share-{attempt + 1}")
            if measured.kl <= budget:
                kept, low = (self.policy, measured), share
            else:
                high = share
            if NEAR_BUDGET * budget <= measured.kl <= budget:
                break
            share = (low + high) / 2
        self.policy, measured = kept
        if low == 0:
            measured = self._measure(f"{name}-before")
        said = f"{low:.0%} of its step was taken" if low else "its step was not taken"
        of_all = f" ({budget_share:.0%} of the run's)" if budget_share < 1 else ""
        self.notes.append(
            f"{name.replace('-', ' ').capitalize()} exceeded the KL budget of {budget:g} nats{of_all}: {said}."
        )
        return Measured(measured.answers, measured.values | {"turn/share_of_step": low})

    def _between(self, before: ModelRef, after: ModelRef, share: float, name: str) -> ModelRef:
        """Make the policy whose weights lie at `share` of the way from `before` to `after`; store it under `name`."""
        if not the_main_processes(lambda: self.work.exists(name)):
            model = policy_between(before, after, share, self.spec.lora)
            with self._folder(name) as folder:
                save_policy(model, self.tokenizer, folder)
        return self._model(name)

    # ---- the choice --------------------------------------------------------------------------------------------------

    def right(self, policy: ModelRef) -> Tensor:
        """Return results (M,) on held-out comparisons: 1 if the margin between winner and loser has grown, else 0.

        The margin is the log-prob of the winner minus that of the loser. It is compared with the margin under the
        starting policy; equal margins give 0.5.
        """
        if not self.heldout or policy == self.start:
            return torch.full((len(self.heldout),), 0.5)
        if self._start_logps is None:
            self._start_logps = self._heldout_logps(self.start)
        moved = self._heldout_logps(policy) - self._start_logps
        return (torch.sign(moved[:, 0] - moved[:, 1]) + 1) / 2

    def _heldout_logps(self, model: ModelRef) -> Tensor:
        """Return log-probs (M, 2) of winners and losers."""
        policy = Policy(load_causal_lm(model, dtype=self.dtype))
        groups = [pair.sequences for pair in self.heldout]
        pad_id, tokens = self.tokenizer.pad_token_id, self.sizes.forward_tokens
        return completion_logps(policy, groups, policy.share, pad_id, tokens).view(-1, 2)

    def chosen(self) -> Candidate:
        """Choose the last policy that is not significantly worse on people's held-out comparisons than the best so far.

        A policy is worse if its mean result is lower by more than two standard errors of the paired difference. It then
        has learned something that people do not want. The reward model has no influence on this choice.

        Raises:
            InvalidInput: no phase had enough data to train on.
        """
        if not self.candidates:
            raise InvalidInput(
                " ".join(["There was nothing to learn from.", *self.notes]),
                "Add prompts, sample more or longer answers, or check the reward model's accuracy."
                if self.notes
                else "Set `turns` to 1 or more.",
            )
        kept = best = self.candidates[0]
        for candidate in self.candidates[1:]:
            if significantly_worse(candidate.right, best.right):
                self.notes.append(
                    f"The policy after {candidate.phase} is not kept: on people's held-out comparisons, it is worse "
                    f"than the policy after {best.phase}."
                )
                continue
            kept = candidate
            if len(candidate.right) and candidate.right.mean() > best.right.mean():
                best = candidate
        if significantly_worse(kept.right, torch.full_like(kept.right, 0.5)):
            self.notes.append(
                "On people's held-out comparisons, the new policy is worse than the starting policy: it prefers the "
                "winners less. Compare the two policies before you adopt the new one."
            )
        return kept

    @property
    def seconds(self) -> float:
        """Duration of the run, including earlier attempts up to their last finished phase."""
        return time.monotonic() - self._started

    def finish(self, folder: Path) -> PolicyResult:
        """Save the chosen policy to `folder` and return the run's result."""
        chosen = self.chosen()
        # If no phase's step was taken, a new adapter is created here. It must not depend on earlier random numbers.
        seed_everything(self.spec.seed)
        model = load_causal_lm(chosen.policy, self.spec.lora, trainable=True, dtype=self.dtype)
        save_policy(model, self.tokenizer, folder, self.spec.policy.base)
        if not self.heldout:
            self.notes.append("The last policy is kept: there are no held-out comparisons to choose a policy by.")
        return PolicyResult(
            chosen.values,
            self.trained_on,
            self.dropped,
            self.tokens,
            self.seconds,
            precision=name_of(self.dtype),
            sizes={
                "microbatch_tokens": self.optimiser.microbatch_tokens or self.sizes.microbatch_tokens,
                "forward_tokens": self.sizes.forward_tokens,
                "rollout_batch_size": self.at_once,
            },
            peak_memory=self.memory.peak(),
            notes=(*notes_on(self.tokenizer), *self.notes, *self.memory.notes),
            alarms=tuple(self.monitors.alarms),
        )


STEPS = "steps.json"  # beside a phase's model: its last step, numbers of rows and tokens, dropped rows, and seconds
LEAST = 5  # minimum of held-out comparisons: with fewer, a few equal results would look significant


def significantly_worse(right: Tensor, than: Tensor) -> bool:
    """Return whether the mean of results (M,) is lower than that of `than` by more than two standard errors.

    The standard error is that of the paired difference. With fewer than 5 results, the answer is False.
    """
    difference = right.double() - than.double()
    if len(difference) < LEAST:
        return False
    return bool(difference.mean() + 2 * difference.std() / math.sqrt(len(difference)) < 0)
