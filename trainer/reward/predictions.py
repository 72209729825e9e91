"""Predictions of a reward model's members for comparisons, separately and combined, and metrics of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.specs import RewardSpec
from trainer.algorithms.bradley_terry import davidson_probabilities, rao_kupper_probabilities
from trainer.batching.data import Pair
from trainer.reward.cross_fitting import Folds
from trainer.reward.network import RewardModel, score_heads, score_of, shares_of
from trainer.reward.objective import Element, elements_of, outcomes, pair_losses, targets_of
from trainer.reward.report import Figures, Measured, decided_logit, split_figures

Ties = Tensor | None
"""Tie parameters (M, E) of all members' score heads."""


class Said(NamedTuple):
    """Predictions of one member, or of all members combined, for N pairs, on Bradley-Terry's scale.

    Attributes:
        rewards: (2, N, H), chosen first.
        shares: (N, H) factors for the score, see `shares_of`.
        ties: (N, E) tie parameters of the score heads; None if ties are not an outcome.
    """

    pairs: list[Pair]
    rewards: Tensor
    shares: Tensor
    ties: Tensor | None

    def at(self, rows: Sequence[int]) -> "Said":
        ties = None if self.ties is None else self.ties[list(rows)]
        return Said([self.pairs[i] for i in rows], self.rewards[:, list(rows)], self.shares[list(rows)], ties)

    def scores(self, spec: RewardSpec) -> Tensor:
        """Return the scores (2, N) of the responses: the mean over the score heads."""
        return (self.rewards * self.shares)[..., : spec.ensemble].mean(-1)

    def logits(self, spec: RewardSpec) -> Tensor:
        """Return the log-odds (N,) that chosen is better, given that there is a winner."""
        scores = self.scores(spec)
        tie = None if self.ties is None else (self.ties * self.shares[:, : spec.ensemble]).mean(-1)
        return decided_logit(scores[0] - scores[1], spec.ties, tie)


def said_by(model: RewardModel, member: int, pairs: list[Pair], rewards: Tensor, deviation: Tensor, ties: Ties) -> Said:
    """Return a member's predictions from its rewards (2, N, H) and the standard deviations (C,) of all columns."""
    shares = shares_of(deviation[model.columns(member)], model.own_heads)
    tie = None if ties is None else ties[member].expand(len(pairs), -1)
    return Said(pairs, rewards, shares.expand(len(pairs), -1), tie)


def said_together(model: RewardModel, pairs: list[Pair], rewards: Tensor, deviation: Tensor, ties: Ties) -> Said:
    """Combine all members' rewards (2, N, C), with standard deviations (C,), as in the deployed score."""
    rewards, together = model.together(rewards, deviation)
    tie = None
    if ties is not None:
        own = len(model.own_heads)
        columns = ties.new_zeros(model.members, own)
        columns[:, score_heads(model.own_heads)] = ties
        tie = model.together(columns.flatten(), deviation)[0][score_heads(model.own_heads)].expand(len(pairs), -1)
    return Said(pairs, rewards, shares_of(together, model.own_heads).expand(len(pairs), -1), tie)


def said_by_members(
    model: RewardModel,
    folds: Folds,
    pairs: Sequence[Pair],
    elements: Sequence[Element],
    rewards: Tensor,
    deviation: Tensor,
    ties: Ties,
    *,
    trained: bool,
) -> list[Said]:
    """Return each member's predictions for the training comparisons that it trained on, or for its held-out fold.

    Args:
        rewards: (2, N, C) of all training pairs.
        deviation: (C,) standard deviations of the columns.
        trained: True for the comparisons that the member trained on.
    """
    parts = []
    for member in range(folds.members):
        numbers = folds.trained(member, len(elements)) if trained else folds.held(member)
        rows = [i for number in numbers for i in elements[number].pairs]
        own = rewards[:, rows][..., model.columns(member)]
        parts.append(said_by(model, member, [pairs[i] for i in rows], own, deviation, ties))
    return parts


def joined(parts: Sequence[Said]) -> Said:
    """Concatenate the predictions of all parts, in their order."""
    pairs = [pair for part in parts for pair in part.pairs]
    ties = None if parts[0].ties is None else torch.cat([part.ties for part in parts if part.ties is not None])
    return Said(pairs, torch.cat([part.rewards for part in parts], 1), torch.cat([p.shares for p in parts]), ties)


def of_people(said: Said) -> Said:
    """Keep only pairs that people judged, because a model should not be measured by an AI judge's verdicts."""
    return said.at([i for i, pair in enumerate(said.pairs) if pair.row.source == "people"])


def measured(spec: RewardSpec, said: Said) -> Measured:
    """Measure the predictions for pairs with a winner by people."""
    said = of_people(said)
    decided = said.at([i for i, pair in enumerate(said.pairs) if not pair.tied])
    targets = targets_of(decided.pairs, elements_of(decided.pairs), spec)
    losses = pair_losses(decided.rewards, targets, decided.ties, spec)[:, : spec.ensemble].mean(-1)
    return Measured(decided.pairs, decided.scores(spec), losses, decided.logits(spec))


def tie_share(spec: RewardSpec, pairs: Sequence[Pair]) -> float:
    """Return the share of ties among the spec's labels; with hard labels, a probable tie counts fully."""
    return sum(outcomes(pair, spec)[2] for pair in pairs) / len(pairs)


def tie_figures(spec: RewardSpec, ties: Tensor | None, said: Said) -> Figures | None:
    """Return the tie model, its fitted parameters (M, E), and the predicted and observed shares of ties.

    None if ties count half for each side.
    """
    if ties is None or said.ties is None:
        return None
    probabilities = rao_kupper_probabilities if spec.ties == "rao_kupper" else davidson_probabilities
    d = (said.rewards[0] - said.rewards[1])[:, : spec.ensemble]
    return {
        "model": spec.ties,
        "parameter": "ln theta" if spec.ties == "rao_kupper" else "ln nu",
        "values": ties.flatten().tolist(),
        "predicted": float(probabilities(d, said.ties)[..., 2].mean()) if said.pairs else None,
        "observed": tie_share(spec, said.pairs) if said.pairs else None,
    }


def member_figures(
    spec: RewardSpec,
    elements: Sequence[Element],
    folds: Folds,
    out_of_fold: Sequence[Said],
    on_heldout: Sequence[Said],
) -> list[Figures]:
    """Return each member's number of training comparisons and its figures on unseen ones; empty for a single member."""
    figures = []
    for member in range(folds.members if folds.of else 0):
        unseen = split_figures(measured(spec, joined([out_of_fold[member], on_heldout[member]])))
        trained = sum(len(elements[number].pairs) for number in folds.trained(member, len(elements)))
        said = {"unseen": unseen["pairs"], "accuracy": unseen["accuracy"], "loss": unseen["loss"]}
        figures.append({"member": member, "trained_on": trained} | said)
    return figures


def disagreement(model: RewardModel, rewards: Tensor) -> float | None:
    """Return the mean standard deviation of the score among members, for normalised rewards (..., C).

    None for a single member.
    """
    if model.members == 1:
        return None
    each = [score_of(rewards[..., model.columns(member)], model.own_heads) for member in range(model.members)]
    return float(torch.stack(each).std(0).mean())
