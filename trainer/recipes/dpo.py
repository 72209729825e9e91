"""Preference optimisation without sampling: DPO (Rafailov et al. 2023) and its variants.

The policy itself serves as the reward model. `trainer.algorithms.preference` has the losses.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.rows import PairRow, ThumbRow
from app.specs import DPOSpec
from trainer.algorithms.preference import (
    REFERENCE_FREE,
    PairLogps,
    kto_reference_point,
    preference_loss,
    preference_rewards,
)
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import (
    MIN_PAIRS,
    Pair,
    describe_left_out,
    encode_pairs,
    encode_thumbs,
    read_pairs,
    read_thumbs,
    require_pairs,
    slice_names,
    weights_of,
)
from trainer.batching.packing import pack, packed_length
from trainer.checkpoints import Checkpoints
from trainer.models.forwarding import Group, Report, ignore
from trainer.models.loading import (
    load_causal_lm,
    load_policy_and_reference,
    load_tokenizer,
    notes_on,
    read_by_all,
    resolve,
    seed_everything,
    working_dtype,
)
from trainer.models.policy import Policy, can_share, trunk_of
from trainer.models.reference_logps import completion_logps, reference_logps
from trainer.models.saving import save_policy
from trainer.models.sizes import sizes_for
from trainer.processes import device, require_finite, sum_over_processes
from trainer.reporting import PolicyResult, Reporter
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of
from trainer.training.training import Training

CHOSEN, REJECTED = 0, 1  # rows of every (2, N) tensor below; a liked response counts as chosen

LogpsOf = Callable[..., Tensor]  # the policy's `completion_logps` for groups; the argument `report` is optional


def train(
    spec: DPOSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> PolicyResult:
    """Train on `train` comparisons with a winner and on thumbs, measure on `heldout` rows, save to `folder`.

    An answer that was cut by length has no end-of-turn token here. So if it was rejected, the policy does not learn
    that ending the turn is bad. If it won against a finished answer, the comparison is left out: the policy would learn
    to write answers that are cut.

    Raises:
        InvalidInput: too few rows to learn from.
        ModelUnavailable: the policy or the reference does not load.
        StorageFull: the disk has no room for a checkpoint or the model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started, memory = time.monotonic(), PeakMemory()

    # 1. Read the data first, so that bad input fails before the slow steps.
    policy_ref = resolve(store, spec.policy)
    reference_ref = None if spec.loss in REFERENCE_FREE else resolve(store, spec.reference)
    tokenizer = load_tokenizer(policy_ref)
    longest = read_by_all(spec.max_length, *([reference_ref.base] if reference_ref else []))
    train_rows, heldout, dropped = read_rows(spec, store, ChatEncoder(tokenizer, longest))

    # 2. Load the models. The seed determines the adapters and the order of the rows.
    seed_everything(spec.seed)
    dtype = working_dtype(spec.optimiser.precision, policy_ref, checkpoints)
    if reference_ref is None:
        causal, reference = load_causal_lm(policy_ref, spec.lora, trainable=True, dtype=dtype), None
    else:
        causal, reference = load_policy_and_reference(policy_ref, reference_ref, spec.lora, dtype)
    policy = Policy(causal)
    sizes = sizes_for(policy_ref, dtype, full_weights=spec.lora is None)
    layout = {"share": policy.share, "pad_id": tokenizer.pad_token_id, "tokens": sizes.forward_tokens}

    # 3. Compute the reference's log-probs once, because the reference never changes. Then free it.
    if reference is not None and reference_ref is not None:
        with reference() as model:
            # The reference can have another architecture, which may not support rows with shared prompts.
            its_layout = layout | {"share": policy.share and can_share(trunk_of(model))}
            for rows in (train_rows, heldout):
                report = partial(reporter.progress, total=len(rows.groups), message="log-probs of the reference")
                rows.keep(reference_logps(store, reference_ref, model, rows.groups, report=report, **its_layout))
        del reference, model

    # 4. Measure the policy before training. If it equals the reference, step 3 has already computed its log-probs.
    training = Training(
        policy,
        sizes.fill(spec.optimiser),
        len(train_rows.examples),
        seed=spec.seed,
        started=started,
        checkpoints=checkpoints,
    )

    def logps_of(groups: Sequence[Group], report: Report = ignore) -> Tensor:
        return require_finite(completion_logps(training.model, groups, report=report, **layout), "log-probs")

    values: dict[str, float] = {}
    if training.resumed is not None:
        values = training.resumed.state["values"]
    elif policy_ref == reference_ref and heldout.reference is not None:
        report_heldout(spec, 0, heldout, heldout.reference, torch.zeros(()), reporter)
    else:
        measure_heldout(spec, 0, heldout, logps_of, reporter)

    # 5. Train.
    def tick_training(_done: int = 0) -> None:
        reporter.progress(training.steps, training.total_steps, "training the policy")

    lengths = [packed_length(example.sequences, policy.share) for example in train_rows.examples]
    for batch in training.batches(lengths):
        z = train_rows.reference_point(logps_of, batch, tick_training)
        total = float(train_rows.shares[batch].sum())
        logps, losses = torch.zeros(2, len(batch)), torch.zeros(1)
        for part in training.parts(batch, lengths):
            tick_training()
            examples = [train_rows.examples[i] for i in part.rows]
            packed = pack([s for example in examples for s in example.sequences], tokenizer.pad_token_id, policy.share)
            packed = packed.to(device())
            part_logps = by_kind(packed.per_sequence(training.model(packed).logps), examples)
            row_losses = losses_of(spec, train_rows.pairs(part_logps, part.rows), z.to(part_logps.device))
            loss = (train_rows.weights[part.rows].to(row_losses.device) * row_losses).sum() / total
            training.backward(loss, part)
            if part.counts:
                logps[:, part.places] = part_logps.detach().cpu()
                losses += loss.detach().cpu()
        tokens = sum(lengths[i] for i in batch)
        training.tokens += tokens
        reporter.worked(tokens)
        logps, losses = sum_over_processes(logps), sum_over_processes(losses)
        grad_norm, lr = training.step(float(losses))
        values = statistics(spec, train_rows.pairs(logps, batch), z) | {"loss": float(losses)}
        reporter.metrics(training.steps, values | {"grad_norm": grad_norm, "lr": lr})
        if training.epoch_ends and training.steps < training.total_steps:
            measure_heldout(spec, training.steps, heldout, logps_of, reporter)
        training.save_if_due({"values": values})

    # 6. Measure the trained policy and save it.
    values |= measure_heldout(spec, training.steps, heldout, logps_of, reporter)
    if not heldout.examples:
        logps_of([train_rows.examples[0].sequences])  # raises if the policy's log-probs are NaN, so it is not saved
    save_policy(training.whole_module().causal, tokenizer, folder, spec.policy.base)
    return PolicyResult(
        values,
        len(train_rows.examples),
        dropped,
        training.tokens,
        training.seconds,
        precision=name_of(dtype),
        sizes={"microbatch_tokens": training.microbatch_tokens, "forward_tokens": sizes.forward_tokens},
        peak_memory=memory.peak(),
        notes=(*notes_on(tokenizer), *memory.notes),
    )


# ---- rows ------------------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """One element of a batch: a pair, or a single response without a rival."""

    sequences: tuple[TokenSequence, ...]
    kinds: tuple[int, ...]  # CHOSEN or REJECTED for each sequence
    weight: float
    row: PairRow | ThumbRow
    doubt: float = 0.0  # probability that the rejected response is the better one; 0 without soft labels


class Rows:
    """N examples with everything about them that does not change during training.

    Attributes:
        weights: (N,) weight of each example in the loss.
        shares: (N,) each example's part of the loss's denominator: a single response is half a pair.
        doubts: (N,) probability that the rejected response is the better one.
        lengths: (2, N) tokens of the completions; 0 if an example has no such response.
        strangers: for KTO, each example's prompt with the completions of another prompt; otherwise empty.
        reference: (2, N) log-probs under the reference; None if the loss has no reference.
        strangers_reference: the reference's log-probs of each example's strangers.
    """

    def __init__(self, examples: list[Example], strangers: list[Group]) -> None:
        self.examples, self.strangers = examples, strangers
        self.weights = torch.tensor([example.weight for example in examples])
        self.shares = torch.tensor([example.weight * len(example.sequences) / 2 for example in examples])
        self.doubts = torch.tensor([example.doubt for example in examples])
        tokens = [float(len(sequence.completion)) for example in examples for sequence in example.sequences]
        self.lengths = by_kind(torch.tensor(tokens), examples)
        self.reference: Tensor | None = None
        self.strangers_reference: list[Tensor] = []

    @property
    def groups(self) -> list[Group]:
        """All groups whose log-probs the reference computes: the examples, then the strangers."""
        return [example.sequences for example in self.examples] + self.strangers

    def keep(self, reference_logps: Tensor) -> None:
        """Store the reference's log-probs (S,) of all completions in `groups`."""
        split = [*reference_logps.split([len(group) for group in self.groups])]
        self.reference = by_kind(torch.cat([torch.zeros(0), *split[: len(self.examples)]]), self.examples)
        self.strangers_reference = split[len(self.examples) :]

    def pairs(self, policy_logps: Tensor, rows: Sequence[int]) -> PairLogps:
        """Return the input of the losses for B rows, given their log-probs (2, B) under the policy."""
        where = policy_logps.device
        reference = self.reference[:, rows].to(where) if self.reference is not None else None
        return PairLogps(policy_logps, reference, self.lengths[:, rows].to(where), self.doubts[rows].to(where))

    def reference_point(self, logps_of: LogpsOf, rows: Sequence[int], report: Report) -> Tensor:
        """Return KTO's z (), computed with the current policy over the whole batch; 0 if there are no strangers."""
        if not self.strangers:
            return torch.zeros(())
        strangers_reference = torch.cat([self.strangers_reference[i] for i in rows])
        return kto_reference_point(logps_of([self.strangers[i] for i in rows], report=report) - strangers_reference)


def read_rows(spec: DPOSpec, store: ArtifactStore, encoder: ChatEncoder) -> tuple[Rows, Rows, tuple[str, ...]]:
    """Return training rows, held-out rows, and why rows were left out. Raises InvalidInput if there are too few."""
    encoded = encode_pairs(read_pairs(store.resolve(spec.snapshot)), encoder, close_cut=False)
    train, ties = examples_of(encoded.train, avoid_both_bad=spec.loss == "kto", soft_labels=spec.soft_labels)
    heldout, heldout_ties = examples_of(encoded.heldout, soft_labels=spec.soft_labels)
    reasons = {"are ties, which do not say what to make likelier": ties + heldout_ties} if ties or heldout_ties else {}
    dropped = encoded.dropped + describe_left_out(reasons, "comparisons")
    if spec.loss != "kto":
        what = "DPO" if spec.loss == "dpo" else f"Preference optimisation ({spec.loss})"
        require_pairs(encoded.train, what, encoded.dropped)
        return Rows(train, []), Rows(heldout, []), dropped

    if spec.thumbs:
        thumbs, thumbs_dropped = encode_thumbs(read_thumbs(store.resolve(spec.thumbs)), encoder)
        train += [Example((t.sequence,), (CHOSEN if t.row.liked else REJECTED,), t.row.weight, t.row) for t in thumbs]
        dropped += thumbs_dropped
    liked, disliked = (sum(kind in example.kinds for example in train) for kind in (CHOSEN, REJECTED))
    if min(liked, disliked) < MIN_PAIRS:
        raise InvalidInput(
            f"KTO needs at least {MIN_PAIRS} liked and {MIN_PAIRS} disliked responses; "
            f"there are {liked} and {disliked}." + "".join(f" {sentence}." for sentence in dropped),
            "Collect more judgments, or a thumbs file with both kinds.",
        )
    strangers = strangers_of(train, encoder)
    if not strangers:
        raise InvalidInput(
            "KTO compares responses to different prompts, but all responses here answer the same prompt.",
            "Collect judgments on more prompts, or choose another loss.",
        )
    return Rows(train, strangers), Rows(heldout, strangers_of(heldout, encoder)), dropped


def examples_of(
    pairs: Sequence[Pair], *, avoid_both_bad: bool = False, soft_labels: bool = False
) -> tuple[list[Example], list[int]]:
    """Return the examples made from pairs, and the ids of ties. Ties are not used, because they have no winner.

    Args:
        avoid_both_bad: if most labelers found both responses bad, reject both. Only KTO can do this, because its
            examples need no rival.
        soft_labels: use the labelers' joint confidence as the label; otherwise the winner counts as certain.
    """
    examples: list[Example] = []
    ties: list[int] = []
    for pair, weight in zip(pairs, weights_of(pairs), strict=True):
        if avoid_both_bad and pair.row.both_bad > 0.5:
            examples += [Example((sequence,), (REJECTED,), weight, pair.row) for sequence in pair.sequences]
        elif pair.tied:
            ties.append(pair.row.comparison_id)
        else:
            doubt = 1 - pair.p_chosen if soft_labels else 0.0
            examples.append(Example(pair.sequences, (CHOSEN, REJECTED), weight, pair.row, doubt))
    return examples, ties


def strangers_of(examples: Sequence[Example], encoder: ChatEncoder) -> list[Group]:
    """Combine each example's prompt with the completions of the next example that has another prompt.

    The list is empty if all examples have the same prompt. The combinations are fixed before training, so that the
    reference's log-probs of them are computed only once. Other KTO implementations do the same.
    """
    prompts = [example.row.messages for example in examples]  # uncut: one prompt may be cut differently in two examples
    if all(prompt == prompts[0] for prompt in prompts):
        return []
    strangers: list[Group] = []
    other = next(i for i, prompt in enumerate(prompts) if prompt != prompts[-1])  # the last example starts over
    for i in reversed(range(len(prompts))):
        if i + 1 < len(prompts) and prompts[i + 1] != prompts[i]:
            other = i + 1
        completions = [sequence.completion for sequence in examples[other].sequences]
        fitted = encoder.fit(prompts[i], completions)
        assert fitted is not None  # the completions fitted beside their own prompt, and the room is the same for all
        strangers.append(tuple(fitted.sequences))
    return strangers[::-1]


def by_kind(values: Tensor, examples: Sequence[Example]) -> Tensor:
    """Arrange the values (S,) of all sequences as (2, N), chosen first; 0 if an example has no such response."""
    kinds = torch.tensor([kind for example in examples for kind in example.kinds], dtype=torch.long)
    columns = torch.tensor([n for n, example in enumerate(examples) for _ in example.kinds], dtype=torch.long)
    table = torch.zeros(2, len(examples), dtype=values.dtype, device=values.device)
    return table.index_put((kinds.to(values.device), columns.to(values.device)), values)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def losses_of(spec: DPOSpec, pairs: PairLogps, z: Tensor) -> Tensor:
    """Return the spec's loss (B,)."""
    return preference_loss(
        spec.loss,
        pairs,
        beta=spec.beta,
        label_smoothing=spec.label_smoothing,
        length_average=spec.length_average,
        gamma=spec.gamma,
        desirable_weight=spec.desirable_weight,
        undesirable_weight=spec.undesirable_weight,
        kto_z=z,
        nll_weight=spec.nll_weight,
    )


def measure_heldout(spec: DPOSpec, step: int, heldout: Rows, logps_of: LogpsOf, reporter: Reporter) -> dict[str, float]:
    """Compute the policy's log-probs of held-out rows and report their metrics; return the metrics over all rows."""
    everything = range(len(heldout.examples))
    report = partial(reporter.progress, total=len(heldout.examples), message="held-out comparisons")
    logps = logps_of([example.sequences for example in heldout.examples], report=report)
    z = heldout.reference_point(logps_of, everything, report)
    return report_heldout(spec, step, heldout, by_kind(logps, heldout.examples), z, reporter)


def report_heldout(
    spec: DPOSpec, step: int, heldout: Rows, logps: Tensor, z: Tensor, reporter: Reporter
) -> dict[str, float]:
    """Report metrics of the log-probs (2, N), overall and by slice; return the overall ones, empty without rows."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, example in enumerate(heldout.examples):
        for name in ["", *slice_names(example.row.slices)]:
            members[name].append(i)
    measured = {
        name: statistics(spec, heldout.pairs(logps[:, rows], rows), z, "eval_") for name, rows in members.items()
    }
    for name, values in measured.items():
        reporter.metrics(step, values, name)
    return measured.get("", {})


def statistics(spec: DPOSpec, pairs: PairLogps, z: Tensor, prefix: str = "") -> dict[str, float]:
    """Return a batch's metrics: means over existing responses. Margins and accuracies need both responses of a pair."""
    rewards = preference_rewards(spec.loss, pairs, spec.beta)
    there = pairs.lengths > 0
    values = {"loss": losses_of(spec, pairs, z).sum() * 2 / there.sum()}
    for kind, name in ((CHOSEN, "chosen"), (REJECTED, "rejected")):
        if there[kind].any():
            values[f"rewards/{name}"] = rewards[kind, there[kind]].mean()
            values[f"logps/{name}"] = pairs.policy[kind, there[kind]].mean()
    if (both := there.all(0)).any():
        margins = rewards[CHOSEN, both] - rewards[REJECTED, both]
        # A margin of 0 counts as half right, like a coin flip. This happens while the policy equals its reference.
        right = (margins > 0).float() + (margins == 0).float() / 2
        values |= {"rewards/accuracies": right.mean(), "rewards/margins": margins.mean()}
    if spec.loss == "kto":
        values["kl"] = z  # TRL's name
    if (spec.nll_weight or spec.loss == "orpo") and there[CHOSEN].any():
        values["nll_loss"] = -pairs.averages[CHOSEN, there[CHOSEN]].mean()
    return {prefix + name: float(value) for name, value in values.items()}
