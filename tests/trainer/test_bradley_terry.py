"""Bradley-Terry, ties and ensembles against hand arithmetic, the slow reference and central differences."""

import math

import pytest
import torch

from tests.trainer.reference import slope, tie_probabilities
from trainer.algorithms.bradley_terry import (
    bradley_terry_loss,
    centering_penalty,
    davidson_loss,
    davidson_probabilities,
    ensemble_score,
    margin_of_strength,
    rao_kupper_loss,
    rao_kupper_probabilities,
)

LN3 = math.log(3)  # s(ln 3) = 3/4


def test_loss_is_the_negative_log_probability_of_the_choice() -> None:
    loss = bradley_terry_loss(torch.tensor([LN3, 5.0]), torch.tensor([0.0, 5.0]))
    assert loss.tolist() == pytest.approx([-math.log(3 / 4), math.log(2)])


def test_soft_labels_weigh_both_outcomes() -> None:
    loss = bradley_terry_loss(torch.tensor([LN3]), torch.tensor([0.0]), p_chosen=torch.tensor([2 / 3]))
    assert loss.item() == pytest.approx(-(2 / 3 * math.log(3 / 4) + 1 / 3 * math.log(1 / 4)))


def test_soft_label_gradient_is_probability_minus_label() -> None:
    chosen = torch.tensor([LN3], requires_grad=True)
    bradley_terry_loss(chosen, torch.tensor([0.0]), p_chosen=torch.tensor([0.9])).sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(3 / 4 - 0.9)


def test_a_tie_is_best_at_no_difference() -> None:
    half = torch.tensor([0.5])
    losses = [bradley_terry_loss(torch.tensor([d]), torch.tensor([0.0]), half).item() for d in (-1.0, 0.0, 1.0)]
    assert losses[1] == pytest.approx(math.log(2))
    assert losses[0] == pytest.approx(losses[2])
    assert losses[0] > losses[1]


def test_margin_is_what_the_difference_must_exceed() -> None:
    loss = bradley_terry_loss(torch.tensor([1.0 + LN3]), torch.tensor([0.0]), margin=torch.tensor([1.0]))
    assert loss.item() == pytest.approx(-math.log(3 / 4))


def test_loss_is_finite_far_out() -> None:
    assert bradley_terry_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


def test_centering_penalty() -> None:
    assert centering_penalty(torch.tensor([2.0]), torch.tensor([-0.5])).item() == 2.25


def test_margins_are_llama_2s_tables() -> None:
    strengths = torch.tensor([3.0, 2.0, 1.0, 0.0, 1.5])
    assert margin_of_strength(strengths, "large").tolist() == [3, 2, 1, 0, 1.5]
    assert margin_of_strength(strengths, "small").tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0, 1 / 2])


# ---- ties ------------------------------------------------------------------------------------------------------------

TIES = {
    "rao_kupper": (rao_kupper_probabilities, rao_kupper_loss, 0.6),
    "davidson": (davidson_probabilities, davidson_loss, -0.4),
}


@pytest.mark.parametrize("kind", TIES)
def test_tie_probabilities_are_the_papers(kind: str) -> None:
    probabilities, _, parameter = TIES[kind]
    d = torch.tensor([-20.0, -3.0, -0.5, 0.0, 1.25, 6.0, 20.0], dtype=torch.float64)
    ours = probabilities(d, torch.tensor(parameter, dtype=torch.float64))
    for row, x in zip(ours.tolist(), d.tolist(), strict=True):
        assert row == pytest.approx(tie_probabilities(kind, x, parameter), rel=1e-9, abs=1e-15)
    torch.testing.assert_close(ours.sum(-1), torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("kind", TIES)
def test_tie_losses_and_gradients_equal_the_slow_reference(kind: str) -> None:
    _, loss, parameter = TIES[kind]
    posterior = (0.5, 0.2, 0.3)

    def reference(d: float, parameter: float) -> float:
        return -sum(p * math.log(q) for p, q in zip(posterior, tie_probabilities(kind, d, parameter), strict=True))

    ds = [-3.0, 0.0, 0.4, 7.0]
    d = torch.tensor(ds, dtype=torch.float64, requires_grad=True)
    learned = torch.tensor(parameter, dtype=torch.float64, requires_grad=True)
    p_chosen, p_rejected, p_tie = (torch.full((4,), p, dtype=torch.float64) for p in posterior)
    losses = loss(d, p_chosen, p_rejected, p_tie, learned)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([reference(x, parameter) for x in ds])
    assert d.grad is not None
    assert d.grad.tolist() == pytest.approx(
        [slope(lambda x: reference(x, parameter), x) for x in ds], rel=1e-6, abs=1e-9
    )
    assert learned.grad is not None
    expected = sum(slope(lambda n, x=x: reference(x, n), parameter) for x in ds)
    assert learned.grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", TIES)
def test_tie_losses_are_finite_far_out_in_float32(kind: str) -> None:
    _, loss, _ = TIES[kind]
    for parameter in (1e-12, 0.5, 30.0):
        d = torch.tensor([-80.0, 0.0, 80.0], requires_grad=True)
        learned = torch.tensor(parameter, requires_grad=True)
        third = torch.full((3,), 1 / 3)
        losses = loss(d, third, third, third, learned)
        losses.sum().backward()
        assert losses.isfinite().all()
        assert d.grad is not None
        assert d.grad.isfinite().all()
        assert learned.grad is not None
        assert learned.grad.isfinite()
        # It is certain that the one with 80 more is better. So only the two other outcomes have a loss.
        certain = loss(d.detach(), (d > 0).float(), (d < 0).float(), (d == 0).float(), torch.tensor(0.5))
        assert certain[[0, 2]].abs().max() < 1e-6


def test_davidson_without_ties_is_bradley_terry() -> None:
    d = torch.linspace(-4, 4, 9)
    chosen, rejected, _ = davidson_probabilities(d, torch.tensor(0.7)).unbind(-1)
    torch.testing.assert_close(chosen / (chosen + rejected), torch.sigmoid(d))


@pytest.mark.parametrize("kind", TIES)
def test_the_learned_parameter_finds_the_share_of_ties(kind: str) -> None:
    # The rewards are equal and 40% are ties: the likelihood is highest at P(tie | d = 0) = 0.4.
    probabilities, loss, _ = TIES[kind]
    raw = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.Adam([raw], lr=0.1)
    d, ones = torch.zeros(1), torch.ones(1)

    def parameter() -> torch.Tensor:
        return torch.nn.functional.softplus(raw) if kind == "rao_kupper" else raw

    for _ in range(200):
        optimiser.zero_grad()
        loss(d, 0.3 * ones, 0.3 * ones, 0.4 * ones, parameter()).sum().backward()
        optimiser.step()
    assert probabilities(d, parameter().detach())[0].tolist() == pytest.approx([0.3, 0.3, 0.4], abs=1e-3)


# ---- ensembles -------------------------------------------------------------------------------------------------------


def test_ensemble_scores() -> None:
    rewards = torch.tensor([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]])
    assert ensemble_score(rewards, "mean").tolist() == [3, 2]
    assert ensemble_score(rewards, "min").tolist() == [1, 2]
    # variance (4 + 0 + 4) / 3 over the members, not corrected (Coste et al. 2023)
    assert ensemble_score(rewards, "mean_minus_variance", 0.5).tolist() == pytest.approx([3 - 0.5 * 8 / 3, 2])
    one = torch.tensor([[1.5], [-2.0]])
    for kind in ("mean", "min", "mean_minus_variance"):
        assert ensemble_score(one, kind).tolist() == [1.5, -2.0]
