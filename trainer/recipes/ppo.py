"""Proximal policy optimisation against reward models with a KL penalty (Ziegler et al. 2019; Ouyang et al. 2022).

| metric | meaning, for one rollout |
|---|---|
| `objective/scores` | the reward models' `ensemble_score`, before normalisation, clipping and EOS penalty |
| `objective/non_score_reward` | -beta * k1 summed over a sequence |
| `objective/rlhf_reward` | the maximised reward: the score after these changes, plus the KL penalty (negative) |
| `objective/kl` | k1, nats per sequence |
| `objective/kl_per_token` | k1 summed over all sequences / number of their tokens |
| `objective/kl_k3` | the same KL by k3, nats per sequence; over few sequences (a small slice), k1 can be negative |
| `objective/entropy` | -log-prob of a sequence, nats |
| `policy/*`, `loss/*`, `val/*` | means over the tokens of a minibatch, then over the rollout's minibatches |
| `val/ratio_var` | variance of the minibatches' mean ratios |
| `val/num_eos_tokens` | number of finished responses |
| `policy/early_stop` | 1 if `approxkl_stop` ended the updates |
| `time/generation`, `time/scoring`, `time/update` | seconds |
| `eps` | episodes per second since the start of the run, without interruptions |

Log-probs are those of logits / temperature in sampling, reference and update alike. Sampling never uses top-k or top-p,
because the ratio of two policies needs the probabilities with which tokens were drawn.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import PPOSpec
from trainer.algorithms.gae import gae
from trainer.algorithms.masked import masked_mean, masked_whiten
from trainer.algorithms.ppo import explained_variance, policy_loss, token_rewards, value_loss
from trainer.batching.packing import pack
from trainer.checkpoints import Checkpoints
from trainer.evaluation.figures import Scorer, prompt_groups
from trainer.processes import device, sum_over_processes
from trainer.reporting import PolicyResult, Reporter
from trainer.sampling.generation import Tick, no_tick
from trainer.training.critics import ActorCritic, RewardCritic, ValueHead
from trainer.training.experience import Collector, Rollout, rollout_sizes
from trainer.training.policy_gradient import Rollouts, Status, load, minibatches, refuse_shards
from trainer.training.ptx import Mix
from trainer.training.training import Training


def train(
    spec: PPOSpec,
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
        ModelUnavailable: the policy, the reference or a reward model does not load, or the reward model cannot be the
            critic.
        StorageFull: the disk has no room for a checkpoint or the model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started = time.monotonic()
    refuse_shards("PPO")

    # 1. Read the prompts and load the models. The seed determines samples, adapters and every order.
    status = Status(reporter, spec.episodes)
    critic_folder = store.resolve(spec.reward_models[0]) if spec.critic == "reward" else None
    loaded = load(spec, store, status, checkpoints, scorer, [str(critic_folder)] if critic_folder else [])
    pad_id = loaded.tokenizer.pad_token_id
    critic: ValueHead | RewardCritic = ValueHead(loaded.causal)
    if critic_folder is not None:
        critic = RewardCritic(critic_folder, loaded.tokenizer, spec.lora, loaded.dtype)
    module = ActorCritic(loaded.causal, critic)
    sampler = loaded.sampler(spec, spec.kind, status)
    at_once = spec.rollout_batch_size or loaded.sizes.rollout_batch_size
    collector = Collector(module, loaded.reference, sampler, loaded.scorer, loaded.rows, at_once, pad_id, status)

    # 2. Set up training: from the start, or from the last checkpoint.
    sizes = rollout_sizes(spec)
    steps = [spec.optimiser.epochs * -(-size // spec.optimiser.batch_size) for size in sizes]
    training = Training(
        module,
        loaded.sizes.fill(spec.optimiser),
        seed=spec.seed,
        total_steps=sum(steps),
        started=started,
        checkpoints=checkpoints,
    )
    learner = Learner(spec, training, module.share, pad_id, loaded.mix, status)
    rollouts = Rollouts(spec, sizes, steps, loaded, training, collector, status)

    # 3. Sample responses from the current policy, with scores, with log-probs of the policy and the reference, and with
    # the critic's values. This step takes longest.
    for rollout in rollouts:
        mask = rollout.valid_mask

        # 4. Rewards: the KL penalty on every token, and the score on the last token (EOS if the response is finished).
        scores = rollouts.shaped_scores()
        rewards, non_score = token_rewards(scores, rollout.logps, rollout.reference_logps, mask, rollouts.beta)
        if spec.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)

        # 5. Advantages and returns. Advantages are whitened only later, so the critic's targets keep the reward's
        # scale. With lambda < 1, advantages rely on the critic. If a new value head returned 0 everywhere, advantages
        # would depend on a token's position, so the head starts at the mean return.
        if isinstance(critic, ValueHead) and spec.gae_lambda < 1 and rollouts.first and rollouts.fresh:
            all_of_it = gae(rewards, torch.zeros_like(rewards), mask, spec.gamma, 1.0).returns
            rollout = rollouts.rollout = rollout._replace(values=critic.begin_at(masked_mean(all_of_it, mask), mask))
        advantages, returns = gae(rewards, rollout.values, mask, spec.gamma, spec.gae_lambda)

        # 6. Several epochs of minibatch updates, each in a new order. They end early if the policy has moved too far.
        planned = minibatches(spec, rollouts.progress.rollout, range(len(scores)), spec.optimiser.batch_size)
        for minibatch in rollouts.minibatches(planned):
            rollouts.step(learner.accumulate(rollout, minibatch, advantages, returns))

        # 7. Report metrics of the policy that sampled, then adapt beta.
        explained = float(explained_variance(rollout.values, returns, mask))
        rollouts.report(scores, non_score.sum(1), {"ppo/val/var_explained": explained})

    # 8. Save the policy, without the critic.
    return rollouts.result(folder)


# ---- updates ---------------------------------------------------------------------------------------------------------


class Learner:
    """Computes the gradients of a rollout's minibatches."""

    def __init__(
        self, spec: PPOSpec, training: Training, share: bool, pad_id: int, mix: Mix | None, tick: Tick = no_tick
    ) -> None:
        self.spec, self.training, self.share, self.pad_id = spec, training, share, pad_id
        self.mix, self.tick = mix, tick

    def accumulate(
        self, rollout: Rollout, minibatch: Sequence[int], advantages: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Accumulate the gradients of a minibatch; return its loss and the metrics of `WATCHED`, means over its tokens.

        Args:
            minibatch: indices of the minibatch's episodes in the rollout.
            advantages, returns: (B, T) of all episodes in the rollout.
        """
        spec, training = self.spec, self.training
        mixed = {"loss/ptx_avg": self.mix.accumulate(training, self.share, self.tick)} if self.mix else {}
        minibatch_tokens = int(rollout.lengths[minibatch].sum())
        mask, whitened = rollout.valid_mask, torch.zeros_like(advantages)
        # Whiten the advantages of each minibatch, so that a step's size does not depend on the scale of rewards.
        whitened[minibatch] = masked_whiten(advantages[minibatch], mask[minibatch])

        sequences = rollout.sequences()
        groups, lengths = prompt_groups(sequences, minibatch, self.share, training.microbatch_tokens)
        sums = torch.zeros(len(WATCHED))
        for part in training.parts(range(len(groups)), lengths):
            self.tick()
            episodes = [i for group in part.rows for i in groups[group]]
            packed = pack([sequences[i] for i in episodes], self.pad_id, self.share).to(device())
            new = training.model(packed, spec.temperature, True)
            # Flat (N,): the tokens of one episode after the other, as the model returns them.
            old = (rollout.logps, rollout.values, whitened, returns)
            old_logps, old_values, token_advantages, token_returns = (
                column[episodes][mask[episodes]].to(device()) for column in old
            )
            valid = torch.ones_like(new.logps, dtype=torch.bool)
            policy = policy_loss(new.logps, old_logps, token_advantages, valid, spec.clip_range)
            value = value_loss(new.values, old_values, token_returns, valid, spec.value_clip_range)
            share = len(new.logps) / minibatch_tokens  # weights parts so that their sum is the minibatch's mean
            loss = share * (policy.loss + spec.vf_coef * value.loss)
            training.backward(loss, part)
            if part.counts:
                seen = (policy.loss, value.loss, policy.approxkl, policy.clipfrac, new.entropy.mean(), value.clipfrac)
                sums += share * torch.stack([*seen, policy.ratio]).detach().cpu()
        watched = dict(zip(WATCHED, sum_over_processes(sums).tolist(), strict=True))
        loss = watched["loss/policy_avg"] + spec.vf_coef * watched["loss/value_avg"]
        return {"loss": loss + spec.ptx_coef * mixed.get("loss/ptx_avg", 0.0), **watched, **mixed}


WATCHED = (
    "loss/policy_avg",
    "loss/value_avg",
    "policy/approxkl_avg",
    "policy/clipfrac_avg",
    "policy/entropy_avg",
    "val/clipfrac_avg",
    "val/ratio",
)
