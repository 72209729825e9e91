"""The uncertainty of heads on a frozen trunk: the posterior's variance with explicit matrices, and its penalty."""

from pathlib import Path

import pytest
import torch

from app.artifacts import ArtifactStore
from app.specs import ModelRef
from tests.trainer.conftest import separable_pairs, write_rows
from tests.trainer.test_frozen_trunk import spec_of, train
from trainer.reward.doubt import WITHIN, doubt
from trainer.reward.model import load_reward_model


# Fewer and more features than comparisons, and so many of both that only the largest directions are computed.
@pytest.mark.parametrize(("comparisons", "features", "rank"), [(8, 3, 3), (8, 40, 40), (1030, 1040, 30)])
def test_the_deviation_is_that_of_the_posterior_with_its_matrix_written_out(
    comparisons: int, features: int, rank: int
) -> None:
    """x' H^-1 x with H = ridge + sum of p (1 - p) d d', inverted explicitly."""
    generator = torch.Generator().manual_seed(3)
    responses = torch.randn(2 * comparisons, rank, generator=generator, dtype=torch.float64)
    if rank < features:
        responses = responses @ torch.randn(rank, features, generator=generator, dtype=torch.float64)
    sides = torch.arange(2 * comparisons).view(comparisons, 2).T
    margins = torch.randn(comparisons, generator=generator, dtype=torch.float64)
    scale, ridge = responses.std(0, correction=0) * features**0.5, 0.3
    found = doubt(responses, scale, sides, margins, ridge, 1.0)

    inputs = (responses - responses.mean(0)) / scale
    differences, p = inputs[sides[0]] - inputs[sides[1]], torch.sigmoid(margins)
    hessian = ridge * torch.eye(features, dtype=torch.float64)
    hessian += torch.einsum("n,nf,ng->fg", p * (1 - p), differences, differences)
    new = 3 * torch.randn(5, features, generator=generator, dtype=torch.float64)
    x = (new - responses.mean(0)) / scale
    wanted = torch.einsum("nf,fg,ng->n", x, torch.linalg.inv(hessian), x).sqrt()
    torch.testing.assert_close(found.deviation(new).double(), wanted, rtol=1e-4, atol=1e-5)


def test_only_what_lies_beyond_the_responses_that_were_read_costs_anything() -> None:
    generator = torch.Generator().manual_seed(4)
    responses = torch.randn(40, 6, generator=generator)
    sides = torch.arange(40).view(20, 2).T
    found = doubt(responses, responses.std(0) * 6**0.5, sides, torch.zeros(20), 1.0, 2.0)
    assert (found.cost(responses) > 0).sum() == round(40 * (1 - WITHIN))
    far = responses.mean(0) + 100 * torch.eye(6)
    beyond = found.deviation(far) - found.limit
    assert bool((beyond > 0).all())
    torch.testing.assert_close(found.cost(far), 2 * beyond)
    # Twice the distance from the centre means twice the uncertainty.
    middle = responses.mean(0)
    torch.testing.assert_close(found.deviation(middle + 2 * (far - middle)), 2 * found.deviation(far))


def test_a_doubting_reward_model_scores_alike_wherever_it_is_loaded(tmp_path: Path, tiny_ref: ModelRef) -> None:
    """Responses unlike the compared ones lose the doubt's penalty, on the scale of the rewards; others lose nothing."""
    rows = write_rows(tmp_path / "rows.jsonl", separable_pairs(40, 0))
    store, folders = ArtifactStore(tmp_path), {}
    for weight in (0.0, 5.0):
        folders[weight] = tmp_path / f"reward-{weight:g}"
        train(spec_of(tiny_ref, rows, doubt=weight), store, folders[weight])
    sure, _ = load_reward_model(folders[0.0])
    doubting, _ = load_reward_model(folders[5.0])
    assert sure.doubt is None
    assert doubting.doubt is not None
    features = torch.cat([doubting.doubt.center[None], doubting.doubt.center + 50 * doubting.doubt.scale[None]])
    cost = doubting._doubted(features)
    assert float(cost[0].abs().max()) == 0
    taken = doubting.doubt.cost(features)[1] * doubting.gains
    torch.testing.assert_close(cost[1], taken)
    assert bool((taken > 0).all())
    for one, other in zip(sure.scores, doubting.scores, strict=True):
        torch.testing.assert_close(one.weight, other.weight)
