"""The training objective of a reward model: batch elements, targets of every head, loss and tie parameters."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.specs import RewardSpec
from trainer.algorithms import bradley_terry
from trainer.batching.chat import TokenSequence
from trainer.batching.data import Pair, weights_of
from trainer.batching.packing import Packed, pack
from trainer.processes import generator_at
from trainer.reward.network import RewardModel, score_heads
from trainer.speed.sharding import whole

BOOTSTRAP = 1_000_001  # place for `generator_at` that no epoch number reaches
# In each step, Adam moves a parameter by the learning rate. A reward is a sum over hidden features and moves by far
# more. With this factor, the tie parameter keeps pace with the reward differences that it is compared to.
TIE_SPEED = 100


class Element(NamedTuple):
    """A batch element: a pair, or a k-way ranking with every response once.

    Attributes:
        sequences: the distinct responses, all after the same prompt.
        pairs: indices of the element's pairs.
        sides: for each pair, the indices of the chosen and the rejected sequence.
    """

    sequences: tuple[TokenSequence, ...]
    pairs: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]


def elements_of(pairs: Sequence[Pair]) -> list[Element]:
    """Group pairs with the same `ranking` into one element, ordered by first pair; other pairs are single elements."""
    members: dict[tuple[str, int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        ranking = pair.row.ranking
        key = ("pair", i, 0) if ranking is None else ("ranking", ranking, pair.row.prompt_id)
        members.setdefault(key, []).append(i)
    elements = []
    for indices in members.values():
        # The prompt is cut further for a long response; all responses of an element share the shortest cut.
        prompt = min((pairs[i].chosen.prompt for i in indices), key=len)
        numbers: dict[tuple[int, ...], int] = {}
        sides = [
            (
                numbers.setdefault(tuple(pairs[i].chosen.completion), len(numbers)),
                numbers.setdefault(tuple(pairs[i].rejected.completion), len(numbers)),
            )
            for i in indices
        ]
        sequences = tuple(TokenSequence(prompt, completion) for completion in numbers)
        elements.append(Element(sequences, tuple(indices), tuple(sides)))
    return elements


class PackedElements(NamedTuple):
    """Elements packed for a forward pass; `sides` (2, N) are the indices of N pairs' sequences, chosen first."""

    packed: Packed
    pairs: list[int]
    sides: Tensor


def pack_elements(elements: Sequence[Element], pad_id: int, share: bool) -> PackedElements:
    sequences = [sequence for element in elements for sequence in element.sequences]
    pairs = [i for element in elements for i in element.pairs]
    return PackedElements(pack(sequences, pad_id, share), pairs, sides_of(elements))


def sides_of(elements: Sequence[Element]) -> Tensor:
    """Return indices (2, N) of the pairs' chosen and rejected sequences, counted over all elements in their order."""
    sides, start = [], 0
    for element in elements:
        sides += [(start + chosen, start + rejected) for chosen, rejected in element.sides]
        start += len(element.sequences)
    return torch.tensor(sides, dtype=torch.long).view(-1, 2).T


def by_pair(values: Tensor, elements: Sequence[Element]) -> Tensor:
    """Arrange values (S, ...) of the sequences of all elements by pair: (2, N, ...), chosen first."""
    order = [i for element in elements for i in element.pairs]
    pairs = values.new_empty(2, len(order), *values.shape[1:])
    pairs[:, order] = values[sides_of(elements)]
    return pairs


class Targets(NamedTuple):
    """Targets of H heads from the judgments on N pairs.

    Attributes:
        p: (N, H, 3) probabilities of chosen better, rejected better, neither.
        margin: (N, H) margin that d must exceed.
        weight: (N, H) weight of the pair in the head's loss, including the bootstrap; 0 if the pair has no target for
            the head.
        share: (N, H) the weight before the bootstrap; a batch's loss is divided by its sum.
    """

    p: Tensor
    margin: Tensor
    weight: Tensor
    share: Tensor

    def at(self, rows: Sequence[int], device: torch.device) -> "Targets":
        return Targets._make(tensor[list(rows)].to(device) for tensor in self)


def targets_of(pairs: Sequence[Pair], elements: Sequence[Element], spec: RewardSpec) -> Targets:
    """Return the targets of pairs; a ranking's pairs share one draw of the bootstrap."""
    p = torch.tensor(
        [
            [outcomes(pair, spec)] * spec.ensemble + [aspect_outcomes(pair, a, spec) for a in spec.aspects]
            for pair in pairs
        ]
    ).view(len(pairs), spec.ensemble + len(spec.aspects), 3)
    # Label smoothing: assume that this share of the labels is swapped.
    p = (1 - spec.label_smoothing) * p + spec.label_smoothing * p[..., [1, 0, 2]]

    strengths = torch.tensor([winners_strength(pair) for pair in pairs])
    margin = torch.zeros(p.shape[:2])
    if spec.margin != "none":
        margin[:, : spec.ensemble] = bradley_terry.margin_of_strength(strengths, spec.margin)[:, None]

    rated = (p.sum(-1) > 0).float()
    share = rated * torch.tensor(weights_of(pairs))[:, None]
    bootstrap = torch.ones(len(elements), p.shape[1])
    if spec.ensemble > 1:
        # Exponential weights with mean 1: the Bayesian bootstrap (Rubin 1981), in which every member uses every pair.
        bootstrap[:, : spec.ensemble].exponential_(generator=generator_at(spec.seed, BOOTSTRAP))
    weight = share.clone()
    for number, element in enumerate(elements):
        weight[list(element.pairs)] *= bootstrap[number]
    return Targets(p, margin, weight, share)


def winners_strength(pair: Pair) -> float:
    """Return the winner's preference strength in steps of the rubric; 0 without one, or if it favors the other side."""
    towards_chosen = pair.row.preference if pair.row.p_b >= 0.5 else -pair.row.preference
    return 0.0 if pair.tied else max(towards_chosen, 0.0)


def outcomes(pair: Pair, spec: RewardSpec) -> tuple[float, float, float]:
    """Return the target probabilities of chosen better, rejected better and neither, according to the spec.

    All are 0 if labels are hard, there is no winner, and ties are not an outcome.
    """
    if not spec.soft_labels:
        return (0.0, 0.0, float(spec.ties != "half")) if pair.tied else (1.0, 0.0, 0.0)
    if spec.ties == "half":
        return (pair.p_chosen, 1 - pair.p_chosen, 0.0)
    tie = pair.row.p_tie
    three = (max(pair.p_chosen - tie / 2, 0.0), max(1 - pair.p_chosen - tie / 2, 0.0), tie)
    total = sum(three)
    return (three[0] / total, three[1] / total, three[2] / total)


def aspect_outcomes(pair: Pair, aspect: str, spec: RewardSpec) -> tuple[float, float, float]:
    """Return the target probabilities of an aspect, like `outcomes`; ties count half for each side.

    All are 0 if the aspect was not rated, or if labels are hard and there is no winner.
    """
    if aspect not in pair.row.aspects:
        return (0.0, 0.0, 0.0)
    p = pair.row.aspects[aspect]
    p = p if pair.row.p_b >= 0.5 else 1 - p
    if not spec.soft_labels:
        return (float(p > 0.5), float(p < 0.5), 0.0)
    return (p, 1 - p, 0.0)


class RewardObjective(nn.Module):
    """All trained modules: the reward model, and tie parameters for the score heads if ties are outcomes.

    Attributes:
        raw_ties: each member's trained parameters (E,), initially 0. At 0, equal responses tie as often as pairs do in
            the data. Empty if ties are not an outcome.
    """

    tie_start: Tensor

    def __init__(self, model: RewardModel, ties: str, tie_share: float) -> None:
        super().__init__()
        self.model, self.ties = model, ties
        where, heads = model.offsets.device, len(score_heads(model.own_heads))
        # One parameter per member, so that an optimiser step changes only the parameter of its own member.
        count = 0 if ties == "half" else model.members
        self.raw_ties = nn.ParameterList(nn.Parameter(torch.zeros(heads, device=where)) for _ in range(count))
        self.register_buffer("tie_start", torch.tensor(tie_start(ties, tie_share), device=where), persistent=False)

    def forward(self, packed: Packed, member: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return rewards and tie parameters.

        Rewards are (S, H) for one member and (S, C) for all. The member's tie parameters (E,) are ln theta (Rao and
        Kupper) or ln nu (Davidson); None without a member or a tie model.
        """
        return self.model(packed, member), None if member is None else self.tie(member)

    def tie(self, member: int = 0) -> Tensor | None:
        """Return a member's tie parameters (E,), see `forward`."""
        if not self.raw_ties:
            return None
        raw = whole(self.raw_ties[member])
        # The gradient passes unscaled. Multiplied by TIE_SPEED, it would dominate the norm that is clipped.
        return self.tie_of(self.tie_start + raw + (TIE_SPEED - 1) * raw.detach())

    def tie_of(self, learned: Tensor) -> Tensor:
        """Map unconstrained numbers (E,) to tie parameters (E,)."""
        return F.softplus(learned) if self.ties == "rao_kupper" else learned

    def raw_tie(self, learned: Tensor) -> Tensor:
        """Return the values (E,) of `raw_ties` that stand for these unconstrained numbers."""
        return (learned - self.tie_start.to(learned)) / TIE_SPEED

    def all_ties(self) -> Tensor | None:
        """Return the tie parameters (M, E) of all members, on the CPU without gradient; None without a tie model."""
        ties = [tie for member in range(self.model.members) if (tie := self.tie(member)) is not None]
        return torch.stack(ties).detach().cpu() if ties else None


def tie_start(ties: str, share: float) -> float:
    """Return the raw tie parameter for which responses of equal reward tie in this share of comparisons."""
    share = min(max(share, 0.01), 0.9)
    if ties == "rao_kupper":  # P(tie | d = 0) = tanh(n / 2), n the softplus of the parameter
        return math.log(math.expm1(2 * math.atanh(share)))
    return math.log(2 * share / (1 - share))  # P(tie | d = 0) = nu / (2 + nu)


def pair_losses(rewards: Tensor, targets: Targets, tie: Tensor | None, spec: RewardSpec) -> Tensor:
    """Return losses (N, H) for pairs with rewards (2, N, H), chosen first.

    Pairs without a target for a head also get a loss; its weight is 0.
    """
    chosen, rejected = rewards
    if tie is None:
        likelihood = bradley_terry.bradley_terry_loss(chosen, rejected, targets.p[..., 0], targets.margin)
    else:
        members = spec.ensemble
        with_ties = bradley_terry.rao_kupper_loss if spec.ties == "rao_kupper" else bradley_terry.davidson_loss
        d = (chosen - rejected - targets.margin)[:, :members]
        p_chosen, p_rejected, p_tie = targets.p[:, :members].unbind(-1)
        main = with_ties(d, p_chosen, p_rejected, p_tie, tie)
        aspects = bradley_terry.bradley_terry_loss(
            chosen[:, members:], rejected[:, members:], targets.p[:, members:, 0]
        )
        likelihood = torch.cat([main, aspects], -1)
    return likelihood + spec.centering * bradley_terry.centering_penalty(chosen, rejected)


def weighted_loss(losses: Tensor, weight: Tensor, total: Tensor) -> Tensor:
    """Average losses (N, H) to (): weights (N, H) divided by the whole batch's total (H,), then the mean over heads."""
    return (weight * losses / total.clamp(min=1e-12)).sum() / losses.shape[-1]
