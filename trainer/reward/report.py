"""Figures of a reward model's report, computed from its rewards for unseen comparisons.

A comparison is unseen if the members that score it did not train on it: it is held out, or in another fold.

Unless stated otherwise, rewards (2, N) are of N pairs, chosen first, on the scale that Bradley-Terry fits (before
normalisation). A figure is None if no pair qualifies for it. All returned values can be written as JSON.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.domain.intervals import clustered_mean, clustered_share
from app.rows import PairRow, RewardView
from trainer.algorithms import calibration
from trainer.batching.data import Pair, slice_names
from trainer.reward import probes
from trainer.reward.objective import winners_strength

PROBED_PAIRS = 256
LEAST_PROBED = 16
EASY_AGREEMENT = 0.8  # pairs without a difficulty tag are easy if at least this share of the labelers agreed

Figures = dict[str, Any]


class Variants(NamedTuple):
    """Several responses to one conversation."""

    messages: tuple[dict[str, str], ...]
    texts: tuple[str, ...]


TextScorer = Callable[[Sequence[Variants]], list[list[float | None]]]
"""Returns the normalised scores of all texts, by conversation; None for a text that is too long for the model."""


def statistics(rewards: Tensor, prefix: str = "") -> dict[str, float]:
    """Return the usual reward-model metrics of rewards (2, N)."""
    d = rewards[0] - rewards[1]
    values = {
        "accuracy": calibration.accuracy(d),
        "margin": d.mean(),
        "min_reward": rewards.min(),
        "mean_reward": rewards.mean(),
        "max_reward": rewards.max(),
    }
    return {prefix + name: float(value) for name, value in values.items()}


def decided_logit(d: Tensor, ties: str, tie: Tensor | None) -> Tensor:
    """Return the log-odds (N,) that chosen is better, given a winner; d is (N,), tie parameters are (N,) or ().

    For Bradley-Terry and Davidson this is d itself. In Rao and Kupper's model, the threshold makes the log-odds of
    decided pairs larger.
    """
    if ties != "rao_kupper" or tie is None:
        return d
    return F.logsigmoid(d - tie) - F.logsigmoid(-d - tie)  # log P(c) - log P(r)


def views_of(pairs: Sequence[Pair], logits: Tensor, *, trained: bool) -> list[RewardView]:
    """Return the model's view of each pair, ties included, from the log-odds (N,) that chosen is better."""
    p_chosen = logits.double().sigmoid().tolist()
    return [
        RewardView(
            comparison_id=pair.row.comparison_id,
            p_b=round(p if pair.row.p_b >= 0.5 else 1 - p, 6),  # chosen is B: see encode_pairs
            trained=trained,
        )
        for pair, p in zip(pairs, p_chosen, strict=True)
    ]


class Measured(NamedTuple):
    """The model's scores and losses for N decided pairs of a split.

    Attributes:
        rewards: (2, N) scores, chosen first.
        losses: (N,) the training loss, averaged over the score heads.
        logits: (N,) log-odds that chosen is better: see `decided_logit`.
    """

    pairs: list[Pair]
    rewards: Tensor
    losses: Tensor
    logits: Tensor

    @property
    def differences(self) -> Tensor:
        return self.rewards[0] - self.rewards[1]


def slice_metrics(measured: Measured) -> dict[str, dict[str, float]]:
    """Return the metrics of unseen pairs by slice, `""` for all pairs; empty without pairs."""
    pairs, rewards, losses, logits = measured
    members: dict[str, list[int]] = defaultdict(list)
    for i, pair in enumerate(pairs):
        for name in ["", *slice_names(pair.row.slices)]:
            members[name].append(i)
    lengths = lengths_of(pairs)
    results = {}
    for name, rows in members.items():
        values = {"eval_loss": float(losses[rows].mean()), **statistics(rewards[:, rows], "eval_")}
        values["eval_ece"] = float(calibration.expected_calibration_error(logits[rows]))
        bias = calibration.length_bias(measured.differences[rows], *lengths[:, rows])
        if bias is not None:
            values["eval_length_bias"] = float(bias)
        results[name] = values
    return results


def split_figures(measured: Measured) -> Figures:
    """Return accuracy and loss on a split's pairs."""
    if not measured.pairs:
        return {"pairs": 0, "accuracy": None, "loss": None}
    accuracy = float(calibration.accuracy(measured.differences))
    return {"pairs": len(measured.pairs), "accuracy": accuracy, "loss": float(measured.losses.mean())}


def overfitting(train: Figures, unseen: Figures) -> Figures:
    """Return how much better the model is on training pairs: the gain in accuracy and the reduction in loss."""
    if not unseen["pairs"]:
        return {"accuracy": None, "loss": None}
    return {"accuracy": train["accuracy"] - unseen["accuracy"], "loss": unseen["loss"] - train["loss"]}


def lengths_of(pairs: Sequence[Pair]) -> Tensor:
    """Return the responses' lengths in tokens (2, N), chosen first."""
    return torch.tensor([[len(p.chosen.completion) for p in pairs], [len(p.rejected.completion) for p in pairs]])


# ---- figures of decided pairs ----------------------------------------------------------------------------------------


def pair_figures(measured: Measured) -> Figures:
    """Return accuracy by strength, slice and labelers, calibration, separability, length. Needs at least one pair."""
    d, logits = measured.differences, measured.logits
    rows = [pair.row for pair in measured.pairs]
    slices: dict[str, list[int]] = defaultdict(list)
    strengths: dict[str, list[int]] = defaultdict(list)
    difficulties: dict[str, list[int]] = {"easy": [], "hard": []}
    for i, row in enumerate(rows):
        strengths[str(strength_of(measured.pairs[i]))].append(i)
        for name in slice_names(row.slices):
            slices[name].append(i)
        if difficulty := difficulty_of(row):
            difficulties[difficulty].append(i)
    lengths = lengths_of(measured.pairs)
    return {
        "by_strength": {name: agreement_figures(rows, d, strengths[name]) for name in sorted(strengths)},
        "by_slice": {name: agreement_figures(rows, d, slices[name]) for name in sorted(slices)},
        "against_labelers": agreement_figures(rows, d, range(len(rows))),
        "calibration": {
            "ece": float(calibration.expected_calibration_error(logits)),
            "reliability": [bar._asdict() for bar in calibration.reliability_diagram(logits)],
        },
        "separability": {
            name: {
                "pairs": len(members),
                "separability": number(calibration.separability(d[members])),
                "accuracy": number(calibration.accuracy(d[members])) if members else None,
            }
            for name, members in difficulties.items()
        },
        "length": {
            "bias": number(calibration.length_bias(d, *lengths)),
            "slope_per_100_tokens": number(calibration.length_slope(d, *lengths)),
            "matched_accuracy": number(calibration.matched_length_accuracy(d, *lengths)),
        },
        "intervals": intervals(rows, d, lengths),
    }


def intervals(rows: Sequence[PairRow], d: Tensor, lengths: Tensor) -> Figures:
    """Return 95% intervals (low, high) clustered by prompt; an interval is None if there are too few prompts.

    Args:
        d: (N,) differences of decided pairs.
        lengths: (2, N) tokens, chosen first.
    """
    correct = ((d > 0).double() + 0.5 * (d == 0)).tolist()
    bias = calibration.longer_preferred(d, *lengths)
    alike = calibration.alike_in_length(*lengths)
    all_ = range(len(rows))
    by_prompt = {
        "accuracy": _clusters(rows, ((i, correct[i]) for i in all_)),
        "matched_accuracy": _clusters(rows, ((i, correct[i]) for i in all_ if alike[i])),
        "length_bias": _clusters(rows, ((i, bias[i]) for i in all_ if bias[i] is not None)),
    }
    found: Figures = {"prompts": len({row.prompt_id for row in rows}), "matched_pairs": int(alike.sum())}
    for name, clusters in by_prompt.items():
        interval = (clustered_mean if name == "length_bias" else clustered_share)(clusters)
        found[name] = [interval.low, interval.high] if interval else None
    return found


def _clusters(rows: Sequence[PairRow], values: Iterable[tuple[int, float | None]]) -> list[tuple[float, float]]:
    """Return (sum, number of values) for each prompt, from (row number, value)."""
    of_prompt: dict[int, list[float]] = defaultdict(list)
    for i, value in values:
        if value is not None:
            of_prompt[rows[i].prompt_id].append(value)
    return [(sum(each), float(len(each))) for each in of_prompt.values()]


def number(value: Tensor | None) -> float | None:
    return None if value is None else float(value)


def strength_of(pair: Pair) -> int:
    """Return the rounded consensus strength, 1 to 4; it is at least 1 because there is a winner."""
    return max(1, int(winners_strength(pair) + 0.5))


def known_agreement(row: PairRow) -> float | None:
    """Return the labelers' agreement; None if only one labeler judged, who always agrees with the consensus."""
    return None if len(row.judgments) == 1 else row.agreement


def opposed_share(row: PairRow, agreement: float) -> float:
    """Return the share of labelers who chose the loser; in older snapshots it includes those who said tie."""
    return 1 - agreement if row.opposed is None else row.opposed


def difficulty_of(row: PairRow) -> str | None:
    """Return `easy` or `hard` by the prompt's tag, else by the labelers' agreement; None if neither is known."""
    tag = row.slices.get("difficulty")
    if tag:
        return "easy" if tag == "easy" else "hard"
    agreement = known_agreement(row)
    if agreement is None:
        return None
    return "easy" if agreement >= EASY_AGREEMENT else "hard"


def agreement_figures(rows: Sequence[PairRow], d: Tensor, members: Sequence[int]) -> Figures:
    """Return the accuracy against the consensus and, on pairs with several labelers, three agreement shares.

    The shares are weighted means over labelers. `labelers`: the share who chose the winner. It is an upper bound,
    because their own votes decided the winner. `another`: the share who chose the same as another labeler of the pair,
    which is the level that one person reaches. `model`: the share who chose the same as the model. Labelers who said
    tie are in none of the shares.
    """
    correct = (d > 0).double() + 0.5 * (d == 0)
    known = [(i, a) for i in members if (a := known_agreement(rows[i])) is not None]
    figures: Figures = {"pairs": len(members), "accuracy": float(correct[list(members)].mean())}
    figures |= {"judged_by_several": len(known), "labelers": None, "another": None, "model": None}
    if known:
        weights = torch.tensor([rows[i].weight for i, _ in known], dtype=torch.double)
        weights = weights / weights.sum()
        agreement = torch.tensor([a for _, a in known], dtype=torch.double)
        opposed = torch.tensor([opposed_share(rows[i], a) for i, a in known], dtype=torch.double)
        right = correct[[i for i, _ in known]]
        figures["labelers"] = float((weights * agreement).sum())
        figures["model"] = float((weights * (right * agreement + (1 - right) * opposed)).sum())
        judges = torch.tensor([len(rows[i].judgments) for i, _ in known], dtype=torch.double)
        counted = weights * (judges > 1)  # imported rows may not say how many labelers judged
        if counted.any():
            shared = shared_choices(agreement, opposed, judges.clamp(min=2))
            figures["another"] = float((counted * shared).sum() / counted.sum())
    return figures


def shared_choices(agreement: Tensor, opposed: Tensor, labelers: Tensor) -> Tensor:
    """Return the probability (N,) that a random labeler of a pair chose the same as another random labeler.

    If the other labeler said tie, a side is drawn at random, as for a model without a preference.

    Args:
        agreement: (N,) share of the labelers of each pair who chose the winner.
        opposed: (N,) share who chose the loser; the others said tie.
        labelers: (N,) number of labelers, at least 2.
    """
    chose, against = agreement * labelers, opposed * labelers
    tied = labelers - chose - against
    alike = chose * (chose - 1) + against * (against - 1) + tied * (chose + against) / 2
    return alike / (labelers * (labelers - 1))


def head_figures(pairs: Sequence[Pair], rewards: Tensor, heads: Sequence[str], score_heads: Sequence[int]) -> Figures:
    """Return each head's accuracy on rewards (2, N, H): score heads against the consensus, others against their aspect.

    Pairs without a winner in that comparison are left out.
    """
    figures = {}
    for h, name in enumerate(heads):
        if h in score_heads:
            kept = [(i, 1) for i, pair in enumerate(pairs) if not pair.tied]
        else:
            kept = [
                (i, 1 if (pair.row.aspects[name] > 0.5) == (pair.row.p_b >= 0.5) else -1)
                for i, pair in enumerate(pairs)
                if pair.row.aspects.get(name, 0.5) != 0.5
            ]
        rows, signs = [i for i, _ in kept], torch.tensor([sign for _, sign in kept], dtype=torch.float)
        d = signs * (rewards[0, rows, h] - rewards[1, rows, h])
        figures[name] = {"pairs": len(rows), "accuracy": float(calibration.accuracy(d)) if rows else None}
    return figures


def report_metrics(report: Figures) -> dict[str, float]:
    """Return the report's figures that are useful to compare between rounds, as metrics; None values are left out."""
    length, separability = report.get("length", {}), report.get("separability", {})
    against = report.get("against_labelers", {})
    probed = report.get("probes", {"invariance": {}, "adversarial": {}})
    values = {
        "eval_accuracy_gap": report["gap"]["accuracy"],
        "eval_disagreement": report.get("disagreement"),
        "eval_loss_gap": report["gap"]["loss"],
        "eval_labeler_agreement": against.get("labelers"),
        "eval_labeler_pair_agreement": against.get("another"),
        "eval_model_agreement": against.get("model"),
        "eval_length_slope": length.get("slope_per_100_tokens"),
        "eval_length_matched_accuracy": length.get("matched_accuracy"),
        "eval_separability_easy": separability.get("easy", {}).get("separability"),
        "eval_separability_hard": separability.get("hard", {}).get("separability"),
        **{f"eval_flipped/{name}": figures["flipped"] for name, figures in probed["invariance"].items()},
        **{f"eval_probe_wins/{name}": figures["wins"] for name, figures in probed["adversarial"].items()},
    }
    if len(report["heads"]) > 1:
        values |= {f"eval_accuracy/{name}": figures["accuracy"] for name, figures in report["heads"].items()}
    return {name: value for name, value in values.items() if value is not None}


# ---- probes ----------------------------------------------------------------------------------------------------------


def probed_pairs(pairs: Sequence[Pair], tokens: int, generator: torch.Generator) -> list[Pair]:
    """Draw a random pair for each of at most 256 prompts, or fewer if their variants exceed `tokens` tokens."""
    order = torch.randperm(len(pairs), generator=generator).tolist()
    variants = 2 + 2 * len(probes.HARMLESS) + len(probes.ADVERSARIAL)
    chosen: dict[int, Pair] = {}
    used = 0
    for i in order:
        pair = pairs[i]
        if pair.row.prompt_id in chosen:
            continue
        used += len(pair.chosen.prompt) + variants * max(len(s.completion) for s in pair.sequences)
        if len(chosen) == PROBED_PAIRS or (used > tokens and len(chosen) >= LEAST_PROBED):
            break
        chosen[pair.row.prompt_id] = pair
    return list(chosen.values())


def probe_figures(pairs: Sequence[Pair], score: TextScorer) -> Figures:
    """Measure how harmless edits and adversarial probes change the scores of decided pairs' responses.

    An edit changes one of the two responses at a time. `flipped` is the share of changed pairs whose order the edit
    reverses; `mean_change` is the mean absolute change. A probe rewrites the better response. `wins` is the share of
    prompts for which the probe scores higher than the original; `mean_change` is the mean difference. Changes are in
    standard deviations. Rewritten texts that are too long for the model are left out; `too_long` is the number of pairs
    with such texts.
    """
    variants, texts_of = [], []
    for pair in pairs:
        row = pair.row
        better, worse = (row.response_b, row.response_a) if row.p_b >= 0.5 else (row.response_a, row.response_b)
        texts = {("honest", "better"): better, ("honest", "worse"): worse}
        texts |= {(name, "better"): rule(better) for name, rule in (probes.HARMLESS | probes.ADVERSARIAL).items()}
        texts |= {(name, "worse"): rule(worse) for name, rule in probes.HARMLESS.items()}
        variants.append(Variants(row.messages, tuple(dict.fromkeys(texts.values()))))
        texts_of.append(texts)
    cases: list[Case] = []
    for variant, texts, scores in zip(variants, texts_of, score(variants), strict=True):
        by_text = dict(zip(variant.texts, scores, strict=True))
        cases.append({key: (text, each) for key, text in texts.items() if (each := by_text[text]) is not None})
    return {
        "pairs": len(cases),
        "too_long": sum(len(case) < len(texts) for case, texts in zip(cases, texts_of, strict=True)),
        "invariance": {name: _invariance(cases, name) for name in probes.HARMLESS},
        "adversarial": {name: _wins(cases, name) for name in probes.ADVERSARIAL},
        "descriptions": probes.DESCRIPTIONS,
    }


Case = dict[tuple[str, str], tuple[str, float]]  # (rule, side) -> (text, score), for texts that fit the model


def _invariance(cases: Sequence[Case], name: str) -> Figures:
    flipped, changes = [], []
    for case in cases:
        flips = []
        for side, other, sign in (("better", "worse", 1), ("worse", "better", -1)):
            (before_text, before), rival = case["honest", side], case["honest", other][1]
            after_text, after = case.get((name, side), (before_text, before))
            if after_text != before_text:
                changes.append(abs(after - before))
                flips.append((sign * (before - rival) > 0) != (sign * (after - rival) > 0))
        if flips:
            flipped.append(any(flips))
    return {"pairs": len(flipped), "flipped": _mean(flipped), "mean_change": _mean(changes)}


def _wins(cases: Sequence[Case], name: str) -> Figures:
    tricked = [(case[name, "better"][1], case["honest", "better"][1]) for case in cases if (name, "better") in case]
    changes = [trick - honest for trick, honest in tricked]
    return {"prompts": len(changes), "wins": _mean([c > 0 for c in changes]), "mean_change": _mean(changes)}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
