"""Direct preference optimisation on a snapshot (Rafailov et al. 2023): the policy is its own reward model."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import DPOSpec
from trainer.algorithms.preference import dpo_loss, implicit_rewards, log_ratio_margin
from trainer.checkpoints import Checkpoints
from trainer.data import ChatEncoder, Pair, encode_pairs, read_pairs, require_pairs, slice_names
from trainer.modeling import (
    Policy,
    completion_outputs,
    device,
    load_policy_and_reference,
    load_tokenizer,
    resolve,
    save_policy,
    seed_everything,
)
from trainer.packing import Packed, pack, packed_length, token_parts
from trainer.reporting import PolicyResult, Reporter
from trainer.training import Training, deal, sum_over_processes

FORWARD_TOKENS = 2048  # forwarded at once without gradients; logits are what takes memory


def train(
    spec: DPOSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> PolicyResult:
    """Trains on the snapshot's `train` rows with a winner, measures on `heldout` ones, saves to `folder`.

    Raises:
        InvalidInput: too few comparisons with a winner.
        ModelUnavailable: policy or reference does not load.
        StorageFull: no room for a checkpoint or the model; checkpoints saved before stay.
        RunCancelled, TrainingDiverged: no model is saved.
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
    seed_everything(spec.seed)
    causal, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora)
    policy = Policy(causal)

    # 3. The reference never changes: its log-probs are computed once.
    def measure(model: Any, pairs: Sequence[Pair], message: str) -> Tensor:
        return pair_logps(model, pairs, policy.share, pad_id, lambda n: reporter.progress(n, len(pairs), message))

    with reference() as reference_model:
        train_reference = measure(reference_model, train_pairs, "log-probs of the reference")
        heldout_reference = measure(reference_model, heldout, "log-probs of the reference")

    # 4. Where we start from. A policy that starts as its reference has just been measured.
    training = Training(policy, spec.optimiser, len(train_pairs), seed=spec.seed, checkpoints=checkpoints)
    if training.resumed is None:
        same = policy_ref == reference_ref
        start = heldout_reference if same else measure(causal, heldout, "held-out comparisons")
        report_heldout(spec, 0, heldout, start, heldout_reference, reporter)

    # 5. Train.
    lengths = [packed_length(pair.sequences, policy.share) for pair in train_pairs]
    weights = torch.tensor([pair.row.weight for pair in train_pairs])
    for batch in training.batches(lengths):
        total_weight = float(weights[batch].sum())
        logps, losses = torch.zeros(2, len(batch)), torch.zeros(1)
        for part in training.parts(batch, lengths):
            reporter.progress(training.steps, training.total_steps, "training the policy")
            packed = pack_pairs([train_pairs[i] for i in part.rows], policy.share, pad_id)
            part_logps = split_pairs(packed.per_sequence(training.model(packed).logps))
            h = log_ratio_margin(*part_logps, *train_reference[:, part.rows].to(part_logps.device))
            row_losses = dpo_loss(h, spec.beta, spec.label_smoothing)
            loss = (weights[part.rows].to(h.device) * row_losses).sum() / total_weight
            training.backward(loss, part)
            if part.counts:
                logps[:, part.places] = part_logps.detach().cpu()
                losses += loss.detach().cpu()
                training.tokens += packed.tokens
        logps, losses = sum_over_processes(logps), sum_over_processes(losses)
        grad_norm, lr = training.step(float(losses))
        values = statistics(spec, logps, train_reference[:, batch])
        reporter.metrics(training.steps, values | {"loss": float(losses), "grad_norm": grad_norm, "lr": lr})
        training.save_if_due({"values": values})

    # 6. Where we ended; save.
    after = measure(causal, heldout, "held-out comparisons")
    values = report_heldout(spec, training.steps, heldout, after, heldout_reference, reporter)
    save_policy(causal, tokenizer, folder)
    return PolicyResult(values, len(train_pairs), encoded.dropped, training.tokens, time.monotonic() - started)


def pack_pairs(pairs: Sequence[Pair], share: bool, pad_id: int) -> Packed:
    """Chosen and rejected of each pair, one after the other, on the device."""
    return pack([sequence for pair in pairs for sequence in pair.sequences], pad_id, share).to(device())


def split_pairs(values: Tensor) -> Tensor:
    """(2, B), chosen first, of the values (2 B,) of packed pairs."""
    return values.view(-1, 2).T


@torch.no_grad()
def pair_logps(
    model: Any, pairs: Sequence[Pair], share: bool, pad_id: int, tick: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Log-probs (2, N) of the chosen and rejected completions of any number of pairs, on the CPU, batched by length."""
    logps = torch.zeros(2, len(pairs))
    lengths = [packed_length(pair.sequences, share) for pair in pairs]
    done = 0
    for part, counts in deal(token_parts(range(len(pairs)), lengths, len(pairs), FORWARD_TOKENS)):
        tick(done)
        packed = pack_pairs([pairs[i] for i in part], share, pad_id)
        part_logps = split_pairs(packed.per_sequence(completion_outputs(model, packed).logps))
        if counts:
            logps[:, part] = part_logps.cpu()
            done += len(part)
    return sum_over_processes(logps)


def report_heldout(
    spec: DPOSpec, step: int, pairs: Sequence[Pair], policy_logps: Tensor, reference_logps: Tensor, reporter: Reporter
) -> dict[str, float]:
    """Reports the metrics of held-out pairs, by slice too; returns those of all pairs, none where there is no pair."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        for name in ["", *slice_names(pair.row.slices)]:
            members[name].append(i)
    measured = {
        name: statistics(spec, policy_logps[:, indices], reference_logps[:, indices], "eval_")
        for name, indices in members.items()
    }
    for name, values in measured.items():
        reporter.metrics(step, values, name)
    return measured.get("", {})


def statistics(spec: DPOSpec, policy_logps: Tensor, reference_logps: Tensor, prefix: str = "") -> dict[str, float]:
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
