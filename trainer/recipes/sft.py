"""Supervised fine-tuning on demonstrations: makes the first policy, which is also the reference of later rounds.

The loss is the negative log-likelihood (NLL) of the answers' tokens, including the end of the turn, as a mean over the
tokens of a batch: sum_i w_i nll_i / sum_i w_i n_i. Row i has weight w_i, summed NLL nll_i and n_i tokens. So every
token has the same weight, not every answer, as in other trainers (TRL with completion-only loss).
"""

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.specs import SFTSpec
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import Demonstration, encode_demonstrations, read_demonstrations, slice_names
from trainer.batching.packing import Packed, pack
from trainer.checkpoints import Checkpoints
from trainer.models.forwarding import Report, forward_groups, ignore
from trainer.models.loading import load_causal_lm, load_tokenizer, notes_on, resolve, seed_everything, working_dtype
from trainer.models.policy import Policy
from trainer.models.saving import save_policy
from trainer.models.sizes import sizes_for
from trainer.processes import device, require_finite, sum_over_processes
from trainer.reporting import PolicyResult, Reporter
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of
from trainer.training.training import Training

MIN_DEMONSTRATIONS = 20


def train(
    spec: SFTSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> PolicyResult:
    """Train on the `train` rows, measure on the `heldout` rows, and save the policy to `folder`.

    Raises:
        InvalidInput: too few demonstrations.
        ModelUnavailable: the policy does not load.
        StorageFull: the disk has no room for a checkpoint or the model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started, memory = time.monotonic(), PeakMemory()

    # 1. Read the data first, so that bad input fails before the slow steps.
    policy_ref = resolve(store, spec.policy)
    tokenizer = load_tokenizer(policy_ref)
    pad_id = tokenizer.pad_token_id
    rows = read_demonstrations(store.resolve(spec.demonstrations))
    train_rows, heldout, dropped = encode_demonstrations(rows, ChatEncoder(tokenizer, spec.max_length))
    if len(train_rows) < MIN_DEMONSTRATIONS:
        raise InvalidInput(
            f"Fine-tuning needs at least {MIN_DEMONSTRATIONS} training demonstrations; there are {len(train_rows)}."
            + "".join(f" {sentence}." for sentence in dropped),
            "Approve or import more demonstrations.",
        )

    # 2. Load the model. The seed determines the adapters and the order of the rows.
    seed_everything(spec.seed)
    dtype = working_dtype(spec.optimiser.precision, policy_ref, checkpoints)
    causal = load_causal_lm(policy_ref, spec.lora, trainable=True, dtype=dtype)
    policy = Policy(causal)
    share = spec.packing and policy.share
    sizes = sizes_for(policy_ref, dtype, full_weights=spec.lora is None)

    # 3. Measure the policy before training.
    training = Training(
        policy,
        sizes.fill(spec.optimiser),
        len(train_rows),
        seed=spec.seed,
        started=started,
        checkpoints=checkpoints,
    )

    def measure(rows: Sequence[Demonstration]) -> Tensor:
        sums = token_sums(
            training.model,
            rows,
            share,
            pad_id,
            sizes.forward_tokens,
            lambda done: reporter.progress(done, len(rows), "held-out"),
        )
        return require_finite(sums, "log-probs")

    values: dict[str, float] = {}
    if training.resumed is not None:
        values = training.resumed.state["values"]
    else:
        report_heldout(0, heldout, measure(heldout), reporter)

    # 4. Train.
    lengths = [row.sequence.length for row in train_rows]
    for batch in training.batches(lengths):
        counted = torch.tensor([train_rows[i].row.weight * len(train_rows[i].sequence.completion) for i in batch])
        sums = torch.zeros(len(Sums._fields), len(batch))
        for part in training.parts(batch, lengths):
            reporter.progress(training.steps, training.total_steps, "training the policy")
            part_rows = [train_rows[i] for i in part.rows]
            part_sums = forward(training.model, part_rows, share, pad_id)
            weights = torch.tensor([row.row.weight for row in part_rows], device=part_sums.nll.device)
            training.backward((weights * part_sums.nll).sum() / float(counted.sum()), part)
            if part.counts:
                sums[:, part.places] = torch.stack(part_sums).detach().cpu()
        tokens = sum(lengths[i] for i in batch)
        training.tokens += tokens
        reporter.worked(tokens)
        sums = sum_over_processes(sums)
        values = statistics([train_rows[i] for i in batch], sums)
        grad_norm, lr = training.step(values["loss"])
        values |= {"grad_norm": grad_norm, "lr": lr, "num_tokens": training.tokens}
        reporter.metrics(training.steps, values)
        training.save_if_due({"values": values})

    # 5. Measure the trained policy and save it.
    values |= report_heldout(training.steps, heldout, measure(heldout), reporter)
    if not heldout:
        measure(train_rows[:1])  # raises if the policy's log-probs are NaN, so it is not saved
    save_policy(training.whole_module().causal, tokenizer, folder, spec.policy.base)
    return PolicyResult(
        values,
        len(train_rows),
        dropped,
        training.tokens,
        training.seconds,
        precision=name_of(dtype),
        sizes={"microbatch_tokens": training.microbatch_tokens, "forward_tokens": sizes.forward_tokens},
        peak_memory=memory.peak(),
        notes=(*notes_on(tokenizer), *memory.notes),
    )


class Sums(NamedTuple):
    """Per-answer sums (B,) over tokens: NLL in nats, and the number of tokens that the model ranked first."""

    nll: Tensor
    correct: Tensor


def forward(model: torch.nn.Module, rows: Sequence[Demonstration], share: bool, pad_id: int) -> Sums:
    """Run a `Policy` once over demonstrations; with `share`, several demonstrations are packed into one row."""
    return sums_of(model, pack([row.sequence for row in rows], pad_id, share).to(device()))


def sums_of(model: torch.nn.Module, packed: Packed) -> Sums:
    """Run a `Policy` once over demonstrations that are packed already."""
    outputs = model(packed, accuracy=True)
    return Sums(packed.per_sequence(-outputs.logps), packed.per_sequence(outputs.correct.float()))


def token_sums(
    model: torch.nn.Module,
    rows: Sequence[Demonstration],
    share: bool,
    pad_id: int,
    tokens: int,
    report: Report = ignore,
) -> Tensor:
    """Return the `Sums` (2, N) of N demonstrations, computed without gradients, on the CPU."""

    def sums(packed: Packed) -> Tensor:
        return torch.stack(sums_of(model, packed), -1)

    groups = [(row.sequence,) for row in rows]
    return forward_groups(sums, groups, len(Sums._fields), share, pad_id, tokens, report).T


def statistics(rows: Sequence[Demonstration], sums: Tensor, prefix: str = "") -> dict[str, float]:
    """Return loss and accuracy of rows from their `Sums` (2, B): means over tokens, weighted like the loss."""
    weights = torch.tensor([row.row.weight for row in rows])
    tokens = float((weights * torch.tensor([len(row.sequence.completion) for row in rows])).sum())
    loss, accuracy = ((sums * weights).sum(-1) / tokens).tolist()
    return {f"{prefix}loss": loss, f"{prefix}mean_token_accuracy": accuracy}


def report_heldout(step: int, rows: Sequence[Demonstration], sums: Tensor, reporter: Reporter) -> dict[str, float]:
    """Report metrics of held-out rows, overall and by slice; return the overall ones, empty without rows."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        for name in ["", *slice_names(row.row.slices)]:
            members[name].append(i)
    measured = {}
    for name, indices in members.items():
        values = statistics([rows[i] for i in indices], sums[:, indices], "eval_")
        # exp overflows above 700 nats per token. A model with such a loss is broken anyway.
        measured[name] = values | {"eval_perplexity": math.exp(min(values["eval_loss"], 700.0))}
        reporter.metrics(step, measured[name], name)
    return measured.get("", {})
