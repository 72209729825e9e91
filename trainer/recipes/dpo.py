"""Direct preference optimisation on a snapshot (Rafailov et al. 2023): the policy is its own reward model."""

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import DPOSpec, Optimiser
from trainer.algorithms.logprobs import sequence_logps, token_logps
from trainer.algorithms.preference import dpo_loss, implicit_rewards, log_ratio_margin
from trainer.data import (
    ChatEncoder,
    Pair,
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
    completion_logits,
    device,
    load_policy_and_reference,
    load_tokenizer,
    resolve,
    save_policy,
    seed_everything,
    trainable_parameters,
)
from trainer.optimisation import Stepper
from trainer.reporting import PolicyResult, Reporter


def train(spec: DPOSpec, store: ArtifactStore, reporter: Reporter, folder: Path) -> PolicyResult:
    """Trains on the snapshot's `train` rows with a winner, measures on `heldout` ones, saves to `folder`.

    Raises:
        InvalidInput: too few comparisons with a winner.
        ModelUnavailable: policy or reference does not load.
        RunCancelled, TrainingDiverged: nothing is saved.
    """
    started = time.monotonic()

    # 1. Data, before anything that takes time. A tie says nothing about which response to make likelier.
    policy_ref, reference_ref = resolve(store, spec.policy), resolve(store, spec.reference)
    tokenizer = load_tokenizer(policy_ref)
    pad_id = tokenizer.pad_token_id
    rows = read_pairs(store.resolve(spec.snapshot))
    encoded = encode_pairs(rows, ChatEncoder(tokenizer, spec.max_length), close_cut=False)
    require_pairs(encoded.train, "DPO")
    train_pairs = [pair for pair in encoded.train if not pair.tied]
    heldout = [pair for pair in encoded.heldout if not pair.tied]

    # 2. Models; the seed fixes the adapters and the order of the rows.
    order = seed_everything(spec.seed)
    model, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora)

    # 3. The reference never changes: its log-probs are computed once.
    settings = spec.optimiser
    with reference() as reference_model:
        message = "log-probs of the reference"
        train_reference = all_pair_logps(reference_model, train_pairs, settings, pad_id, reporter, message)
        heldout_reference = all_pair_logps(reference_model, heldout, settings, pad_id, reporter, message)

    def evaluate(step: int, heldout_policy: Tensor) -> dict[str, float]:
        """Reports the held-out metrics, by slice too; returns those of all rows."""
        members: dict[str, list[int]] = defaultdict(list)
        for i, pair in enumerate(heldout):
            for name in ["", *slice_names(pair.row.slices)]:
                members[name].append(i)
        for name, indices in members.items():
            values = _statistics(spec, heldout_policy[:, indices], heldout_reference[:, indices], "eval_")
            reporter.metrics(step, values, name)
        return _statistics(spec, heldout_policy, heldout_reference, "eval_") if heldout else {}

    # 4. Where we start from. A policy that starts as its reference has just been measured.
    if policy_ref == reference_ref:
        start = heldout_reference
    else:
        start = all_pair_logps(model, heldout, settings, pad_id, reporter, "held-out comparisons")
    evaluate(0, start)

    # 5. Train.
    steps = settings.epochs * -(-len(train_pairs) // settings.batch_size)
    stepper = Stepper(trainable_parameters(model), settings, steps)
    widths = [pair.width for pair in train_pairs]
    tokens = 0
    values: dict[str, float] = {}
    for _epoch in range(settings.epochs):
        for indices in length_batches(widths, settings.batch_size, order):
            total_weight = sum(train_pairs[i].row.weight for i in indices)
            loss, parts = 0.0, []
            for part in microbatches(indices, widths, settings.microbatch_size, settings.microbatch_tokens):
                reporter.progress(stepper.steps, steps, "training the policy")
                pairs = [train_pairs[i] for i in part]
                policy_logps = pair_logps(model, pairs, pad_id)
                h = log_ratio_margin(*policy_logps, *train_reference[:, part].to(policy_logps.device))
                weights = torch.tensor([pair.row.weight for pair in pairs], device=h.device)
                part_loss = (weights * dpo_loss(h, spec.beta, spec.label_smoothing)).sum() / total_weight
                part_loss.backward()
                loss += part_loss.item()
                parts.append(policy_logps.detach().cpu())
                tokens += sum(pair.chosen.length + pair.rejected.length for pair in pairs)
            grad_norm, lr = stepper.step(loss)
            values = _statistics(spec, torch.cat(parts, 1), train_reference[:, indices])
            values |= {"loss": loss, "grad_norm": grad_norm, "lr": lr}
            reporter.metrics(stepper.steps, values)

    # 6. Where we ended; save.
    values |= evaluate(
        stepper.steps, all_pair_logps(model, heldout, settings, pad_id, reporter, "held-out comparisons")
    )
    save_policy(model, tokenizer, folder)
    return PolicyResult(values, len(train_pairs), encoded.dropped, tokens, time.monotonic() - started)


def pair_logps(model: Any, pairs: Sequence[Pair], pad_id: int) -> Tensor:
    """Log-probs (2, B) of the chosen and the rejected completions, from one forward pass over both."""
    batch = collate([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id).to(device())
    logits, tokens = completion_logits(model, batch)
    return sequence_logps(token_logps(logits, tokens), batch.completion_mask).view(2, len(pairs))


@torch.no_grad()
def all_pair_logps(
    model: Any, pairs: Sequence[Pair], settings: Optimiser, pad_id: int, reporter: Reporter, message: str
) -> Tensor:
    """`pair_logps` (2, N) of any number of pairs, on the CPU, without gradients, batched by length."""
    logps = torch.empty(2, len(pairs))
    widths = [pair.width for pair in pairs]
    done = 0
    for indices in microbatches(by_length(widths), widths, settings.microbatch_size, settings.microbatch_tokens):
        reporter.progress(done, len(pairs), message)
        logps[:, indices] = pair_logps(model, [pairs[i] for i in indices], pad_id).cpu()
        done += len(indices)
    return logps


def _statistics(spec: DPOSpec, policy_logps: Tensor, reference_logps: Tensor, prefix: str = "") -> dict[str, float]:
    """The field's metrics of log-probs (2, B) each, chosen first; means over rows."""
    rewards = implicit_rewards(policy_logps, reference_logps, spec.beta)
    losses = dpo_loss(log_ratio_margin(*policy_logps, *reference_logps), spec.beta, spec.label_smoothing)
    values = {
        "loss": losses.mean(),
        "rewards/chosen": rewards[0].mean(),
        "rewards/rejected": rewards[1].mean(),
        "rewards/accuracies": (rewards[0] > rewards[1]).float().mean(),
        "rewards/margins": (rewards[0] - rewards[1]).mean(),
        "logps/chosen": policy_logps[0].mean(),
        "logps/rejected": policy_logps[1].mean(),
    }
    return {prefix + name: float(value) for name, value in values.items()}
