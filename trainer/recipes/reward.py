"""Trains a reward model on a snapshot: Bradley-Terry on pairs and rankings (Ouyang et al. 2022, section 3.5)."""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.artifacts import ArtifactStore, read_content
from app.errors import InvalidInput
from app.specs import REWARD_VIEWS, RewardSpec
from trainer import reward_card
from trainer.algorithms.bradley_terry import davidson_probabilities, rao_kupper_probabilities
from trainer.chat import ChatEncoder
from trainer.checkpoints import Checkpoints
from trainer.data import (
    MIN_PAIRS,
    EncodedPairs,
    Pair,
    chunks,
    describe_left_out,
    encode_pairs,
    read_pairs,
    require_pairs,
)
from trainer.memory import PeakMemory
from trainer.modeling import device, load_tokenizer, notes_on, resolve, seed_everything, working_dtype
from trainer.packing import Packed, pack, packed_length, token_parts
from trainer.policy import trunk_of
from trainer.precision import name_of
from trainer.reporting import Reporter, RewardResult, TrainingDiverged
from trainer.reward_model import (
    POOLING,
    REWARD,
    RewardModel,
    head_names,
    merge_adapters,
    new_reward_model,
    save_reward_model,
)
from trainer.reward_objective import (
    Element,
    RewardObjective,
    aspect_outcomes,
    by_pair,
    elements_of,
    outcomes,
    pack_elements,
    pair_losses,
    targets_of,
    weighted_loss,
)
from trainer.reward_report import (
    Measured,
    TextScorer,
    Variants,
    decided_logit,
    head_figures,
    overfitting,
    pair_figures,
    probe_figures,
    probed_pairs,
    report_metrics,
    slice_metrics,
    split_figures,
    statistics,
    views_of,
)
from trainer.sizes import forward_tokens, sizes_for
from trainer.training import Training, deal, require_finite, sum_over_processes

PROBES = 1_000_002  # a place in the run that no epoch has

RewardsOf = Callable[[Sequence[Element], str], Tensor]
"""Rewards (S, H) of the sequences of all elements; the text says what is going on."""


def train(
    spec: RewardSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> RewardResult:
    """Trains on the snapshot's `train` rows, measures on its `heldout` rows, saves model, report and card to `folder`.

    Raises:
        InvalidInput: too few comparisons with a winner, or too few that rate an aspect.
        ModelUnavailable: the backbone does not load.
        StorageFull: no room for a checkpoint or the model; checkpoints saved before stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started, memory = time.monotonic(), PeakMemory()

    # 1. Data, before anything that takes time.
    backbone = resolve(store, spec.backbone)
    tokenizer = load_tokenizer(backbone)
    pad_id = tokenizer.pad_token_id
    snapshot = store.resolve(spec.snapshot)
    encoder = ChatEncoder(tokenizer, spec.max_length)
    encoded = encode_pairs(read_pairs(snapshot), encoder)
    heldout = encoded.heldout
    train_pairs, unused, dropped = usable(spec, encoded)
    require_targets(spec, train_pairs, dropped)
    notes = (*notes_on(tokenizer), *prompts_in_both(train_pairs, heldout))
    elements, heldout_elements = elements_of(train_pairs), elements_of(heldout)
    targets = targets_of(train_pairs, elements, spec)

    # 2. Model: the policy's trunk with fresh heads; the seed fixes heads, adapters, bootstrap, the order of the rows.
    seed_everything(spec.seed)
    dtype = working_dtype(spec.optimiser.precision, backbone, checkpoints)
    model = new_reward_model(backbone, spec.lora, head_names(spec.ensemble, spec.aspects), dtype)
    sizes = sizes_for(backbone, dtype, full_weights=spec.lora is None)
    objective = RewardObjective(model, spec.ties, tie_share(spec, train_pairs))

    # 3. Train: a batch is of elements, a pair or a whole ranking each.
    training = Training(
        objective,
        sizes.fill(spec.optimiser),
        len(elements),
        seed=spec.seed,
        started=started,
        checkpoints=checkpoints,
    )
    rewards_of: RewardsOf = partial(response_rewards, training.model, model, pad_id, reporter)
    lengths = [packed_length(element.sequences, model.share) for element in elements]
    for batch in training.batches(lengths):
        pairs = [i for number in batch for i in elements[number].pairs]
        places = {pair: place for place, pair in enumerate(pairs)}
        total = targets.share[pairs].sum(0).to(device())
        rewards, losses = torch.zeros(2, len(pairs), len(model.heads)), torch.zeros(1)
        for part in training.parts(batch, lengths):
            reporter.progress(training.steps, training.total_steps, "training the reward model")
            packed, rows, sides = pack_elements([elements[number] for number in part.rows], pad_id, model.share)
            sequence_rewards, tie = training.model(packed.to(device()))
            pair_rewards = sequence_rewards[sides.to(device())]
            part_targets = targets.at(rows, device())
            row_losses = pair_losses(pair_rewards, part_targets, tie, spec)
            loss = weighted_loss(row_losses, part_targets.weight, total)
            training.backward(loss, part)
            if part.counts:
                rewards[:, [places[row] for row in rows]] = pair_rewards.detach().cpu()
                losses += loss.detach().cpu()
        training.tokens += sum(lengths[number] for number in batch)
        rewards, losses = sum_over_processes(rewards), sum_over_processes(losses)
        grad_norm, lr = training.step(float(losses))
        decided = [places[row] for row in pairs if not train_pairs[row].tied]
        values = statistics(model.score(rewards[:, decided])) if decided else {}
        reporter.metrics(training.steps, {"loss": float(losses), **values, "grad_norm": grad_norm, "lr": lr})
        if training.epoch_ends and training.steps < training.total_steps and heldout:
            rewards = rewards_of(heldout_elements, "held-out comparisons")
            shares = model.shares(rewards.double().std(0))
            measured = measured_pairs(spec, objective, heldout, by_pair(rewards, heldout_elements), shares)
            reporter.metrics(training.steps, slice_metrics(measured).get("", {}))
        training.save_if_due()

    # 4. Measure on both splits, on the scale Bradley-Terry fits.
    heldout_rewards = rewards_of(heldout_elements, "held-out comparisons")
    heldout_pairs = by_pair(heldout_rewards, heldout_elements)
    reference = rewards_of(elements, "rewards of the training responses")
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    if not bool((deviation > 1e-6).all()):
        raise TrainingDiverged(
            f"The reward model gives every response the same reward (standard deviation {deviation.tolist()}).",
            "No model was saved. Lower the learning rate, or check that the judgments are not all alike.",
        )
    train_rewards = by_pair(reference, elements)
    unused_elements = elements_of(unused)
    unused_rewards = by_pair(rewards_of(unused_elements, "comparisons that were not trained on"), unused_elements)
    shares = model.shares(deviation)
    measured = measured_pairs(spec, objective, heldout, heldout_pairs, shares)
    on_train = measured_pairs(spec, objective, train_pairs, train_rewards, shares)
    tie = mean_tie(objective, shares)
    views = [
        view
        for pairs, rewards, trained in (
            (train_pairs, train_rewards, True),
            (heldout, heldout_pairs, False),
            (unused, unused_rewards, False),
        )
        for view in views_of(pairs, model.score(rewards * shares), spec.ties, tie, trained=trained)
    ]
    results = slice_metrics(measured)
    report: dict[str, Any] = {
        "train": split_figures(on_train),
        "heldout": split_figures(measured),
        "ties": tie_figures(spec, objective, heldout, heldout_pairs),
        "heads": head_figures(heldout, heldout_pairs, model.heads, model.score_heads),
    }
    report["gap"] = overfitting(report["train"], report["heldout"])

    # 5. Bring each head to mean 0 and standard deviation 1 over the training responses.
    trained = training.whole_module()
    model, rewards_of = trained.model, partial(response_rewards, trained, trained.model, pad_id, reporter)
    model.normalise(mean, deviation)
    spread = float(model.score((reference - mean) / deviation).std())  # of an ensemble's mean it is below 1

    # 6. Held-out figures that need more passes: rewritten responses.
    if measured.pairs:
        report |= pair_figures(measured)
        trained_on = spec.optimiser.epochs * sum(lengths)  # without gradients, so a third of the training's time
        probed = probed_pairs(measured.pairs, trained_on, training.generator(PROBES))
        report["probes"] = probe_figures(probed, text_scorer(rewards_of, model, encoder, spread))
    for name, values in (results | {"": results.get("", {}) | report_metrics(report)}).items():
        reporter.metrics(training.steps, values, name)

    # 7. Save.
    merge_adapters(model)
    save_reward_model(model, tokenizer, folder)
    report["model"] = {
        "heads": list(model.heads),
        "gains": model.gains.tolist(),
        "offsets": model.offsets.tolist(),
        "reference_samples": len(reference),
        "pooling": POOLING,
    }
    report["data"] = {
        "precision": name_of(dtype),
        "snapshot": hashlib.sha256(read_content(snapshot)).hexdigest(),
        "train_pairs": len(train_pairs),
        "train_elements": len(elements),
        "heldout_pairs": len(heldout),
        "scored_pairs": len(views),
        "dropped": list(dropped),
        "notes": list(notes),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (folder / REWARD_VIEWS).write_text("".join(view.model_dump_json() + "\n" for view in views))
    (folder / "README.md").write_text(reward_card.model_card(spec, report))
    overall = results.get("", {})
    return RewardResult(
        eval_accuracy=overall.get("eval_accuracy"),
        eval_ece=overall.get("eval_ece"),
        eval_length_bias=overall.get("eval_length_bias"),
        eval_accuracy_gap=report["gap"]["accuracy"],
        train_pairs=len(train_pairs),
        heldout_pairs=len(heldout),
        dropped=dropped,
        heads=model.heads,
        gains=tuple(model.gains.tolist()),
        offsets=tuple(model.offsets.tolist()),
        reference_samples=len(reference),
        tokens=training.tokens,
        seconds=training.seconds,
        precision=name_of(dtype),
        sizes={"microbatch_tokens": training.microbatch_tokens, "forward_tokens": sizes.forward_tokens},
        peak_memory=memory.peak(),
        notes=(*notes, *memory.notes),
    )


def usable(spec: RewardSpec, encoded: EncodedPairs) -> tuple[list[Pair], list[Pair], tuple[str, ...]]:
    """The training pairs that have a target, those that have none, and why they were left out.

    A tie has no hard label, unless ties are an outcome of their own, or an aspect has a winner.
    """
    kept: list[Pair] = []
    ties: list[Pair] = []
    for pair in encoded.train:
        said = any(outcomes(pair, spec)) or any(any(aspect_outcomes(pair, aspect, spec)) for aspect in spec.aspects)
        (kept if said else ties).append(pair)
    left_out = {"are ties, which hard labels cannot say": [pair.row.comparison_id for pair in ties]} if ties else {}
    return kept, ties, (*encoded.dropped, *describe_left_out(left_out, "comparisons"))


def prompts_in_both(train_pairs: Sequence[Pair], heldout: Sequence[Pair]) -> tuple[str, ...]:
    """A note where held-out comparisons are not of new prompts: the service keeps them apart, other files may not."""
    trained_on = {str(pair.row.messages) for pair in train_pairs}
    known = sum(str(pair.row.messages) in trained_on for pair in heldout)
    if not known:
        return ()
    return (
        f"{known} of {len(heldout)} held-out comparisons are of prompts that were trained on: held-out figures are "
        "better than those on new prompts would be.",
    )


def require_targets(spec: RewardSpec, pairs: Sequence[Pair], dropped: Sequence[str]) -> None:
    """Raises InvalidInput unless enough pairs have a winner, in each aspect too, and heads' names differ.

    Args:
        dropped: why others were left out, a sentence each.
    """
    require_pairs(pairs, "A reward model", dropped)
    for aspect in spec.aspects:
        if aspect.partition("/")[0] == REWARD or spec.aspects.count(aspect) > 1:
            raise InvalidInput(
                f"The name {aspect} cannot be an aspect's: two heads would share it.",
                f"Name each aspect once, and none {REWARD}.",
            )
        decided = sum(pair.row.aspects.get(aspect, 0.5) != 0.5 for pair in pairs)
        if decided < MIN_PAIRS:
            raise InvalidInput(
                f"A head for {aspect} needs at least {MIN_PAIRS} training comparisons with a winner in it; there are "
                f"{decided}.",
                "Leave the aspect out, or collect more judgments that rate it.",
            )


@torch.no_grad()
def response_rewards(
    run: Callable[[Packed], tuple[Tensor, Tensor | None]],
    model: RewardModel,
    pad_id: int,
    reporter: Reporter,
    elements: Sequence[Element],
    message: str,
) -> Tensor:
    """Rewards (S, H) of the sequences of all elements, on the CPU. Raises TrainingDiverged if one is not a number."""
    starts = [0, *itertools.accumulate(len(element.sequences) for element in elements)]
    rewards = torch.zeros(starts[-1], len(model.heads))
    if not elements:
        return rewards
    lengths = [packed_length(element.sequences, model.share) for element in elements]
    done = 0
    tokens = forward_tokens(trunk_of(model.classifier))
    for part, counts in deal(token_parts(range(len(elements)), lengths, len(elements), tokens)):
        reporter.progress(done, len(elements), message)
        sequences = [sequence for number in part for sequence in elements[number].sequences]
        part_rewards, _ = run(pack(sequences, pad_id, model.share).to(device()))
        if counts:
            rewards[[place for number in part for place in range(starts[number], starts[number + 1])]] = (
                part_rewards.cpu()
            )
        done += len(part)
    return require_finite(sum_over_processes(rewards), f"rewards ({message})")


def measured_pairs(
    spec: RewardSpec, objective: RewardObjective, pairs: Sequence[Pair], rewards: Tensor, shares: Tensor
) -> Measured:
    """The decided ones of pairs with rewards (2, N, H), scored with these `RewardModel.shares` (H,)."""
    rows = [i for i, pair in enumerate(pairs) if not pair.tied]
    decided = [pairs[i] for i in rows]
    targets = targets_of(decided, elements_of(decided), spec)
    rewards = rewards[:, rows]
    losses = objective.model.score(pair_losses(rewards, targets, cpu(objective.tie()), spec))
    scores = objective.model.score(rewards * shares)
    logits = decided_logit(scores[0] - scores[1], spec.ties, mean_tie(objective, shares))
    return Measured(decided, scores, losses, logits)


def mean_tie(objective: RewardObjective, shares: Tensor) -> float | None:
    """The tie parameter beside scores taken with these shares (H,)."""
    tie = cpu(objective.tie())
    return None if tie is None else float((tie * shares[objective.model.score_heads]).mean())


def cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().cpu()


def tie_share(spec: RewardSpec, pairs: Sequence[Pair]) -> float:
    """How often pairs tie, by the labels that the spec makes of what was said: hard ones count a likely tie whole."""
    return sum(outcomes(pair, spec)[2] for pair in pairs) / len(pairs)


def tie_figures(
    spec: RewardSpec, objective: RewardObjective, pairs: Sequence[Pair], rewards: Tensor
) -> dict[str, Any] | None:
    """The tie model, its learned parameters, and how often held-out pairs tie: as it predicts, as labelers said.

    None where ties count half each way.
    """
    tie = cpu(objective.tie())
    if tie is None:
        return None
    probabilities = rao_kupper_probabilities if spec.ties == "rao_kupper" else davidson_probabilities
    d = (rewards[0] - rewards[1])[:, objective.model.score_heads]
    return {
        "model": spec.ties,
        "parameter": "ln theta" if spec.ties == "rao_kupper" else "ln nu",
        "values": tie.tolist(),
        "predicted": float(probabilities(d, tie)[..., 2].mean()) if pairs else None,
        "observed": tie_share(spec, pairs) if pairs else None,
    }


def text_scorer(rewards_of: RewardsOf, model: RewardModel, encoder: ChatEncoder, spread: float) -> TextScorer:
    """Scores texts in units of `spread`, the standard deviation of the training responses' scores."""

    def score(variants: Sequence[Variants]) -> list[list[float | None]]:
        elements: list[Element] = []
        fits: list[list[bool]] = []
        for messages, texts in variants:
            # Each is read as a policy's response is: one that is longer by a trick costs the others no prompt.
            fitted = [encoder.fit(messages, [encoder.completion(text)]) for text in texts]
            fits.append([each is not None for each in fitted])
            sequences = [each.sequences[0] for each in fitted if each is not None]
            # Not all in one row: attention within it grows with the square of its length.
            longest = max((sequence.length for sequence in sequences), default=1)
            for some in chunks(sequences, max(1, forward_tokens(trunk_of(model.classifier)) // longest)):
                elements.append(Element(tuple(some), (), ()))
        rewards = rewards_of(elements, "scoring rewritten responses")
        scores = iter((model.score(rewards) / spread).tolist())
        return [[next(scores) if fit else None for fit in row] for row in fits]

    return score
