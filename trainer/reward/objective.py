"""What a reward model is trained on: batch elements, targets of every head, and the loss with its tie parameters."""

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

BOOTSTRAP = 1_000_001  # a place in the run that no epoch has
# Adam moves a number by the learning rate a step, a reward, a sum over hidden features, by far more: with this the tie
# parameter keeps up with the differences it is compared to.
TIE_SPEED = 100


class Element(NamedTuple):
    """What a batch consists of: a pair, or a k-way ranking with every response once.

    Attributes:
        sequences: the distinct responses, all after one prompt.
        pairs: indices of its pairs.
        sides: for each of them, which sequences are chosen and rejected.
    """

    sequences: tuple[TokenSequence, ...]
    pairs: tuple[int, ...]
    sides: tuple[tuple[int, int], ...]


def elements_of(pairs: Sequence[Pair]) -> list[Element]:
    """Pairs that share a `ranking` together, in the order of their first pair; every other pair alone."""
    members: dict[tuple[str, int, int], list[int]] = {}
    for i, pair in enumerate(pairs):
        ranking = pair.row.ranking
        key = ("pair", i, 0) if ranking is None else ("ranking", ranking, pair.row.prompt_id)
        members.setdefault(key, []).append(i)
    elements = []
    for indices in members.values():
        # A long response cuts its prompt; responses of one element share what is left of it.
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
    """Elements ready for a forward pass; `sides` (2, N) are places among its S sequences of N pairs, chosen first."""

    packed: Packed
    pairs: list[int]
    sides: Tensor


def pack_elements(elements: Sequence[Element], pad_id: int, share: bool) -> PackedElements:
    sequences = [sequence for element in elements for sequence in element.sequences]
    pairs = [i for element in elements for i in element.pairs]
    return PackedElements(pack(sequences, pad_id, share), pairs, sides_of(elements))


def sides_of(elements: Sequence[Element]) -> Tensor:
    """Places (2, N) of the pairs' chosen and rejected among the sequences of all elements, in the elements' order."""
    sides, start = [], 0
    for element in elements:
        sides += [(start + chosen, start + rejected) for chosen, rejected in element.sides]
        start += len(element.sequences)
    return torch.tensor(sides, dtype=torch.long).view(-1, 2).T


def by_pair(values: Tensor, elements: Sequence[Element]) -> Tensor:
    """Values (2, N, ...) of pairs, chosen first, of those (S, ...) of the sequences of all elements."""
    order = [i for element in elements for i in element.pairs]
    pairs = values.new_empty(2, len(order), *values.shape[1:])
    pairs[:, order] = values[sides_of(elements)]
    return pairs


class Targets(NamedTuple):
    """What the labelers said of N pairs, for H heads.

    Attributes:
        p: (N, H, 3) probabilities of chosen better, rejected better, neither.
        margin: (N, H) what d must exceed.
        weight: (N, H) of the pair in the head's loss, bootstrap included; 0 where nothing is said of what it scores.
        share: (N, H) the same before the bootstrap; what a batch's loss is divided by.
    """

    p: Tensor
    margin: Tensor
    weight: Tensor
    share: Tensor

    def at(self, rows: Sequence[int], device: torch.device) -> "Targets":
        return Targets._make(tensor[list(rows)].to(device) for tensor in self)


def targets_of(pairs: Sequence[Pair], elements: Sequence[Element], spec: RewardSpec) -> Targets:
    """Targets of pairs; a ranking's pairs share one draw of the bootstrap."""
    p = torch.tensor(
        [
            [outcomes(pair, spec)] * spec.ensemble + [aspect_outcomes(pair, a, spec) for a in spec.aspects]
            for pair in pairs
        ]
    ).view(len(pairs), spec.ensemble + len(spec.aspects), 3)
    # Smoothing: a share of the labels is believed to be the wrong way round.
    p = (1 - spec.label_smoothing) * p + spec.label_smoothing * p[..., [1, 0, 2]]

    strengths = torch.tensor([winners_strength(pair) for pair in pairs])
    margin = torch.zeros(p.shape[:2])
    if spec.margin != "none":
        margin[:, : spec.ensemble] = bradley_terry.margin_of_strength(strengths, spec.margin)[:, None]

    rated = (p.sum(-1) > 0).float()
    share = rated * torch.tensor(weights_of(pairs))[:, None]
    bootstrap = torch.ones(len(elements), p.shape[1])
    if spec.ensemble > 1:
        # Exponential weights with mean 1: the Bayesian bootstrap (Rubin 1981), in which no pair is lost to a member.
        bootstrap[:, : spec.ensemble].exponential_(generator=generator_at(spec.seed, BOOTSTRAP))
    weight = share.clone()
    for number, element in enumerate(elements):
        weight[list(element.pairs)] *= bootstrap[number]
    return Targets(p, margin, weight, share)


def winners_strength(pair: Pair) -> float:
    """How much better the winner is said to be, in steps of the rubric; 0 without one, or if the others said more."""
    towards_chosen = pair.row.preference if pair.row.p_b >= 0.5 else -pair.row.preference
    return 0.0 if pair.tied else max(towards_chosen, 0.0)


def outcomes(pair: Pair, spec: RewardSpec) -> tuple[float, float, float]:
    """Probabilities that chosen is better, rejected is better, neither, as the spec's targets have them.

    Zeros where there is no winner for a hard label to name, and ties are no outcome.
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
    """The same of an aspect; ties count half each way. Zeros where it was not rated, or a hard label has no winner."""
    if aspect not in pair.row.aspects:
        return (0.0, 0.0, 0.0)
    p = pair.row.aspects[aspect]
    p = p if pair.row.p_b >= 0.5 else 1 - p
    if not spec.soft_labels:
        return (float(p > 0.5), float(p < 0.5), 0.0)
    return (p, 1 - p, 0.0)


class RewardObjective(nn.Module):
    """All that is trained: the reward model, and tie parameters for the score heads where ties are outcomes.

    Attributes:
        raw_ties: (E,) of each member, learned; 0 is where it starts, the value at which equal responses tie as often as
            pairs did. Empty where ties are no outcome.
    """

    tie_start: Tensor

    def __init__(self, model: RewardModel, ties: str, tie_share: float) -> None:
        super().__init__()
        self.model, self.ties = model, ties
        where, heads = model.offsets.device, len(score_heads(model.own_heads))
        # One parameter a member: the optimiser must leave those alone whose member is not in a step.
        count = 0 if ties == "half" else model.members
        self.raw_ties = nn.ParameterList(nn.Parameter(torch.zeros(heads, device=where)) for _ in range(count))
        self.register_buffer("tie_start", torch.tensor(tie_start(ties, tie_share), device=where), persistent=False)

    def forward(self, packed: Packed, member: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Rewards (S, H) of a member, (S, C) of all, and the member's ln theta (E,) of Rao and Kupper or ln nu (E,) of
        Davidson; None without either."""
        return self.model(packed, member), None if member is None else self.tie(member)

    def tie(self, member: int = 0) -> Tensor | None:
        """A member's tie parameters (E,), see `forward`."""
        if not self.raw_ties:
            return None
        raw = whole(self.raw_ties[member])
        # The gradient is that of the parameter itself: TIE_SPEED times as large, it would be most of the norm to clip.
        return self.tie_of(self.tie_start + raw + (TIE_SPEED - 1) * raw.detach())

    def tie_of(self, learned: Tensor) -> Tensor:
        """The tie parameters (E,) of numbers that may be anything."""
        return F.softplus(learned) if self.ties == "rao_kupper" else learned

    def raw_tie(self, learned: Tensor) -> Tensor:
        """The parameters (E,) in `raw_ties` that stand for these numbers."""
        return (learned - self.tie_start.to(learned)) / TIE_SPEED

    def all_ties(self) -> Tensor | None:
        """The tie parameters (M, E) of all members, on the CPU without gradient."""
        ties = [tie for member in range(self.model.members) if (tie := self.tie(member)) is not None]
        return torch.stack(ties).detach().cpu() if ties else None


def tie_start(ties: str, share: float) -> float:
    """The raw tie parameter at which responses of equal reward tie in this share of comparisons."""
    share = min(max(share, 0.01), 0.9)
    if ties == "rao_kupper":  # P(tie | d = 0) = tanh(n / 2), n the softplus of the parameter
        return math.log(math.expm1(2 * math.atanh(share)))
    return math.log(2 * share / (1 - share))  # P(tie | d = 0) = nu / (2 + nu)


def pair_losses(rewards: Tensor, targets: Targets, tie: Tensor | None, spec: RewardSpec) -> Tensor:
    """Losses (N, H) of pairs with rewards (2, N, H), chosen first; those not rated have one too, and weight 0."""
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
    """The loss () of pairs (N, H): weighted by (N, H) over a total (H,) of the whole batch, averaged over heads."""
    return (weight * losses / total.clamp(min=1e-12)).sum() / losses.shape[-1]
