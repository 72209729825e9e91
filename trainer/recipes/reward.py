"""Train a reward model on a snapshot: Bradley-Terry on pairs and rankings (Ouyang et al. 2022, section 3.5)."""

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
from app.rows import REWARD_VIEWS
from app.specs import RewardSpec
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import (
    chunks,
    encode_pairs,
    read_pairs,
)
from trainer.batching.packing import Packed, packed_length
from trainer.checkpoints import Checkpoints
from trainer.models.forwarding import forward_groups
from trainer.models.loading import load_tokenizer, notes_on, resolve, seed_everything, working_dtype
from trainer.models.policy import trunk_of
from trainer.models.sizes import forward_tokens, sizes_for
from trainer.processes import device, require_finite, sum_over_processes
from trainer.reporting import Reporter, RewardResult, TrainingDiverged
from trainer.reward import card as reward_card
from trainer.reward import head_fitting
from trainer.reward.cross_fitting import Best, Folds, folds_of, schedule
from trainer.reward.model import FROZEN_POOLING, POOLING, frozen_reward_model, new_reward_model, save_reward_model
from trainer.reward.network import RewardModel, head_names, score_heads, score_of
from trainer.reward.objective import (
    Element,
    RewardObjective,
    by_pair,
    elements_of,
    pack_elements,
    pair_losses,
    targets_of,
    weighted_loss,
)
from trainer.reward.predictions import (
    Said,
    disagreement,
    joined,
    measured,
    member_figures,
    of_people,
    said_by,
    said_by_members,
    said_together,
    tie_figures,
    tie_share,
)
from trainer.reward.report import (
    TextScorer,
    Variants,
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
from trainer.reward.rows import require_targets, usable
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of
from trainer.speed.sharding import wants_shards
from trainer.training.training import Training

PROBES = 1_000_002  # place in the run for random numbers; no epoch has this number
BELOW_CEILING = 0.99  # share of the compared responses whose score is below the ceiling

RewardsOf = Callable[..., Tensor]
"""`response_rewards` with the arguments elements, progress message and, optionally, member."""


def train(
    spec: RewardSpec,
    store: ArtifactStore,
    reporter: Reporter,
    folder: Path,
    checkpoints: Checkpoints | None = None,
) -> RewardResult:
    """Train on the snapshot's `train` rows, measure on unseen rows, and save model, report and card to `folder`.

    Raises:
        InvalidInput: too few comparisons have a winner, or too few rate an aspect, or a frozen trunk is combined with
            FSDP.
        ModelUnavailable: the backbone does not load.
        StorageFull: the disk has no room for a checkpoint or the model; earlier checkpoints stay.
        RunCancelled, TrainingDiverged: no model is saved.
    """
    started, memory = time.monotonic(), PeakMemory()

    # 1. Read the data first, so that bad input fails before the slow steps.
    backbone = resolve(store, spec.backbone)
    tokenizer = load_tokenizer(backbone)
    pad_id = tokenizer.pad_token_id
    snapshot = store.resolve(spec.snapshot)
    encoder = ChatEncoder(tokenizer, spec.max_length)
    encoded = encode_pairs(read_pairs(snapshot), encoder)
    heldout = encoded.heldout
    train_pairs, unused, dropped = usable(spec, encoded)
    require_targets(spec, train_pairs, dropped)
    elements, heldout_elements = elements_of(train_pairs), elements_of(heldout)
    folds, fold_notes = folds_of(spec, train_pairs, elements)
    notes = (*notes_on(tokenizer), *fold_notes)

    # 2. Build the model: the policy's trunk with new heads. The seed determines heads, adapters, bootstrap, folds and
    # the order of rows. A frozen trunk is the base model's, without the policy's adapter, so that one copy of the base
    # can serve both policy and reward model.
    seed_everything(spec.seed)
    dtype = working_dtype(spec.optimiser.precision, backbone, checkpoints)
    heads, frozen = head_names(spec.ensemble, spec.aspects), spec.trunk == "frozen"
    if frozen:
        if wants_shards():
            raise InvalidInput(
                "A reward model on a frozen trunk does not run under FSDP: FSDP could only shard the frozen trunk.",
                "Launch it with docs/accelerate/ddp.yaml, or set `trunk` to trained.",
            )
        model = frozen_reward_model(backbone.base, heads, dtype, folds.members)
    else:
        model = new_reward_model(backbone, spec.lora, heads, dtype, folds.members)
    sizes = sizes_for(backbone, dtype, full_weights=spec.lora is None)
    objective = RewardObjective(model, spec.ties, tie_share(spec, train_pairs))
    # Each member of an ensemble draws its own bootstrap weights.
    targets = [
        targets_of(train_pairs, elements, spec.model_copy(update={"seed": spec.seed + member}))
        for member in range(folds.members)
    ]

    # 3. Train. A batch consists of elements; an element is a pair or a whole ranking. With several members, each batch
    # trains the next member in turn. Heads on a frozen trunk are fitted directly, without optimiser steps.
    lengths = [packed_length(element.sequences, model.share) for element in elements]
    epochs = [] if frozen else schedule(spec, folds, lengths)
    ends = list(itertools.accumulate(len(steps) for steps in epochs)) or [0]
    training = Training(
        objective,
        sizes.fill(spec.optimiser),
        seed=spec.seed,
        total_steps=ends[-1],
        started=started,
        checkpoints=checkpoints,
        in_turns=folds.members > 1,
    )
    best = Best.of(training.resumed)
    rewards_of: RewardsOf = partial(response_rewards, training.model, model, pad_id, reporter)
    if frozen:
        numbers = head_fitting.subset(len(elements), spec.seed)
        features = response_features(model, pad_id, reporter, [elements[number] for number in numbers])
        head_fitting.fit(objective, spec, folds, elements, numbers, features, targets)
        training.tokens = sum(lengths[number] for number in numbers)

    def unseen(train_rewards: Tensor, heldout_rewards: Tensor, deviation: Tensor) -> list[Said]:
        """Return predictions for unseen pairs: each member's for its held-out fold, and the ensemble's for held-out
        pairs.
        """
        ties = objective.all_ties()
        by_fold = said_by_members(model, folds, train_pairs, elements, train_rewards, deviation, ties, trained=False)
        return [*by_fold, said_together(model, heldout, heldout_rewards, deviation, ties)]

    for member, batch in itertools.islice(itertools.chain(*epochs), training.steps, None):
        pairs = [i for number in batch for i in elements[number].pairs]
        places = {pair: place for place, pair in enumerate(pairs)}
        total = targets[member].share[pairs].sum(0).to(device())
        rewards, losses = torch.zeros(2, len(pairs), len(model.own_heads)), torch.zeros(1)
        for part in training.parts(batch, lengths):
            reporter.progress(training.steps, training.total_steps, "training the reward model")
            packed, rows, sides = pack_elements([elements[number] for number in part.rows], pad_id, model.share)
            sequence_rewards, tie = training.model(packed.to(device()), member)
            pair_rewards = sequence_rewards[sides.to(device())]
            part_targets = targets[member].at(rows, device())
            row_losses = pair_losses(pair_rewards, part_targets, tie, spec)
            loss = weighted_loss(row_losses, part_targets.weight, total)
            training.backward(loss, part)
            if part.counts:
                rewards[:, [places[row] for row in rows]] = pair_rewards.detach().cpu()
                losses += loss.detach().cpu()
        tokens = sum(lengths[number] for number in batch)
        training.tokens += tokens
        reporter.worked(tokens)
        rewards, losses = sum_over_processes(rewards), sum_over_processes(losses)
        grad_norm, lr = training.step(float(losses))
        decided = [places[row] for row in pairs if not train_pairs[row].tied]
        values = statistics(score_of(rewards[:, decided], model.own_heads)) if decided else {}
        reporter.metrics(training.steps, {"loss": float(losses), **values, "grad_norm": grad_norm, "lr": lr})
        if training.steps in ends and len(ends) > 1 and (heldout or folds.of):
            train_rewards = by_pair(fold_rewards(rewards_of, model, folds, elements), elements)
            heldout_rewards = rewards_of(heldout_elements, "held-out comparisons")
            deviation = heldout_rewards.double().std(0) if heldout else torch.ones(len(model.heads))
            said = unseen(train_rewards, by_pair(heldout_rewards, heldout_elements), deviation)
            found = slice_metrics(measured(spec, joined(said))).get("", {})
            if training.steps < ends[-1]:
                reporter.metrics(training.steps, found)
            if found:
                best = best.after(found["eval_loss"], training.weights)
        training.save_if_due(best.state, best.weights)
    if best.weights and best.kept < len(ends):
        training.put_back(best.weights)

    # 4. Measure on the scale of Bradley-Terry. Quality is judged by pairs that a member did not train on.
    ties = objective.all_ties()
    reference = rewards_of(elements, "rewards of the training responses")
    mean, deviation = reference.double().mean(0), reference.double().std(0)
    if not bool((deviation > 1e-6).all()):
        raise TrainingDiverged(
            f"The reward model gives every response the same reward (standard deviation {deviation.tolist()}).",
            "No model was saved. Lower the learning rate, or check that the judgments are not all alike.",
        )
    train_rewards = by_pair(reference, elements)
    heldout_rewards = by_pair(rewards_of(heldout_elements, "held-out comparisons"), heldout_elements)
    unused_elements = elements_of(unused)
    unused_rewards = by_pair(rewards_of(unused_elements, "comparisons that were not trained on"), unused_elements)

    *out_of_fold, on_heldout = unseen(train_rewards, heldout_rewards, deviation)
    everything = of_people(joined([*out_of_fold, on_heldout]))
    on_unused = said_together(model, unused, unused_rewards, deviation, ties)
    in_fold = said_by_members(model, folds, train_pairs, elements, train_rewards, deviation, ties, trained=True)
    each_on_heldout = [
        said_by(model, member, heldout, heldout_rewards[..., model.columns(member)], deviation, ties)
        for member in range(model.members)
    ]
    on_train, on_unseen = measured(spec, joined(in_fold)), measured(spec, everything)
    if folds.of:
        views = [view for each in out_of_fold for view in views_of(each.pairs, each.logits(spec), trained=False)]
    else:
        views = views_of(in_fold[0].pairs, in_fold[0].logits(spec), trained=True)
    for each in (on_heldout, on_unused):
        views += views_of(each.pairs, each.logits(spec), trained=False)
    results = slice_metrics(on_unseen)
    report: dict[str, Any] = {
        "train": split_figures(on_train) | {"pairs": sum(not pair.tied for pair in train_pairs)},
        "cross_fitted": split_figures(measured(spec, joined(out_of_fold))) if folds.of else None,
        "heldout": split_figures(measured(spec, on_heldout)),
        "unseen": split_figures(on_unseen),
        "members": member_figures(spec, elements, folds, out_of_fold, each_on_heldout),
        "epochs": best.figures(),
        "ties": tie_figures(spec, ties, everything),
        "heads": head_figures(everything.pairs, everything.rewards, model.own_heads, score_heads(model.own_heads)),
    }
    report["gap"] = overfitting(report["train"], report["unseen"])

    # 5. Normalise the score and each aspect head to mean 0 and standard deviation 1 over the training responses.
    trained = training.whole_module()
    model, rewards_of = trained.model, partial(response_rewards, trained, trained.model, pad_id, reporter)
    # The mean of several heads that each have standard deviation 1 has a smaller standard deviation.
    spread = model.score((reference - mean) / deviation).std()
    scale = deviation.clone()
    scale[model.score_heads] *= spread
    model.normalise(mean, scale)
    if frozen and spec.doubt:
        model.doubt = head_fitting.doubt_of(model, spec, elements, numbers, features)
    model.ceiling = float(torch.quantile(model.score(((reference - mean) / scale).float()), BELOW_CEILING))
    about = heldout_rewards if heldout else train_rewards
    report["disagreement"] = disagreement(model, (about - mean) / scale)

    # 6. Compute figures that need more forward passes: scores of rewritten responses, if possible of held-out pairs.
    if on_unseen.pairs:
        report |= pair_figures(on_unseen)
        candidates = [pair for pair in heldout if not pair.tied] or on_unseen.pairs
        # The probes read about as many tokens as training did, but without gradients: at most a third of its time.
        passes = 1 if frozen else model.members
        probed = probed_pairs(candidates, training.tokens // passes, training.generator(PROBES))
        report["probes"] = probe_figures(probed, text_scorer(rewards_of, model, encoder))
    for name, values in (results | {"": results.get("", {}) | report_metrics(report)}).items():
        reporter.metrics(training.steps, values, name)

    # 7. Save. Inside the store, refer to the base by its location, which stays valid if the store moves. Outside, use
    # its path.
    inside = folder.resolve().is_relative_to(store.root.resolve())
    base = spec.backbone.base if inside else backbone.base
    save_reward_model(model, tokenizer, folder, base)
    report["model"] = {
        "base": base if frozen or spec.lora else None,
        "members": model.members,
        "heads": list(model.heads),
        "gains": model.gains.tolist(),
        "offsets": model.offsets.tolist(),
        "reference_samples": len(reference),
        "pooling": FROZEN_POOLING if frozen else POOLING,
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
        members=model.members,
        disagreement=report["disagreement"],
        kept_epoch=best.kept or len(epochs),
        sizes={"microbatch_tokens": training.microbatch_tokens, "forward_tokens": sizes.forward_tokens},
        peak_memory=memory.peak(),
        notes=(*notes, *memory.notes),
    )


def response_rewards(
    run: Callable[[Packed, int | None], tuple[Tensor, Tensor | None]],
    model: RewardModel,
    pad_id: int,
    reporter: Reporter,
    elements: Sequence[Element],
    message: str,
    member: int | None = None,
) -> Tensor:
    """Return rewards of the sequences of all elements, on the CPU: (S, C) of all members, or (S, H) of one member.

    Raises:
        TrainingDiverged: a reward is not a number.
    """
    width = len(model.heads if member is None else model.own_heads)
    rewards = _forward(lambda packed: run(packed, member)[0], width, model, pad_id, reporter, elements, message)
    return require_finite(rewards, f"rewards ({message})")


def response_features(model: RewardModel, pad_id: int, reporter: Reporter, elements: Sequence[Element]) -> Tensor:
    """Return a frozen trunk's features (S, F) of the sequences of all elements, on the CPU.

    Raises:
        TrainingDiverged: a feature is not a number.
    """
    width, message = model.classifier.score.in_features, "reading the responses"
    features = _forward(model.features, width, model, pad_id, reporter, elements, message)
    return require_finite(features, f"states ({message})")


def _forward(
    run: Callable[[Packed], Tensor],
    width: int,
    model: RewardModel,
    pad_id: int,
    reporter: Reporter,
    elements: Sequence[Element],
    message: str,
) -> Tensor:
    groups = [element.sequences for element in elements]
    tokens = forward_tokens(trunk_of(model.classifier))
    report = partial(reporter.progress, total=len(elements), message=message)
    return forward_groups(run, groups, width, model.share, pad_id, tokens, report)


def fold_rewards(rewards_of: RewardsOf, model: RewardModel, folds: Folds, elements: Sequence[Element]) -> Tensor:
    """Return rewards (S, C) of the sequences of all elements, by the member that did not train on them.

    The columns of the other members are 0.
    """
    starts = [0, *itertools.accumulate(len(element.sequences) for element in elements)]
    rewards = torch.zeros(starts[-1], len(model.heads))
    for member in range(folds.members):
        held = folds.held(member)
        places = [place for number in held for place in range(starts[number], starts[number + 1])]
        own = rewards_of([elements[number] for number in held], "comparisons of the other fold", member)
        rewards[places, model.columns(member)] = own
    return rewards


def text_scorer(rewards_of: RewardsOf, model: RewardModel, encoder: ChatEncoder) -> TextScorer:
    """Return a scorer of texts by a normalised model. Its unit is the standard deviation of the training scores."""

    def score(variants: Sequence[Variants]) -> list[list[float | None]]:
        elements: list[Element] = []
        fits: list[list[bool]] = []
        for messages, texts in variants:
            # Fit each text on its own, like a policy's response: a long variant must not shorten the others' prompt.
            fitted = [encoder.fit(messages, [encoder.completion(text)]) for text in texts]
            fits.append([each is not None for each in fitted])
            sequences = [each.sequences[0] for each in fitted if each is not None]
            # Split them into several rows, because the cost of attention grows with the square of a row's length.
            longest = max((sequence.length for sequence in sequences), default=1)
            for some in chunks(sequences, max(1, forward_tokens(trunk_of(model.classifier)) // longest)):
                elements.append(Element(tuple(some), (), ()))
        rewards = rewards_of(elements, "scoring rewritten responses")
        scores = iter(model.score(rewards).tolist())
        return [[next(scores) if fit else None for fit in row] for row in fits]

    return score
