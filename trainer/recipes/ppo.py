"""Proximal policy optimisation against reward models with a KL leash (Ziegler et al. 2019; Ouyang et al. 2022).

| metric | of a rollout |
|---|---|
| `objective/scores` | the reward models' score by `ensemble_score`, before normalisation, clipping and EOS penalty |
| `objective/non_score_reward` | -beta * k1 summed over a sequence |
| `objective/rlhf_reward` | what is maximised: the score after all of these, and the leash |
| `objective/kl`, `objective/kl_per_token` | k1: nats a sequence, and of all sequences / tokens of all sequences |
| `objective/kl_k3` | the same KL, nats a sequence, by k3: of few sequences, as in a small slice, k1 may be negative |
| `objective/entropy` | -log-prob of a sequence, nats |
| `policy/*`, `loss/*`, `val/*` | means over the tokens of a minibatch, then over the rollout's minibatches |
| `val/ratio_var` | variance over the minibatches of their mean ratios |
| `val/num_eos_tokens` | responses that ended by themselves |
| `policy/early_stop` | 1 where `approxkl_stop` ended the updates |
| `time/generation`, `time/scoring`, `time/update` | seconds |
| `eps` | episodes a second since the run began, interruptions left out |

Log-probs are of logits / temperature, in sampling, reference and update alike; nothing is ever cut off by top-k or
top-p, because the ratio of two policies needs the probabilities that tokens were really drawn with.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.specs import PPOSpec
from trainer.algorithms.gae import gae
from trainer.algorithms.kl import KLController
from trainer.algorithms.masked import masked_whiten
from trainer.algorithms.ppo import (
    RunningScale,
    clip_scores,
    explained_variance,
    penalise_unfinished,
    policy_loss,
    token_rewards,
    value_loss,
)
from trainer.chat import ChatEncoder
from trainer.checkpoints import Checkpoints
from trainer.critics import ActorCritic, RewardCritic, ValueHead
from trainer.data import chunks, read_prompts
from trainer.evaluation import Scorer, prompt_groups, reward_models_scorer, slice_members
from trainer.experience import (
    MINIBATCHES,
    PAGE_SAMPLE,
    Clock,
    Collector,
    Rollout,
    draw,
    page_prompts,
    rollout_sizes,
)
from trainer.generation import Tick, no_tick
from trainer.modeling import (
    device,
    load_policy_and_reference,
    load_tokenizer,
    notes_on,
    read_by_all,
    resolve,
    seed_everything,
    working_dtype,
)
from trainer.packing import pack
from trainer.precision import name_of
from trainer.ptx import Mix
from trainer.reporting import PolicyResult, Reporter
from trainer.rollout import Response, Sampler, cut_prompts
from trainer.saving import save_policy
from trainer.sharding import wants_shards
from trainer.training import Training, accelerator, sum_over_processes


@dataclass
class Progress:
    """What a checkpoint says of the run besides weights and rollout.

    Attributes:
        rollout: rollouts that are done with.
        beta, scale: of the rollout in hand; those of the next one follow from it.
        watched: of each update of the rollout in hand.
        seconds: of the rollout in hand, by what they were spent on.
        values: metrics of the last rollout that is done with.
    """

    beta: float
    scale: dict[str, Any]
    rollout: int = 0
    watched: list[dict[str, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


def train(
    spec: PPOSpec,
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
        ModelUnavailable: policy, reference or a reward model does not load, or cannot be the critic.
        StorageFull: no room for a checkpoint or the model; checkpoints saved before stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started = time.monotonic()
    if wants_shards():
        raise InvalidInput(
            "PPO does not run under FSDP: it samples from the whole policy between its updates.",
            "Launch it with docs/accelerate/ddp.yaml; with LoRA, the frozen base then takes the memory of one copy.",
        )

    # 1. Prompts and models; the seed fixes the samples, the adapters and the order of everything.
    rows = read_prompts(store.resolve(spec.prompts))
    policy_ref, reference_ref = resolve(store, spec.policy), resolve(store, spec.reference)
    tokenizer = load_tokenizer(policy_ref)
    pad_id = tokenizer.pad_token_id
    critic_folder = store.resolve(spec.reward_models[0]) if spec.critic == "reward" else None
    others = [reference_ref.base, *([str(critic_folder)] if critic_folder else [])]
    encoder = ChatEncoder(tokenizer, read_by_all(spec.max_length, *others))
    pages = page_prompts(rows, spec.seed)
    answered = {row.id: row for row in (*pages, *(row for row, _ in draw(rows, spec, 0, spec.episodes)))}
    dropped = cut_prompts(answered.values(), encoder, spec.max_new_tokens)
    mix = None
    if spec.ptx is not None:
        mix = Mix(store.resolve(spec.ptx), encoder, spec.ptx_coef, spec.optimiser.batch_size, pad_id)
        dropped += mix.dropped
    sizes = rollout_sizes(spec)
    episodes, doing = 0, "loading models"

    def tick() -> None:
        reporter.progress(episodes, spec.episodes, doing)

    tick()
    dtype = working_dtype(spec.optimiser.precision, policy_ref, checkpoints)  # of all models, also those that score
    if scorer is None:
        folders = [store.resolve(location) for location in spec.reward_models]
        scorer = reward_models_scorer(folders, spec.max_length, spec.ensemble_score, spec.variance_weight, tick, dtype)
    seed_everything(spec.seed)
    causal, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora, dtype)
    critic: ValueHead | RewardCritic = ValueHead(causal)
    if critic_folder is not None:
        critic = RewardCritic(critic_folder, tokenizer, spec.lora, dtype)
    module = ActorCritic(causal, critic)
    sampler = Sampler(causal, encoder, spec.max_new_tokens, spec.temperature, spec.seed, spec.kind, tick)
    collector = Collector(module, reference, sampler, scorer, rows, spec.rollout_batch_size, pad_id, tick)

    # 2. Where we are: at the start, or where the last checkpoint was written.
    steps = [updates(spec, size) for size in sizes]
    training = Training(
        module, spec.optimiser, seed=spec.seed, total_steps=sum(steps), started=started, checkpoints=checkpoints
    )
    learner = Learner(spec, training, module.share, pad_id, mix, tick)
    progress, rollout = Progress(spec.kl_coef, asdict(RunningScale())), None

    def show_page(step: int) -> None:
        answers, looked = collector.collect([(row, [PAGE_SAMPLE]) for row in pages], Clock())
        if accelerator().is_main_process:
            reporter.samples(step, page(answers, looked))

    if training.resumed is not None:
        progress = Progress(**training.resumed.state)
        rollout = Rollout(**training.resumed.tensors) if training.resumed.tensors else None
    else:
        doing = "sampling from the policy"
        show_page(0)

    for number in range(progress.rollout, len(sizes)):
        size, episodes = sizes[number], number * spec.rollout_size
        clock = Clock(progress.seconds)

        # 3. Sample responses from the policy as it is now; log-probs and values of that policy, log-probs of the
        # reference, scores. It is what takes longest, so it is never done twice.
        if rollout is None:
            doing = "sampling from the policy"
            _responses, rollout = collector.collect(draw(rows, spec, episodes, size), clock)
            progress.seconds = clock.seconds
            training.save(asdict(progress), rollout._asdict())
        mask, mean_kl = rollout.valid_mask, float(rollout.kl.mean())
        stop = spec.kl_stop is not None and mean_kl > spec.kl_stop

        # 4. Rewards: the leash on every token, the score on the last, which is EOS where the response has one.
        scale = RunningScale(**progress.scale).update(rollout.scores)
        scores = scale.normalise(rollout.scores) if spec.normalise_scores else rollout.scores
        scores = clip_scores(scores, spec.clip_score)
        scores = penalise_unfinished(scores, rollout.finished, spec.missing_eos_penalty, spec.missing_eos)
        rewards, non_score = token_rewards(scores, rollout.logps, rollout.reference_logps, mask, progress.beta)
        if spec.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)

        # 5. Advantages, and returns before any whitening: values are fitted to real rewards.
        advantages, returns = gae(rewards, rollout.values, mask, spec.gamma, spec.gae_lambda)

        # 6. Several epochs of minibatch updates, a fresh permutation each; none once the policy has strayed too far.
        doing = "training the policy"
        first_step = sum(steps[:number])
        early = False
        for minibatch in [] if stop else minibatches(spec, training, number, size)[len(progress.watched) :]:
            watched = learner.accumulate(rollout, minibatch, advantages, returns)
            early = spec.approxkl_stop is not None and watched["policy/approxkl_avg"] > spec.approxkl_stop
            if early:
                training.optimiser.zero_grad(set_to_none=True)  # the step that would lead further still is not taken
                progress.watched.append(watched)
                break
            watched["lr"] = training.step(watched["loss"]).lr
            progress.watched.append(watched)
            clock.spent_on("update")
            progress.seconds = clock.seconds
            training.save_if_due(asdict(progress), rollout._asdict())
        if not stop:
            training.steps = first_step + steps[number]  # the rate goes to 0 at the planned end, early stops or not
        clock.spent_on("update")

        # 7. Metrics, of the policy that sampled; then lead the leash.
        episodes += size
        training.tokens += int(mask.sum())
        progress.values = {
            **rollout_values(rollout, list(range(size))),
            "objective/kl_coef": progress.beta,
            "objective/non_score_reward": float(non_score.sum(1).mean()),
            "objective/rlhf_reward": float((non_score.sum(1) + scores).mean()),
            **averaged(progress.watched),
            **({"policy/early_stop": float(early)} if spec.approxkl_stop is not None else {}),
            "ppo/val/var_explained": float(explained_variance(rollout.values, returns, mask)),
            "val/num_eos_tokens": float(rollout.finished.sum()),
            **{f"time/{what}": seconds for what, seconds in clock.seconds.items()},
            "eps": episodes / training.seconds,
        }
        reporter.metrics(number + 1, progress.values)
        for name, members in slice_members([rows[i] for i in rollout.rows.tolist()]).items():
            if name:
                reporter.metrics(number + 1, rollout_values(rollout, members), name)
        if stop or (number + 1) % spec.evaluate_every == 0 or number + 1 == len(sizes):
            doing = "sampling from the policy"
            show_page(number + 1)
        tick()
        if stop:
            break
        controller = KLController(progress.beta, spec.kl_target, spec.kl_horizon).step(mean_kl, size)
        progress = Progress(controller.beta, asdict(scale), number + 1, values=progress.values)
        rollout = None
        training.save_if_due(asdict(progress))

    # 8. Save. The critic is not part of the policy.
    episodes = episodes or spec.episodes  # resumed behind the last rollout
    save_policy(causal, tokenizer, folder, spec.policy.base)
    kl, notes = progress.values["objective/kl"], notes_on(tokenizer)
    if spec.kl_stop is not None and kl > spec.kl_stop:
        said = f"Stopped after {episodes} of {spec.episodes} episodes: the KL was {kl:.3g} nats a response, "
        notes += (said + f"more than the {spec.kl_stop:g} of kl_stop.",)
    return PolicyResult(
        progress.values,
        episodes,
        dropped,
        training.tokens,
        training.seconds,
        precision=name_of(dtype),
        notes=notes,
    )


# ---- updates ---------------------------------------------------------------------------------------------------------


def updates(spec: PPOSpec, size: int) -> int:
    """Optimiser steps that a rollout of `size` episodes is used for."""
    return spec.optimiser.epochs * -(-size // spec.optimiser.batch_size)


def minibatches(spec: PPOSpec, training: Training, rollout: int, size: int) -> list[Sequence[int]]:
    """The episodes of each update of a rollout, as a function of the seed and the rollout's number."""
    found: list[Sequence[int]] = []
    for epoch in range(spec.optimiser.epochs):
        permutation = torch.randperm(size, generator=training.generator(MINIBATCHES, rollout, epoch)).tolist()
        found += chunks(permutation, spec.optimiser.batch_size)
    return found


class Learner:
    """Gradients of minibatches of a rollout."""

    def __init__(
        self, spec: PPOSpec, training: Training, share: bool, pad_id: int, mix: Mix | None, tick: Tick = no_tick
    ) -> None:
        self.spec, self.training, self.share, self.pad_id = spec, training, share, pad_id
        self.mix, self.tick = mix, tick

    def accumulate(
        self, rollout: Rollout, minibatch: Sequence[int], advantages: Tensor, returns: Tensor
    ) -> dict[str, float]:
        """Adds the gradients of a minibatch; returns its loss and what is watched, means over its tokens."""
        spec, training = self.spec, self.training
        mixed = {"loss/ptx_avg": self.mix.accumulate(training, self.share, self.tick)} if self.mix else {}
        minibatch_tokens = int(rollout.lengths[minibatch].sum())
        mask, whitened = rollout.valid_mask, torch.zeros_like(advantages)
        # Whitened a minibatch at a time, so that a step's size does not depend on the scale of rewards.
        whitened[minibatch] = masked_whiten(advantages[minibatch], mask[minibatch])

        sequences = rollout.sequences()
        groups, lengths = prompt_groups(sequences, minibatch, self.share, spec.optimiser.microbatch_tokens)
        sums = torch.zeros(len(WATCHED))
        for part in training.parts(range(len(groups)), lengths):
            self.tick()
            episodes = [i for group in part.rows for i in groups[group]]
            packed = pack([sequences[i] for i in episodes], self.pad_id, self.share).to(device())
            new = training.model(packed, spec.temperature, True)
            # Flat (N,): the tokens of the episodes one after the other, as the model returns them.
            old = (rollout.logps, rollout.values, whitened, returns)
            old_logps, old_values, token_advantages, token_returns = (
                column[episodes][mask[episodes]].to(device()) for column in old
            )
            valid = torch.ones_like(new.logps, dtype=torch.bool)
            policy = policy_loss(new.logps, old_logps, token_advantages, valid, spec.clip_range)
            value = value_loss(new.values, old_values, token_returns, valid, spec.value_clip_range)
            share = len(new.logps) / minibatch_tokens  # means over the minibatch's tokens are sums over its parts
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


def averaged(watched: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over a rollout's updates, the variance of their ratios, and the rate of the last; nothing of none."""
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


# ---- what is shown ---------------------------------------------------------------------------------------------------


def rollout_values(rollout: Rollout, members: Sequence[int]) -> dict[str, float]:
    """Metrics of some episodes of a rollout: of all, or of a slice."""
    kl = rollout.kl[members]
    return {
        "objective/scores": float(rollout.scores[members].mean()),
        "objective/kl": float(kl.mean()),
        "objective/kl_per_token": float(kl.sum() / rollout.lengths[members].sum()),
        "objective/kl_k3": float(rollout.kl_k3[members].mean()),
        "objective/entropy": float(-rollout.logps[members].sum(1).mean()),
    }


def page(responses: Sequence[Response], rollout: Rollout) -> list[dict[str, Any]]:
    """Responses as a sample page shows them."""
    return [
        {
            "prompt_id": response.row.id,
            "messages": list(response.row.messages),
            "slices": response.row.slices,
            "response": response.text,
            "score": score,
            "kl": kl,
            "finished": response.sample.finished,
        }
        for response, score, kl in zip(responses, rollout.scores.tolist(), rollout.kl.tolist(), strict=True)
    ]
