"""What unseen comparisons say of a reward model: the figures of its report, from rewards and rules only.

Unseen are those that who judges them did not train on: held out, or of another fold.

Rewards (2, N) are of N pairs, chosen first, on the scale Bradley-Terry fits (before normalisation) unless said
otherwise. Figures that no pair allows are None. Everything returned is ready for JSON.
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
EASY_AGREEMENT = 0.8  # pairs without a difficulty are easy where this share of the labelers agreed

Figures = dict[str, Any]


class Variants(NamedTuple):
    """Several responses to one conversation."""

    messages: tuple[dict[str, str], ...]
    texts: tuple[str, ...]


TextScorer = Callable[[Sequence[Variants]], list[list[float | None]]]
"""Normalised scores of the texts of each; None for those that are too long for the model."""


def statistics(rewards: Tensor, prefix: str = "") -> dict[str, float]:
    """The field's metrics of rewards (2, N)."""
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
    """The log-odds (N,) that chosen is better, given that one is, at differences d (N,) and tie parameters (N,) or ().

    That is d itself for Bradley-Terry and Davidson; Rao and Kupper's threshold makes decided pairs clearer.
    """
    if ties != "rao_kupper" or tie is None:
        return d
    return F.logsigmoid(d - tie) - F.logsigmoid(-d - tie)  # log P(c) - log P(r)


def views_of(pairs: Sequence[Pair], logits: Tensor, *, trained: bool) -> list[RewardView]:
    """What the model says of each pair, tied ones too, at log-odds (N,) that chosen is better, given that one is."""
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
    """N decided pairs of a split, measured.

    Attributes:
        rewards: (2, N) scores, chosen first.
        losses: (N,) as in training, of the score heads.
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
    """The metrics of unseen pairs by slice, `""` for all; empty without pairs."""
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
    """Accuracy and loss of a split's pairs."""
    if not measured.pairs:
        return {"pairs": 0, "accuracy": None, "loss": None}
    accuracy = float(calibration.accuracy(measured.differences))
    return {"pairs": len(measured.pairs), "accuracy": accuracy, "loss": float(measured.losses.mean())}


def overfitting(train: Figures, unseen: Figures) -> Figures:
    """How much better the model is on what it was trained on, of the splits' figures: accuracy more, loss less."""
    if not unseen["pairs"]:
        return {"accuracy": None, "loss": None}
    return {"accuracy": train["accuracy"] - unseen["accuracy"], "loss": unseen["loss"] - train["loss"]}


def lengths_of(pairs: Sequence[Pair]) -> Tensor:
    """Tokens (2, N) of the responses, chosen first."""
    return torch.tensor([[len(p.chosen.completion) for p in pairs], [len(p.rejected.completion) for p in pairs]])


# ---- figures of decided pairs ----------------------------------------------------------------------------------------


def pair_figures(measured: Measured) -> Figures:
    """Accuracy by strength, by slice and against the labelers, calibration, separability, length. Needs a pair."""
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
    """95% intervals (low, high), prompts as clusters: None where too few prompts tell.

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
    """(sum, cases) of each prompt's pairs, given (place, value)."""
    of_prompt: dict[int, list[float]] = defaultdict(list)
    for i, value in values:
        if value is not None:
            of_prompt[rows[i].prompt_id].append(value)
    return [(sum(each), float(len(each))) for each in of_prompt.values()]


def number(value: Tensor | None) -> float | None:
    return None if value is None else float(value)


def strength_of(pair: Pair) -> int:
    """1 to 4: the consensus strength rounded, and at least 1 since there is a winner."""
    return max(1, int(winners_strength(pair) + 0.5))


def known_agreement(row: PairRow) -> float | None:
    """The labelers' agreement, None where one alone judged: with oneself one always agrees."""
    return None if len(row.judgments) == 1 else row.agreement


def opposed_share(row: PairRow, agreement: float) -> float:
    """Share of the labelers who chose the loser; older snapshots do not tell them from those who said tie."""
    return 1 - agreement if row.opposed is None else row.opposed


def difficulty_of(row: PairRow) -> str | None:
    """`easy` or `hard` by the prompt's tag, else by the labelers' agreement; None where neither is known."""
    tag = row.slices.get("difficulty")
    if tag:
        return "easy" if tag == "easy" else "hard"
    agreement = known_agreement(row)
    if agreement is None:
        return None
    return "easy" if agreement >= EASY_AGREEMENT else "hard"


def agreement_figures(rows: Sequence[PairRow], d: Tensor, members: Sequence[int]) -> Figures:
    """Accuracy against the consensus, and on pairs of several labelers against one of them, with theirs as the ceiling.

    Weighted shares of labelers: `labelers` of those who chose the winner, an upper bound, for they made it; `another`
    of those who chose what another labeler of the pair did: what one person reaches; `model` of those who chose what
    the model does. Who said tie is among none of them.
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
        counted = weights * (judges > 1)  # some rows that were not collected here do not tell how many judged
        if counted.any():
            shared = shared_choices(agreement, opposed, judges.clamp(min=2))
            figures["another"] = float((counted * shared).sum() / counted.sum())
    return figures


def shared_choices(agreement: Tensor, opposed: Tensor, labelers: Tensor) -> Tensor:
    """How probably a labeler drawn from these chose what another one does, who takes a side by chance where they said
    tie, as a model without a preference would.

    Args:
        agreement: (N,) share of the labelers of each pair who chose the winner.
        opposed: (N,) share who chose the loser; the others said tie.
        labelers: (N,) how many there are, at least 2.
    """
    chose, against = agreement * labelers, opposed * labelers
    tied = labelers - chose - against
    alike = chose * (chose - 1) + against * (against - 1) + tied * (chose + against) / 2
    return alike / (labelers * (labelers - 1))


def head_figures(pairs: Sequence[Pair], rewards: Tensor, heads: Sequence[str], score_heads: Sequence[int]) -> Figures:
    """Accuracy of each head on rewards (2, N, H): score heads by the consensus, others by their aspect's.

    Pairs without a winner in it are left out.
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
    """The figures that are worth following from round to round, as metrics; those that could not be measured are left
    out."""
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
    """A random pair of each of at most 256 prompts, fewer where rewriting them takes more than `tokens` tokens."""
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
    """How harmless edits and adversarial probes move the scores of decided pairs' responses.

    An edit is made to one of the two responses at a time. `flipped` is the share of pairs, of those it changes, whose
    order it turns round; `mean_change` the mean absolute change. A probe is made of the better response; `wins` is the
    share of prompts where it beats that, `mean_change` by how much on average. Changes are in standard deviations.
    Pairs fit the model; what a rule makes of one may not, and is left out: `too_long` says of how many pairs.
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


Case = dict[tuple[str, str], tuple[str, float]]  # text and score by rule and side, of those that fit


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
