"""RLOO and GRPO: policy gradients whose baseline is computed from the rewards of other answers to the same prompt.

There is no critic to train. Instead, the policy gives `samples_per_prompt` answers to each prompt. In sampling and in
updates, the prompt's tokens are processed once for all its answers (Ahmadian et al. 2024; Shao et al. 2024; Liu et al.
2025; Yu et al. 2025).

| metric | meaning, for one rollout |
|---|---|
| `objective/*`, `time/*`, `eps`, `policy/early_stop` | the same as for PPO: see `trainer.recipes.ppo` |
| `objective/non_score_reward` | -beta * k1 summed over a sequence; 0 if the KL penalty is in the loss |
| `frac_reward_zero_std` | share of groups whose rewards are all equal: no signal, so updates leave them out |
| `reward_std` | standard deviation of rewards within a group, mean over groups |
| `loss/policy_avg` | the clipped surrogate, mean over the rollout's minibatches |
| `loss/kl_avg` | if the KL penalty is in the loss: k3 to the reference, with the surrogate's weights |
| `policy/approxkl_avg`, `policy/entropy_avg` | means over the tokens of a minibatch, then over minibatches |
| `policy/clipfrac_avg`, `val/ratio` | the same, over tokens; for RLOO as published, over whole answers |
| `val/ratio_var` | variance of the minibatches' mean ratios |
| `val/num_eos_tokens` | number of finished responses |

Log-probs are those of logits / temperature in sampling, reference and update alike, without top-k or top-p.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import GRPOSpec, RLOOSpec
from trainer.algorithms.group import answer_weights, group_loss, group_relative, has_signal, leave_one_out
from trainer.batching.packing import pack
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Scorer, prompt_groups
from trainer.models.policy import Policy
from trainer.processes import device, sum_over_processes
from trainer.reporting import PolicyResult, Reporter
from trainer.sampling.generation import Tick, no_tick
from trainer.training.experience import Collector, Rollout, rollout_sizes
from trainer.training.policy_gradient import Rollouts, Status, load, minibatches, refuse_shards
from trainer.training.ptx import Mix
from trainer.training.training import Training


def train(
    spec: RLOOSpec | GRPOSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
    scorer: Scorer | None = None,
) -> PolicyResult:
    """Train on the policy's own answers to the prompts; save it to `folder`. `scorer` replaces the reward models.

    One metrics step is one rollout with its updates. An interrupted run resumes from its last checkpoint, even within a
    rollout's updates, and ends with the same weights as an uninterrupted run.

    Raises:
        InvalidInput: a file of prompts or demonstrations is invalid or empty, the chat template rejects a prompt,
            `max_new_tokens` leaves no room for a prompt, or the run uses FSDP.
        ModelUnavailable: the policy, the reference or a reward model does not load.
        StorageFull: the disk has no room for a checkpoint or the model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started = time.monotonic()
    refuse_shards(spec.kind.upper())
    spec, k = in_whole_groups(spec), spec.samples_per_prompt

    # 1. Read the prompts and load the models. The seed determines samples, adapters and every order.
    status = Status(reporter, spec.episodes)
    loaded = load(spec, store, status, checkpoints, scorer)
    pad_id = loaded.tokenizer.pad_token_id
    policy = Policy(loaded.causal)
    sampler = loaded.sampler(spec, spec.kind, status)
    at_once = spec.rollout_batch_size or loaded.sizes.rollout_batch_size
    collector = Collector(policy, loaded.reference, sampler, loaded.scorer, loaded.rows, at_once, pad_id, status)

    # 2. Set up training: from the start, or from the last checkpoint.
    sizes, groups_at_once = rollout_sizes(spec), spec.optimiser.batch_size // k
    steps = [spec.optimiser.epochs * -(-size // spec.optimiser.batch_size) for size in sizes]
    training = Training(
        policy,
        loaded.sizes.fill(spec.optimiser),
        seed=spec.seed,
        total_steps=sum(steps),
        started=started,
        checkpoints=checkpoints,
    )
    learner = Learner(spec, training, policy.share, pad_id, loaded.mix, status)
    rollouts = Rollouts(spec, sizes, steps, loaded, training, collector, status)

    # 3. Sample k adjacent answers per prompt from the current policy, with scores and with log-probs of the policy and
    # the reference. This step takes longest.
    for rollout in rollouts:
        # 4. Rewards of whole answers: the score, minus beta * KL if the spec puts the KL penalty into the reward.
        scores = rollouts.shaped_scores()
        leash = -rollouts.beta * rollout.kl if spec.kl_in == "reward" else torch.zeros_like(scores)
        rewards = (scores + leash).view(-1, k)

        # 5. Advantages: how much better an answer is than the other answers to its prompt. Groups of equal rewards have
        # no signal. In a minibatch with others, they would only make the step smaller.
        if spec.kind == "rloo":
            advantages = leave_one_out(rewards).flatten()
        else:
            advantages = group_relative(rewards, scaled=spec.normalisation == "published").flatten()
        groups = has_signal(rewards).nonzero().flatten().tolist()

        # 6. Several epochs of updates on minibatches of whole groups, each epoch in a new order. The updates end early
        # if the policy has moved too far.
        planned = [
            [group * k + i for group in chosen for i in range(k)]
            for chosen in minibatches(spec, rollouts.progress.rollout, groups, groups_at_once)
        ]
        for minibatch in rollouts.minibatches(planned):
            rollouts.step(learner.accumulate(rollout, minibatch, advantages, rollouts.beta))

        # 7. Report metrics of the policy that sampled, then adapt beta.
        said = {"frac_reward_zero_std": 1 - len(groups) / len(rewards), "reward_std": float(rewards.std(1).mean())}
        rollouts.report(scores, leash, said)

    # 8. Save the policy.
    return rollouts.result(folder)


def in_whole_groups(spec: RLOOSpec | GRPOSpec) -> RLOOSpec | GRPOSpec:
    """Return the spec with episodes, rollouts and minibatches rounded up to whole groups."""

    def whole(episodes: int) -> int:
        return -(-episodes // spec.samples_per_prompt) * spec.samples_per_prompt

    optimiser = spec.optimiser.model_copy(update={"batch_size": whole(spec.optimiser.batch_size)})
    changed = {"episodes": whole(spec.episodes), "rollout_size": whole(spec.rollout_size), "optimiser": optimiser}
    return spec.model_copy(update=changed)


# ---- updates ---------------------------------------------------------------------------------------------------------


class Learner:
    """Computes the gradients of a rollout's minibatches."""

    def __init__(
        self,
        spec: RLOOSpec | GRPOSpec,
        training: Training,
        share: bool,
        pad_id: int,
        mix: Mix | None,
        tick: Tick = no_tick,
    ) -> None:
        self.spec, self.training, self.share, self.pad_id = spec, training, share, pad_id
        self.mix, self.tick = mix, tick

    def accumulate(
        self, rollout: Rollout, minibatch: Sequence[int], advantages: Tensor, beta: float
    ) -> dict[str, float]:
        """Accumulate the gradients of a minibatch; return its loss and the metrics of `WATCHED`.

        Args:
            minibatch: indices of the minibatch's answers in the rollout.
            advantages: (B,) of all answers in the rollout.
            beta: coefficient of the KL penalty; used only if the spec puts the penalty into the loss.
        """
        spec, training = self.spec, self.training
        mixed = {"loss/ptx_avg": self.mix.accumulate(training, self.share, self.tick)} if self.mix else {}
        tokens, answers, mask = int(rollout.lengths[minibatch].sum()), len(minibatch), rollout.valid_mask
        beta = beta if spec.kl_in == "loss" else 0.0
        whole_answers = spec.kind == "rloo" and spec.normalisation == "published"

        sequences = rollout.sequences()
        groups, lengths = prompt_groups(sequences, minibatch, self.share, training.microbatch_tokens)
        sums = torch.zeros(len(WATCHED))
        for part in training.parts(range(len(groups)), lengths):
            self.tick()
            chosen = [i for group in part.rows for i in groups[group]]
            packed = pack([sequences[i] for i in chosen], self.pad_id, self.share).to(device())
            new = training.model(packed, spec.temperature, True)
            # Flat (N,): the tokens of one answer after the other, as the model returns them.
            old_logps, reference_logps = (
                column[chosen][mask[chosen]].to(device()) for column in (rollout.logps, rollout.reference_logps)
            )
            weights = answer_weights(rollout.lengths[chosen], answers, spec.max_new_tokens, spec.normalisation)
            if whole_answers:
                weights = torch.full_like(weights, 1 / answers)
            loss = group_loss(
                new.logps,
                old_logps,
                reference_logps,
                advantages[chosen].to(device()),
                weights.to(device()),
                packed.owners,
                spec.clip_low,
                spec.clip_high,
                whole_answers,
                unbiased_kl=spec.normalisation == "constant",
            )
            training.backward(loss.policy + beta * loss.kl, part)
            if part.counts:
                of_tokens = len(new.logps) / tokens  # weights parts so that their sum is the minibatch's mean
                of_units = len(chosen) / answers if whole_answers else of_tokens
                seen = (
                    loss.policy,
                    loss.kl,
                    of_tokens * loss.approxkl,
                    of_units * loss.clipfrac,
                    of_tokens * new.entropy.mean(),
                    of_units * loss.ratio,
                )
                sums += torch.stack(seen).detach().cpu()
        watched = dict(zip(WATCHED, sum_over_processes(sums).tolist(), strict=True))
        total = watched["loss/policy_avg"] + beta * watched["loss/kl_avg"]
        if spec.kl_in == "reward":
            del watched["loss/kl_avg"]
        return {"loss": total + spec.ptx_coef * mixed.get("loss/ptx_avg", 0.0), **watched, **mixed}


WATCHED = (
    "loss/policy_avg",
    "loss/kl_avg",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "val/ratio",
)
