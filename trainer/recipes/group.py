"""RLOO and GRPO: policy gradients whose baseline is what the policy's other answers to a prompt are worth.

There is no critic to train. In their place `samples_per_prompt` answers are sampled to each prompt, which is read once
for all of them, in sampling and in updates (Ahmadian et al. 2024; Shao et al. 2024; Liu et al. 2025; Yu et al. 2025).

| metric | of a rollout |
|---|---|
| `objective/*`, `time/*`, `eps`, `policy/early_stop` | as PPO's: see `trainer.recipes.ppo` |
| `objective/non_score_reward` | -beta * k1 summed over a sequence; 0 with the leash in the loss |
| `frac_reward_zero_std` | groups whose rewards are all equal: they say nothing and are left out of the updates |
| `reward_std` | standard deviation of rewards within a group, mean over groups |
| `loss/policy_avg` | the clipped surrogate, mean over the rollout's minibatches |
| `loss/kl_avg` | with the leash in the loss: k3 to the reference, weighted as the surrogate is |
| `policy/approxkl_avg`, `policy/entropy_avg` | means over the tokens of a minibatch, then over minibatches |
| `policy/clipfrac_avg`, `val/ratio` | the same over what has a ratio: tokens, or answers in RLOO as published |
| `val/ratio_var` | variance over the minibatches of their mean ratios |
| `val/num_eos_tokens` | responses that ended by themselves |

Log-probs are of logits / temperature, in sampling, reference and update alike, without top-k or top-p.
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
    """Trains on the prompts' own samples and saves the policy to `folder`. `scorer` replaces the reward models.

    One metrics step is one rollout with its updates. A run that was interrupted goes on from its last checkpoint, in
    the middle of a rollout's updates too, and ends with the weights it would have ended with.

    Raises:
        InvalidInput: a file of prompts or demonstrations is wrong or empty, the chat template takes no such prompt, new
            tokens leave no room for one, or the processes share out weights.
        ModelUnavailable: policy, reference or a reward model does not load.
        StorageFull: no room for a checkpoint or the model; checkpoints saved before stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started = time.monotonic()
    refuse_shards(spec.kind.upper())
    spec, k = in_whole_groups(spec), spec.samples_per_prompt

    # 1. Prompts and models; the seed fixes the samples, the adapters and the order of everything.
    status = Status(reporter, spec.episodes)
    loaded = load(spec, store, status, checkpoints, scorer)
    pad_id = loaded.tokenizer.pad_token_id
    policy = Policy(loaded.causal)
    sampler = loaded.sampler(spec, spec.kind, status)
    at_once = spec.rollout_batch_size or loaded.sizes.rollout_batch_size
    collector = Collector(policy, loaded.reference, sampler, loaded.scorer, loaded.rows, at_once, pad_id, status)

    # 2. Where we are: at the start, or where the last checkpoint was written.
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

    # 3. k answers of the policy as it is now to each prompt, side by side, with log-probs of that policy and of the
    # reference, and scores. That is what takes longest.
    for rollout in rollouts:
        # 4. Rewards of whole answers: their scores, less the leash where it is in the reward.
        scores = rollouts.shaped_scores()
        leash = -rollouts.beta * rollout.kl if spec.kl_in == "reward" else torch.zeros_like(scores)
        rewards = (scores + leash).view(-1, k)

        # 5. Advantages: how much better an answer is than the others to its prompt. Groups without a difference say
        # nothing; beside others they would only make a minibatch's step smaller.
        if spec.kind == "rloo":
            advantages = leave_one_out(rewards).flatten()
        else:
            advantages = group_relative(rewards, scaled=spec.normalisation == "published").flatten()
        groups = has_signal(rewards).nonzero().flatten().tolist()

        # 6. Several epochs of minibatches of whole groups, a fresh permutation each; none once the policy has strayed
        # too far.
        planned = [
            [group * k + i for group in chosen for i in range(k)]
            for chosen in minibatches(spec, rollouts.progress.rollout, groups, groups_at_once)
        ]
        for minibatch in rollouts.minibatches(planned):
            rollouts.step(learner.accumulate(rollout, minibatch, advantages, rollouts.beta))

        # 7. Metrics, of the policy that sampled; then lead the leash.
        said = {"frac_reward_zero_std": 1 - len(groups) / len(rewards), "reward_std": float(rewards.std(1).mean())}
        rollouts.report(scores, leash, said)

    # 8. Save.
    return rollouts.result(folder)


def in_whole_groups(spec: RLOOSpec | GRPOSpec) -> RLOOSpec | GRPOSpec:
    """The spec with episodes, rollouts and minibatches rounded up to whole groups."""

    def whole(episodes: int) -> int:
        return -(-episodes // spec.samples_per_prompt) * spec.samples_per_prompt

    optimiser = spec.optimiser.model_copy(update={"batch_size": whole(spec.optimiser.batch_size)})
    changed = {"episodes": whole(spec.episodes), "rollout_size": whole(spec.rollout_size), "optimiser": optimiser}
    return spec.model_copy(update=changed)


# ---- updates ---------------------------------------------------------------------------------------------------------


class Learner:
    """Gradients of minibatches of a rollout."""

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
        """Adds the gradients of a minibatch, advantages (B,) of all answers given; returns its loss and what is
        watched. `beta` is that of the leash where it is in the loss.
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
            # Flat (N,): the tokens of the answers one after the other, as the model returns them.
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
                of_tokens = len(new.logps) / tokens  # means over the minibatch are sums over its parts
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
