"""The preference family against hand arithmetic, the papers' stated properties, and the slow reference."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from app.specs import PreferenceLoss as SpecLoss
from tests.trainer.reference import pair_loss, slope
from trainer.algorithms.preference import (
    PairLogps,
    PreferenceLoss,
    average,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    preference_loss,
    preference_rewards,
    robust_dpo_loss,
    simpo_loss,
)

LN3 = math.log(3)

# Eight pairs: odd lengths, a single token, equal completions, an empty completion, and extreme values on both sides.
POLICY = [
    [-4.0, -31.7, -0.9, -12.5, -700.0, -55.5, -3.25, -2.0],
    [-9.0, -28.1, -14.2, -12.5, -90.0, -300.0, -6.5, -7.5],
]
REFERENCE = [
    [-5.0, -29.9, -1.4, -11.0, -600.0, -80.0, -3.25, -2.5],
    [-7.0, -28.4, -12.2, -13.0, -95.0, -210.0, -6.5, -8.0],
]
LENGTHS = [[3, 17, 1, 6, 250, 31, 2, 1], [5, 11, 9, 6, 41, 140, 4, 3]]

CASES: dict[str, tuple[PreferenceLoss, dict[str, Any], dict[str, Any]]] = {
    # name in the reference: our name, our parameters, its parameters
    "dpo": ("dpo", {}, {}),
    "dpo, smoothed": ("dpo", {"label_smoothing": 0.2}, {"e": 0.2}),
    "robust": ("robust", {"label_smoothing": 0.2}, {"e": 0.2}),
    "ipo": ("ipo", {}, {}),
    "ipo_average": ("ipo", {"length_average": True}, {}),
    "hinge": ("hinge", {}, {}),
    "kto": (
        "kto",
        {"kto_z": torch.tensor(0.7, dtype=torch.float64), "desirable_weight": 1.33, "undesirable_weight": 0.75},
        {"z": 0.7, "weights": (1.33, 0.75)},
    ),
    "orpo": ("orpo", {}, {}),
    "simpo": ("simpo", {"gamma": 0.8}, {"gamma": 0.8}),
}


def pairs(dtype: torch.dtype = torch.float64) -> PairLogps:
    return PairLogps(torch.tensor(POLICY, dtype=dtype), torch.tensor(REFERENCE, dtype=dtype), torch.tensor(LENGTHS))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_equal_the_slow_reference(case: str) -> None:
    name, ours, theirs = CASES[case]
    batch = pairs()
    batch.policy.requires_grad_()
    losses = preference_loss(name, batch, beta=0.3, **ours)
    losses.sum().backward()
    assert batch.policy.grad is not None
    for i in range(8):
        reference = (REFERENCE[0][i], REFERENCE[1][i])
        lengths = (LENGTHS[0][i], LENGTHS[1][i])

        def loss(
            chosen: float,
            rejected: float,
            reference: tuple[float, float] = reference,
            lengths: tuple[int, int] = lengths,
        ) -> float:
            return pair_loss(case.split(",")[0], (chosen, rejected), reference, lengths, 0.3, **theirs)

        chosen, rejected = POLICY[0][i], POLICY[1][i]
        assert losses[i].item() == pytest.approx(loss(chosen, rejected), rel=1e-9, abs=1e-12)
        by_chosen = slope(lambda x, rejected=rejected, loss=loss: loss(x, rejected), chosen)
        by_rejected = slope(lambda x, chosen=chosen, loss=loss: loss(chosen, x), rejected)
        assert batch.policy.grad[:, i].tolist() == pytest.approx([by_chosen, by_rejected], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_float32_is_finite_and_near_and_rows_do_not_touch(case: str) -> None:
    name, ours, _ = CASES[case]
    exact = preference_loss(name, pairs(), beta=0.3, **ours)
    single = pairs(torch.float32)
    single.policy.requires_grad_()
    losses = preference_loss(name, single, beta=0.3, **ours)
    losses.sum().backward()
    torch.testing.assert_close(losses.double(), exact, rtol=2e-5, atol=1e-5)
    assert single.policy.grad is not None
    assert single.policy.grad.isfinite().all()
    for i in range(8):
        alone = PairLogps(*(tensor[:, i : i + 1] for tensor in single[:3]))
        torch.testing.assert_close(preference_loss(name, alone, beta=0.3, **ours), losses[i : i + 1])


def test_every_loss_a_run_can_name_is_here_and_tested() -> None:
    assert set(get_args(SpecLoss)) == set(get_args(PreferenceLoss)) == {name for name, _, _ in CASES.values()}


@pytest.mark.parametrize("name", get_args(PreferenceLoss))
def test_an_empty_completion_gives_finite_losses_and_gradients(name: PreferenceLoss) -> None:
    for empty in (0, 1):
        policy = torch.tensor([[-3.0], [-4.0]])
        policy[empty] = 0
        lengths = torch.tensor([[3], [5]])
        lengths[empty] = 0
        policy.requires_grad_()
        loss = preference_loss(
            name, PairLogps(policy, torch.full((2, 1), -0.5), lengths), beta=0.1, kto_z=torch.zeros(()), nll_weight=1.0
        )
        loss.sum().backward()
        assert loss.isfinite().all()
        assert policy.grad is not None
        assert policy.grad.isfinite().all()


# ---- the margin ------------------------------------------------------------------------------------------------------


def test_margin_is_relative_to_the_reference() -> None:
    pairs = PairLogps(torch.tensor([[-4.0], [-9.0]]), torch.tensor([[-5.0], [-7.0]]), torch.ones(2, 1))
    h = (-4 + 9) - (-5 + 7)
    assert preference_loss("hinge", pairs, beta=0.1).item() == pytest.approx(1 - 0.1 * h)


def test_dpo_loss_is_log_2_where_the_policy_is_its_reference() -> None:
    assert dpo_loss(torch.zeros(1), beta=0.1).item() == pytest.approx(math.log(2))


def test_dpo_loss_and_gradient_by_hand() -> None:
    h = torch.tensor([2 * LN3], requires_grad=True)
    loss = dpo_loss(h, beta=0.5)
    assert loss.item() == pytest.approx(-math.log(3 / 4))
    loss.sum().backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(-0.5 * (1 - 3 / 4))  # -beta (1 - s(beta h)), DPO section 4


def test_conservative_dpo_by_hand() -> None:
    loss = dpo_loss(torch.tensor([LN3]), beta=1.0, label_smoothing=0.1)
    assert loss.item() == pytest.approx(-(0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4)))


def test_conservative_dpo_is_stationary_at_the_log_odds_of_its_noise() -> None:
    # One rate per row: 0.1 for the first, 0.25 for the second.
    h = torch.tensor([math.log(0.9 / 0.1) / 0.5, math.log(0.75 / 0.25) / 0.5], requires_grad=True)
    dpo_loss(h, beta=0.5, label_smoothing=torch.tensor([0.1, 0.25])).sum().backward()
    assert h.grad is not None
    assert h.grad.tolist() == pytest.approx([0, 0], abs=1e-7)


def test_a_soft_label_is_the_mix_of_both_labels_and_smoothing_flips_it_once_more() -> None:
    batch = pairs()._replace(doubts=torch.tensor([0.0, 0.25] * 4, dtype=torch.float64))
    for smoothing, rates in ((0.0, (0.0, 0.25)), (0.1, (0.1, 0.25 * 0.9 + 0.75 * 0.1))):
        losses = preference_loss("dpo", batch, beta=0.3, label_smoothing=smoothing)
        for i, loss in enumerate(losses.tolist()):
            args = [(row[0][i], row[1][i]) for row in (POLICY, REFERENCE, LENGTHS)]
            assert loss == pytest.approx(pair_loss("dpo", *args, 0.3, e=rates[i % 2]), rel=1e-9)


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    # Chowdhury et al. 2024, lemma 3.1: the mean over labels flipped at rate e is the loss of the clean ones.
    h, e = torch.tensor([1.7]), 0.3
    seen = (1 - e) * robust_dpo_loss(h, 0.5, e) + e * robust_dpo_loss(-h, 0.5, e)
    assert seen.item() == pytest.approx(dpo_loss(h, 0.5).item())


def test_ipo_wants_a_margin_of_half_the_inverse_of_tau() -> None:
    assert ipo_loss(torch.tensor([5.0, 4.0, 7.0]), tau=0.1).tolist() == [0, 1, 4]


def test_hinge_is_flat_beyond_its_margin() -> None:
    h = torch.tensor([11.0, 9.0, -10.0], requires_grad=True)
    losses = hinge_loss(h, beta=0.1)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([0, 0.1, 2])
    assert h.grad is not None
    assert h.grad.tolist() == pytest.approx([0, -0.1, -0.1])


# ---- losses of their own ---------------------------------------------------------------------------------------------


def test_kto_reference_point_is_a_mean_that_is_never_negative_and_not_learned() -> None:
    ratios = torch.tensor([1.0, 3.0], requires_grad=True)
    assert kto_reference_point(ratios).item() == 2
    assert not kto_reference_point(ratios).requires_grad
    assert kto_reference_point(torch.tensor([-1.0, -3.0])).item() == 0


def test_kto_of_thumbs_by_hand() -> None:
    # s(ln 3) = 3/4: a liked response LN3 above z loses 1/4 l_D, a disliked one 3/4 l_U; below z, the reverse.
    ratios, liked = torch.tensor([LN3, LN3, -LN3, -LN3]) + 1, torch.tensor([True, False, True, False])
    losses = kto_loss(ratios, liked, torch.tensor(1.0), 1.0, desirable_weight=2, undesirable_weight=10)
    assert losses.tolist() == pytest.approx([0.5, 7.5, 1.5, 2.5])


def test_kto_of_a_pair_is_the_mean_of_its_two_thumbs() -> None:
    batch, z = pairs(), torch.tensor(0.4, dtype=torch.float64)
    expected: list[Tensor] = []
    for row, liked in zip(batch.log_ratios, (True, False), strict=True):
        expected.append(kto_loss(row, torch.full((8,), liked), z, 0.1, 1.5, 0.5))
    loss = preference_loss("kto", batch, beta=0.1, kto_z=z, desirable_weight=1.5, undesirable_weight=0.5)
    torch.testing.assert_close(loss, (expected[0] + expected[1]) / 2)


def test_orpo_by_hand() -> None:
    # One token each: P(c) = 3/4 has the odds 3, and P(r) = 1/2 the odds 1. -log(3/4) - lambda log s(ln 3).
    loss = orpo_loss(torch.tensor([3 / 4]).log(), torch.tensor([1 / 2]).log(), 0.5)
    assert loss.item() == pytest.approx(1.5 * -math.log(3 / 4))


def test_orpo_keeps_its_digits_where_tokens_are_certain_or_hopeless() -> None:
    # log odds(e^x) = x - log(1 - e^x): -log(-x) for x near 0, x itself far out.
    for x, expected in ((-1e-5, math.log(1e5)), (-60.0, -60.0)):
        odds = orpo_loss(torch.tensor([math.log(0.5)]), torch.tensor([x]), 1.0) + math.log(0.5)
        assert odds.item() == pytest.approx(math.log1p(math.exp(expected)), rel=1e-4, abs=1e-12)


def test_simpo_by_hand() -> None:
    # beta (avg_c - avg_r) - gamma = 2 (-1 + 2) - (2 - ln 3)
    loss = simpo_loss(torch.tensor([-1.0]), torch.tensor([-2.0]), 2.0, 2 - LN3)
    assert loss.item() == pytest.approx(-math.log(3 / 4))


def test_nll_is_a_mean_over_tokens_of_the_chosen_completion() -> None:
    batch = PairLogps(torch.tensor([[-6.0], [-50.0]]), torch.tensor([[-6.0], [-50.0]]), torch.tensor([[3], [10]]))
    assert preference_loss("dpo", batch, beta=0.1, nll_weight=0.5).item() == pytest.approx(math.log(2) + 0.5 * 2)


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_rewards_are_what_the_loss_ranks_by() -> None:
    batch = PairLogps(
        torch.tensor([[-6.0], [-4.0]], requires_grad=True), torch.tensor([[-5.0], [-7.0]]), torch.tensor([[3], [1]])
    )
    assert preference_rewards("dpo", batch, 0.5).flatten().tolist() == [-0.5, 1.5]
    assert preference_rewards("simpo", batch._replace(reference=None), 0.5).flatten().tolist() == [-1, -2]
    assert not preference_rewards("orpo", batch, 0.5).requires_grad


def test_an_average_over_no_tokens_is_0() -> None:
    assert average(torch.tensor([-6.0, 0.0]), torch.tensor([3, 0])).tolist() == [-2, 0]


def test_what_a_loss_needs_is_named() -> None:
    batch = pairs()._replace(reference=None)
    with pytest.raises(ValueError, match="reference's log-probs"):
        preference_loss("dpo", batch, beta=0.1)
    with pytest.raises(ValueError, match="kto_z"):
        preference_loss("kto", pairs(), beta=0.1)
    assert preference_loss("simpo", batch, beta=0.1).shape == (8,)
