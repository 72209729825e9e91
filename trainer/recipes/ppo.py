"""Proximal policy optimisation against a reward model with a KL leash (Ziegler et al. 2019; Ouyang et al. 2022)."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.artifacts import ArtifactStore
from app.specs import PPOSpec, PromptRow
from trainer.algorithms.gae import gae
from trainer.algorithms.kl import KLController, k1
from trainer.algorithms.logprobs import entropy, scatter_to_mask, token_logps
from trainer.algorithms.masked import masked_mean, masked_whiten
from trainer.algorithms.ppo import (
    explained_variance,
    penalise_unfinished,
    policy_loss,
    token_rewards,
    value_loss,
)
from trainer.data import ChatEncoder, chunks, collate, microbatches, read_prompts
from trainer.evaluation import Scorer, forward_batches, reward_model_scorer, slice_members
from trainer.modeling import (
    device,
    hidden_states,
    load_policy_and_reference,
    load_tokenizer,
    resolve,
    save_policy,
    seed_everything,
    trainable_parameters,
    trunk_of,
    vocabulary_logits,
)
from trainer.optimisation import Stepper
from trainer.reporting import PolicyResult, Reporter
from trainer.rollout import Response, Sampler, Tick


def train(
    spec: PPOSpec, store: ArtifactStore, reporter: Reporter, folder: Path, scorer: Scorer | None = None
) -> PolicyResult:
    """Trains on the prompts' own samples and saves the policy to `folder`. `scorer` replaces the reward model.

    One metrics step is one rollout with its updates.

    Raises:
        InvalidInput: the prompts file is wrong or empty.
        ModelUnavailable: policy, reference or reward model does not load.
        RunCancelled, TrainingDiverged: nothing is saved.
    """
    started = time.monotonic()

    # 1. Prompts and models; the seed fixes the samples, the adapters and the order of everything.
    rows = read_prompts(store.resolve(spec.prompts))
    policy_ref, reference_ref = resolve(store, spec.policy), resolve(store, spec.reference)
    tokenizer = load_tokenizer(policy_ref)
    episodes, tokens, doing = 0, 0, "loading models"

    def tick() -> None:
        reporter.progress(episodes, spec.episodes, doing)

    tick()
    scorer = scorer or reward_model_scorer(store.resolve(spec.reward_model), spec.max_length, tick)
    order = seed_everything(spec.seed)
    model, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora)
    critic = Critic(model)
    encoder = ChatEncoder(tokenizer, spec.max_length)
    sampler = Sampler(model, encoder, spec.max_new_tokens, spec.temperature, spec.seed, tick)
    learner = Learner(spec, model, critic, tokenizer.pad_token_id, order, tick)
    controller = KLController(spec.kl_coef, spec.kl_target, spec.kl_horizon)

    values: dict[str, float] = {}
    prompts = endless_prompts(rows, order)
    for step, size in enumerate(rollout_sizes(spec), start=1):
        # 2. Sample responses from the policy as it is now.
        doing = "sampling from the policy"
        batches = sampler.respond(draw(prompts, size), spec.rollout_batch_size)
        responses = [response for batch in batches for response in batch]

        # 3. Log-probs and values of the policy that sampled, log-probs of the reference, scores.
        doing = "scoring the samples"
        rollout = learner.look(responses, reference())
        finished = torch.tensor([response.sample.finished for response in responses])
        raw_scores = scorer(responses).float().cpu()
        kl = k1(rollout.logps, rollout.reference_logps).sum(1)  # (B,) nats a sequence
        mean_kl = float(kl.mean())
        stop = spec.kl_stop is not None and mean_kl > spec.kl_stop

        # 4. Rewards: the leash on every token, the score on the last.
        scores = penalise_unfinished(raw_scores, finished, spec.missing_eos_penalty)
        rewards, non_score = token_rewards(
            scores, rollout.logps, rollout.reference_logps, rollout.valid_mask, controller.beta
        )
        if spec.whiten_rewards:
            rewards = masked_whiten(rewards, rollout.valid_mask, shift_mean=False)

        # 5. Advantages, and returns before any whitening.
        advantages, returns = gae(rewards, rollout.values, rollout.valid_mask, spec.gamma, spec.gae_lambda)

        # 6. Several epochs of minibatch updates, a fresh permutation each; none once the policy has strayed too far.
        doing = "training the policy"
        update = {} if stop else learner.update(rollout, advantages, returns)

        # 7. Metrics, of the policy that sampled; then lead the leash.
        episodes += size
        tokens += int(rollout.valid_mask.sum())
        values = {
            "objective/kl": mean_kl,  # summed over a sequence, mean over sequences
            "objective/kl_per_token": float(kl.sum() / rollout.valid_mask.sum()),
            "objective/kl_coef": controller.beta,
            "objective/scores": float(raw_scores.mean()),
            "objective/non_score_reward": float(non_score.sum(1).mean()),
            "objective/rlhf_reward": float((non_score.sum(1) + scores).mean()),
            "objective/entropy": float(-rollout.logps.sum(1).mean()),
            **update,
            "ppo/val/var_explained": float(explained_variance(rollout.values, returns, rollout.valid_mask)),
            "val/num_eos_tokens": float(finished.sum()),
            "eps": episodes / (time.monotonic() - started),
        }
        reporter.metrics(step, values)
        for name, members in slice_members(response.row for response in responses).items():
            if name:
                by_slice = {"objective/scores": raw_scores[members].mean(), "objective/kl": kl[members].mean()}
                reporter.metrics(step, {metric: float(value) for metric, value in by_slice.items()}, name)
        tick()
        if stop:
            break
        controller = controller.step(mean_kl, size)

    # 8. Save. The critic is not part of the policy.
    save_policy(model, tokenizer, folder)
    return PolicyResult(values, episodes, (), tokens, time.monotonic() - started)


# ---- prompts ---------------------------------------------------------------------------------------------------------


def rollout_sizes(spec: PPOSpec) -> list[int]:
    """Episodes of each rollout; they add up to `spec.episodes`."""
    whole, rest = divmod(spec.episodes, spec.rollout_size)
    return [spec.rollout_size] * whole + ([rest] if rest else [])


def endless_prompts(rows: Sequence[PromptRow], order: torch.Generator) -> Iterator[tuple[PromptRow, int]]:
    """Every prompt once in random order, then again in another; with how often it has come before."""
    turn = 0
    while True:
        for i in torch.randperm(len(rows), generator=order).tolist():
            yield rows[i], turn
        turn += 1


def draw(prompts: Iterator[tuple[PromptRow, int]], count: int) -> list[tuple[PromptRow, list[int]]]:
    """The next `count` prompts, each with its sample indices; one that comes twice is read once."""
    drawn: dict[int, tuple[PromptRow, list[int]]] = {}
    for _ in range(count):
        row, index = next(prompts)
        drawn.setdefault(row.id, (row, []))[1].append(index)
    return list(drawn.values())


# ---- learning --------------------------------------------------------------------------------------------------------


class Critic(nn.Module):
    """A value head on the policy's trunk, zero at first: then the first advantages are the rewards themselves."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.head = nn.Linear(model.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(device())

    def forward(self, hidden: Tensor) -> Tensor:
        """Values (N,) in fp32 of hidden states (N, H)."""
        return self.head(hidden.float()).squeeze(-1)


class Rollout(NamedTuple):
    """Responses and what the models said of them, before any update. All (B, T) over response tokens, on the CPU."""

    responses: list[Response]
    valid_mask: Tensor
    logps: Tensor
    reference_logps: Tensor
    values: Tensor


class Outputs(NamedTuple):
    """Of the response tokens of some responses, all (B, T): log-probs, entropies in nats, values of the states."""

    logps: Tensor
    entropy: Tensor
    values: Tensor


class Learner:
    """Runs the policy on responses and updates it and the critic. One optimiser for the whole run."""

    def __init__(
        self, spec: PPOSpec, model: Any, critic: Critic, pad_id: int, order: torch.Generator, tick: Tick
    ) -> None:
        self.spec, self.model, self.critic, self.pad_id = spec, model, critic, pad_id
        self.order, self.tick = order, tick
        settings = spec.optimiser
        steps = sum(settings.epochs * -(-size // settings.batch_size) for size in rollout_sizes(spec))
        self.stepper = Stepper([*trainable_parameters(model), *critic.parameters()], settings, steps)

    def run(self, model: Any, responses: Sequence[Response], width: int) -> Outputs:
        """One forward pass over a microbatch; outputs are padded to `width` tokens."""
        self.tick()
        batch = collate([response.sequence for response in responses], self.pad_id).to(device())
        predicts = batch.completion_mask[:, 1:]  # the state at position t is the one in which token t + 1 is chosen
        hidden = hidden_states(trunk_of(model), batch)[:, :-1][predicts]
        logits, chosen = vocabulary_logits(model, hidden), batch.input_ids[:, 1:][predicts]
        flat = (
            token_logps(logits, chosen, self.spec.temperature),
            entropy(logits.detach(), self.spec.temperature),
            self.critic(hidden),
        )
        mask = response_mask(responses, width).to(device())
        return Outputs(*(scatter_to_mask(column, mask) for column in flat))

    @torch.no_grad()
    def look(self, responses: list[Response], reference: AbstractContextManager[Any]) -> Rollout:
        """Log-probs and values of the policy as it is, and log-probs of the reference.

        The policy's log-probs are computed by the pass that updates use, so that the first ratio is exactly 1; sampling
        computed the same ones token by token (a test holds the two together).
        """
        mask = response_mask(responses, max(len(response.sample.tokens) for response in responses))
        logps, values, reference_logps = (torch.zeros(mask.shape) for _ in range(3))
        parts = list(forward_batches([response.sequence for response in responses]))
        for part in parts:
            outputs = self.run(self.model, [responses[i] for i in part], mask.shape[1])
            logps[part], values[part] = outputs.logps.cpu(), outputs.values.cpu()
        with reference as reference_model:
            for part in parts:
                outputs = self.run(reference_model, [responses[i] for i in part], mask.shape[1])
                reference_logps[part] = outputs.logps.cpu()
        return Rollout(responses, mask, logps, reference_logps, values)

    def update(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """The epochs of one rollout. Returns the means of what was watched over all minibatches."""
        settings = self.spec.optimiser
        watched: list[Mapping[str, float]] = []
        lr = 0.0
        for _epoch in range(settings.epochs):
            permutation = torch.randperm(len(rollout.responses), generator=self.order).tolist()
            for minibatch in chunks(permutation, settings.batch_size):
                # Whitened a minibatch at a time, so that a step's size does not depend on the scale of rewards.
                mask = rollout.valid_mask[minibatch]
                whitened = advantages.clone()
                if mask.sum() > 1:  # one token has no variance
                    whitened[minibatch] = masked_whiten(advantages[minibatch], mask)
                losses: Counter[str] = Counter()
                for part in self._microbatches(rollout, minibatch):
                    losses.update(self._accumulate(rollout, part, int(mask.sum()), whitened, returns))
                lr = self.stepper.step(losses["loss"]).lr
                watched.append(losses)
        ratios = torch.tensor([values["val/ratio"] for values in watched])
        means = {name: sum(values[name] for values in watched) / len(watched) for name in watched[0] if name != "loss"}
        return {**means, "val/ratio_var": float(ratios.var(correction=0)), "lr": lr}

    def _microbatches(self, rollout: Rollout, minibatch: Sequence[int]) -> Iterator[list[int]]:
        settings = self.spec.optimiser
        widths = [response.sequence.length for response in rollout.responses]
        ordered = sorted(minibatch, key=lambda i: widths[i])
        return microbatches(ordered, widths, settings.microbatch_size, settings.microbatch_tokens)

    def _accumulate(
        self, rollout: Rollout, part: list[int], minibatch_tokens: int, advantages: Tensor, returns: Tensor
    ) -> Mapping[str, float]:
        """Adds one microbatch's gradients; its share of the minibatch's means, which are over tokens."""
        mask = rollout.valid_mask[part]
        share = int(mask.sum()) / minibatch_tokens
        new = self.run(self.model, [rollout.responses[i] for i in part], mask.shape[1])
        old = (rollout.logps, rollout.values, advantages, returns, rollout.valid_mask)
        old_logps, old_values, advantages, returns, mask = (column[part].to(device()) for column in old)
        policy = policy_loss(new.logps, old_logps, advantages, mask, self.spec.clip_range)
        value = value_loss(new.values, old_values, returns, mask, self.spec.value_clip_range)
        loss = share * (policy.loss + self.spec.vf_coef * value.loss)
        loss.backward()
        return {
            "loss": loss.item(),
            "loss/policy_avg": share * policy.loss.item(),
            "loss/value_avg": share * value.loss.item(),
            "policy/approxkl_avg": share * policy.approxkl.item(),
            "policy/clipfrac_avg": share * policy.clipfrac.item(),
            "policy/entropy_avg": share * masked_mean(new.entropy, mask).item(),
            "val/clipfrac_avg": share * value.clipfrac.item(),
            "val/ratio": share * policy.ratio.item(),
        }


def response_mask(responses: Sequence[Response], width: int) -> Tensor:
    """True on the tokens of each response (B, width), the end-of-turn token included."""
    lengths = torch.tensor([len(response.sample.tokens) for response in responses])
    return torch.arange(width) < lengths[:, None]
