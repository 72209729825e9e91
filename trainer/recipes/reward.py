"""Trains a reward model on a snapshot: Bradley-Terry with soft labels (Ouyang et al. 2022, section 3.5)."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import Optimiser, RewardSpec
from trainer.algorithms import bradley_terry, calibration
from trainer.data import (
    ChatEncoder,
    Pair,
    TokenSequence,
    by_length,
    collate,
    encode_pairs,
    length_batches,
    microbatches,
    read_pairs,
    require_pairs,
    slice_names,
)
from trainer.modeling import (
    RewardModel,
    device,
    load_tokenizer,
    new_reward_model,
    resolve,
    save_reward_model,
    seed_everything,
    trainable_parameters,
)
from trainer.optimisation import Stepper
from trainer.reporting import Reporter, RewardResult, TrainingDiverged

REFERENCE_PAIRS = 256  # training pairs whose rewards are brought to mean 0 and standard deviation 1


def train(spec: RewardSpec, store: ArtifactStore, reporter: Reporter, folder: Path) -> RewardResult:
    """Trains on the snapshot's `train` rows, measures on its `heldout` rows, saves to `folder`.

    Raises:
        InvalidInput: too few comparisons with a winner.
        ModelUnavailable: the backbone does not load.
        RunCancelled, TrainingDiverged: nothing is saved.
    """
    started = time.monotonic()

    # 1. Data, before anything that takes time.
    backbone = resolve(store, spec.backbone)
    tokenizer = load_tokenizer(backbone)
    encoder = ChatEncoder(tokenizer, spec.max_length)
    train_pairs, heldout, dropped = encode_pairs(read_pairs(store.resolve(spec.snapshot)), encoder)
    if not spec.soft_labels:  # a tie has no hard label
        train_pairs = [pair._replace(p_chosen=1.0) for pair in train_pairs if not pair.tied]
    require_pairs(train_pairs, "A reward model")

    # 2. Model: the policy's trunk with a fresh head; the seed fixes head, adapters and the order of the rows.
    order = seed_everything(spec.seed)
    model, merge_adapters = new_reward_model(backbone, spec.lora)
    pad_id = tokenizer.pad_token_id

    # 3. Train.
    settings = spec.optimiser
    steps = settings.epochs * -(-len(train_pairs) // settings.batch_size)
    stepper = Stepper(trainable_parameters(model), settings, steps)
    widths = [pair.width for pair in train_pairs]
    tokens = 0
    for epoch in range(settings.epochs):
        for indices in length_batches(widths, settings.batch_size, order):
            total_weight = sum(train_pairs[i].row.weight for i in indices)
            loss, rewards = 0.0, []
            for rows in microbatches(indices, widths, settings.microbatch_size, settings.microbatch_tokens):
                reporter.progress(stepper.steps, steps, "training the reward model")
                part = [train_pairs[i] for i in rows]
                chosen, rejected = _pair_rewards(model, part, pad_id)
                row_losses = _losses(spec, part, chosen, rejected)
                weights = torch.tensor([pair.row.weight for pair in part], device=row_losses.device)
                part_loss = (weights * row_losses).sum() / total_weight
                part_loss.backward()
                loss += part_loss.item()
                rewards.append(torch.stack([chosen, rejected]).detach().cpu())
                tokens += sum(pair.chosen.length + pair.rejected.length for pair in part)
            grad_norm, lr = stepper.step(loss)
            reporter.metrics(
                stepper.steps, {"loss": loss, **_reward_stats(torch.cat(rewards, 1)), "grad_norm": grad_norm, "lr": lr}
            )
        # 4. Measure on held-out rows, by slice once at the end.
        results = evaluate(model, heldout, spec, pad_id, reporter, slices=epoch == settings.epochs - 1)
        for name, values in results.items():
            reporter.metrics(stepper.steps, values, name)

    # 5. Normalise, save.
    gain, offset = _normalise(model, train_pairs, settings, pad_id, order, reporter)
    merge_adapters()
    model.classifier.config.reward_gain = gain
    save_reward_model(model, tokenizer, folder)
    overall = results.get("", {})
    return RewardResult(
        eval_accuracy=overall.get("eval_accuracy"),
        eval_ece=overall.get("eval_ece"),
        eval_length_bias=overall.get("eval_length_bias"),
        train_pairs=len(train_pairs),
        heldout_pairs=len(heldout),
        dropped=dropped,
        gain=gain,
        offset=offset,
        tokens=tokens,
        seconds=time.monotonic() - started,
    )


def _pair_rewards(model: RewardModel, pairs: Sequence[Pair], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rewards (B,) of the chosen and of the rejected responses, from one forward pass over both."""
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    rewards = model(collate(sequences, pad_id).to(device()))
    return rewards[: len(pairs)], rewards[len(pairs) :]


def _losses(spec: RewardSpec, pairs: Sequence[Pair], chosen: Tensor, rejected: Tensor) -> Tensor:
    p_chosen = torch.tensor([pair.p_chosen for pair in pairs], device=chosen.device)
    likelihood = bradley_terry.bradley_terry_loss(chosen, rejected, p_chosen)
    return likelihood + spec.centering * bradley_terry.centering_penalty(chosen, rejected)


def _reward_stats(rewards: Tensor, prefix: str = "") -> dict[str, float]:
    """The field's metrics of rewards (2, B), chosen first."""
    d = rewards[0] - rewards[1]
    values = {
        "accuracy": calibration.accuracy(d),
        "margin": d.mean(),
        "min_reward": rewards.min(),
        "mean_reward": rewards.mean(),
        "max_reward": rewards.max(),
    }
    return {prefix + name: float(value) for name, value in values.items()}


@torch.no_grad()
def evaluate(
    model: RewardModel, pairs: Sequence[Pair], spec: RewardSpec, pad_id: int, reporter: Reporter, slices: bool = True
) -> dict[str, dict[str, float]]:
    """Metrics of held-out pairs with a winner, by slice ("" is all of them); empty where there is none.

    Calibration is measured on the scale Bradley-Terry fits, that is before rewards are normalised.
    """
    pairs = [pair for pair in pairs if not pair.tied]
    if not pairs:
        return {}
    rewards, losses = torch.empty(2, len(pairs)), torch.empty(len(pairs))
    widths = [pair.width for pair in pairs]
    settings, done = spec.optimiser, 0
    for indices in microbatches(by_length(widths), widths, settings.microbatch_size, settings.microbatch_tokens):
        reporter.progress(done, len(pairs), "measuring on held-out comparisons")
        part = [pairs[i] for i in indices]
        chosen, rejected = _pair_rewards(model, part, pad_id)
        rewards[:, indices] = torch.stack([chosen, rejected]).cpu()
        losses[indices] = _losses(spec, part, chosen, rejected).cpu()
        done += len(part)

    members: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        for name in ["", *(slice_names(pair.row.slices) if slices else [])]:
            members[name].append(i)
    lengths = torch.tensor([[len(p.chosen.completion) for p in pairs], [len(p.rejected.completion) for p in pairs]])
    results = {}
    for name, rows in members.items():
        d = rewards[0, rows] - rewards[1, rows]
        values = {"eval_loss": float(losses[rows].mean()), **_reward_stats(rewards[:, rows], "eval_")}
        values["eval_ece"] = float(calibration.expected_calibration_error(d))
        bias = calibration.length_bias(d, lengths[0, rows], lengths[1, rows])
        if bias is not None:
            values["eval_length_bias"] = float(bias)
        results[name] = values
    return results


@torch.no_grad()
def _normalise(
    model: RewardModel,
    pairs: Sequence[Pair],
    settings: Optimiser,
    pad_id: int,
    order: torch.Generator,
    reporter: Reporter,
) -> tuple[float, float]:
    """Brings rewards of (at most `REFERENCE_PAIRS` pairs of) the training responses to mean 0, standard deviation 1.

    The gain goes into the head, the mean into the model's offset. Returns both.
    """
    sample = [pairs[i] for i in torch.randperm(len(pairs), generator=order)[:REFERENCE_PAIRS].tolist()]
    sequences: list[TokenSequence] = [sequence for pair in sample for sequence in (pair.chosen, pair.rejected)]
    lengths = [sequence.length for sequence in sequences]
    rewards: list[float] = []
    for indices in microbatches(by_length(lengths), lengths, 2 * settings.microbatch_size, settings.microbatch_tokens):
        reporter.progress(len(rewards), len(sequences), "normalising rewards")
        rewards += model(collate([sequences[i] for i in indices], pad_id).to(device())).tolist()
    values = torch.tensor(rewards, dtype=torch.double)
    mean, deviation = values.mean().item(), values.std().item()
    if not deviation > 1e-6:
        raise TrainingDiverged(
            f"The reward model gives every response the same reward (standard deviation {deviation}).",
            "Nothing was saved. Lower the learning rate, or check that the judgments are not all alike.",
        )
    model.classifier.score.weight.mul_(1 / deviation)
    model.offset = mean / deviation
    return 1 / deviation, model.offset
