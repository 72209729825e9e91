"""Fit heads on a frozen trunk exactly: ridge regression with the reward model's loss instead of squared errors.

A few hundred comparisons cannot teach a trunk much that it does not know, but its layers hold much of what people care
about (Alain & Bengio 2016). The objective is the sum of the comparisons' losses and of ridge / 2 times each head's
squared norm. It has one minimum, so the fit needs no learning rate and no epochs. Features are scaled to standard
deviation 1 / sqrt(F), so that a ridge means the same for every model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from app.specs import RewardSpec
from trainer.processes import generator_at
from trainer.reward.cross_fitting import Folds
from trainer.reward.doubt import Doubt, doubt
from trainer.reward.network import RewardModel
from trainer.reward.objective import Element, RewardObjective, Targets, by_pair, pair_losses, sides_of

MOST = 5000  # maximum elements in the fit: more would take gigabytes, and are enough to train the trunk instead
SUBSET = 1_000_004  # place for `generator_at` that no epoch number reaches
ITERATIONS = 200


def subset(elements: int, seed: int) -> list[int]:
    """Return the elements to fit heads to: all of them, or 5000 drawn at random."""
    order = torch.randperm(elements, generator=generator_at(seed, SUBSET)).tolist()
    return sorted(order[:MOST])


def scale_of(features: Tensor) -> Tensor:
    """Return the scale (F,) that gives features (S, F), divided by it, the standard deviation 1 / sqrt(F)."""
    return features.std(0, correction=0).clamp(min=1e-6) * features.shape[1] ** 0.5


def fit(
    objective: RewardObjective,
    spec: RewardSpec,
    folds: Folds,
    elements: Sequence[Element],
    numbers: Sequence[int],
    features: Tensor,
    targets: Sequence[Targets],
) -> None:
    """Give each member the heads, and tie parameters, that minimise its loss on what it trains on.

    Args:
        numbers: indices of the `elements` in the fit.
        features: (S, F) of the sequences of these elements, in their order.
        targets: targets of all pairs, one item per member.
    """
    scale = scale_of(features)
    inputs = ((features - features.mean(0)) / scale).double()
    rotation = None
    if len(inputs) < inputs.shape[1]:  # the optimal heads lie in the span of the inputs: search only there
        rotation, triangle = torch.linalg.qr(inputs.T)
        inputs = triangle.T
    chosen = [elements[number] for number in numbers]
    # `by_pair` counts the pairs of the chosen elements from 0; `rows` says which of all pairs these are.
    rows = sorted(i for element in chosen for i in element.pairs)
    place = {row: i for i, row in enumerate(rows)}
    chosen = [element._replace(pairs=tuple(place[i] for i in element.pairs)) for element in chosen]
    for member in range(folds.members):
        own = set(folds.trained(member, len(elements)))
        counts = torch.zeros(len(rows), 1)
        for number, element in zip(numbers, chosen, strict=True):
            counts[list(element.pairs)] = float(number in own)
        of_member = targets[member].at(rows, torch.device("cpu"))
        of_member = Targets._make(value.double() for value in of_member._replace(weight=of_member.weight * counts))
        weight, tie = _minimum(objective, spec, chosen, inputs, of_member)
        weight = weight if rotation is None else rotation @ weight
        with torch.no_grad():
            objective.model.scores[member].weight.copy_((weight / scale[:, None]).T)
            if tie is not None:
                objective.raw_ties[member].copy_(objective.raw_tie(tie))


@torch.no_grad()
def doubt_of(
    model: RewardModel, spec: RewardSpec, elements: Sequence[Element], numbers: Sequence[int], features: Tensor
) -> Doubt:
    """Return the uncertainty penalty of the fitted heads; arguments as for `fit`. Call it after normalising rewards."""
    chosen = [elements[number] for number in numbers]
    sides = sides_of(chosen)
    heads = model.score_heads
    rewards = torch.cat([head(features.to(head.weight)) for head in model.scores], -1)[:, heads] / model.gains[heads]
    first, second = rewards.mean(-1).cpu()[sides]
    found = doubt(features.cpu(), scale_of(features).cpu(), sides, first - second, spec.ridge, spec.doubt)
    return Doubt._make(value.to(model.offsets.device) for value in found)


def _minimum(
    objective: RewardObjective, spec: RewardSpec, elements: Sequence[Element], inputs: Tensor, targets: Targets
) -> tuple[Tensor, Tensor | None]:
    """Return the heads (F, H) and tie parameters (E,), if any, that minimise one member's loss."""
    heads = torch.zeros(inputs.shape[1], targets.weight.shape[1], dtype=torch.float64, requires_grad=True)
    tie = objective.tie_start.double().cpu().repeat(spec.ensemble).requires_grad_() if objective.raw_ties else None
    searched = [heads] if tie is None else [heads, tie]
    search = torch.optim.LBFGS(
        searched, max_iter=ITERATIONS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        rewards = by_pair(inputs @ heads, elements)
        losses = pair_losses(rewards, targets, None if tie is None else objective.tie_of(tie), spec)
        total = (targets.weight * losses).sum() + spec.ridge / 2 * heads.square().sum()
        total.backward()
        return total

    search.step(loss)
    return heads.detach(), None if tie is None else tie.detach()
