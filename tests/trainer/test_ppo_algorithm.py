"""PPO's formulas against hand arithmetic and the slow reference, and PPO as a whole on a problem with known optimum."""

import json
import math
import statistics
from dataclasses import asdict

import pytest
import torch

from tests.trainer import reference as slow
from trainer.algorithms.gae import gae
from trainer.algorithms.kl import KLController, k1
from trainer.algorithms.masked import masked_mean, masked_var, masked_whiten
from trainer.algorithms.ppo import (
    RunningScale,
    clip_scores,
    explained_variance,
    penalise_unfinished,
    policy_loss,
    token_rewards,
    value_loss,
)

VALID = torch.tensor([[True, True, True], [True, False, False]])


def test_score_lies_on_the_last_valid_token_and_kl_on_every_one() -> None:
    logps = torch.tensor([[-1.0, -2, -3], [-4, 50, 60]])
    reference = torch.tensor([[-1.5, -2, -2], [-3, 70, 80]])
    rewards, non_score = token_rewards(torch.tensor([10.0, 20]), logps, reference, VALID, beta=0.1)
    # -0.1 * [0.5, 0, -1] and -0.1 * [-1]; padding gets nothing
    torch.testing.assert_close(non_score, torch.tensor([[-0.05, 0, 0.1], [0.1, 0, 0]]))
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 0, 10.1], [20.1, 0, 0]]))


def test_penalty_for_missing_eos_is_subtracted() -> None:
    scores, finished = torch.tensor([2.0, -1]), torch.tensor([True, False])
    assert penalise_unfinished(scores, finished, 1.5).tolist() == [2, -2.5]
    assert penalise_unfinished(scores, finished, None).tolist() == [2, -1]


def test_penalty_for_missing_eos_replaces() -> None:
    scores, finished = torch.tensor([2.0, 7, -9]), torch.tensor([True, False, False])
    assert penalise_unfinished(scores, finished, 1.0, "replace").tolist() == [2, -1, -1]
    assert penalise_unfinished(scores, finished, None, "replace").tolist() == [2, 7, -9]


def test_scores_are_clipped_on_both_sides() -> None:
    assert clip_scores(torch.tensor([-7.0, 0.5, 3]), 2.0).tolist() == [-2, 0.5, 2]
    assert clip_scores(torch.tensor([-7.0]), None).tolist() == [-7]


def test_running_scale_is_that_of_all_scores_whatever_their_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(40, generator=generator) * 3 + 1e4  # a large mean is where naive sums lose their digits
    for sizes in ([40], [1, 39], [7] * 5 + [5], [1] * 40, [0, 20, 0, 20]):
        scale = RunningScale()
        for batch in scores.split(sizes):
            scale = scale.update(batch)
        assert scale.count == 40
        assert scale.mean == pytest.approx(statistics.fmean(scores.tolist()))
        assert scale.std == pytest.approx(statistics.stdev(scores.tolist()), rel=1e-6)
        assert RunningScale(**json.loads(json.dumps(asdict(scale)))) == scale


def test_normalised_scores_keep_their_sign_and_have_unit_deviation() -> None:
    scores = torch.tensor([1.0, 5.0, 3.0])  # standard deviation 2
    before = RunningScale()
    after = before.update(scores)
    assert after.normalise(scores).tolist() == [0.5, 2.5, 1.5]
    assert before == RunningScale()  # nothing was changed in place
    # There is no spread to measure: no score, one score, equal scores.
    for batch in ([], [4.0], [4.0, 4.0, 4.0]):
        assert RunningScale().update(torch.tensor(batch)).normalise(torch.tensor([4.0])).item() == 4


def test_policy_loss_clips_only_where_that_makes_it_worse() -> None:
    # ratios 2, 0.5, 1 with advantages 1, 1, -2; the fourth token: ratio 0.5 with a negative advantage
    ratio = torch.tensor([[2.0, 0.5, 1.0], [0.5, 99, 99]])
    advantages = torch.tensor([[1.0, 1, -2], [-1, 5, 5]])
    result = policy_loss(ratio.log(), torch.zeros(2, 3), advantages, VALID, clip_range=0.2)
    # max(-A rho, -A clip(rho)): max(-2, -1.2), max(-.5, -.8), 2, max(.5, .8)
    assert result.loss.item() == pytest.approx((-1.2 - 0.5 + 2 + 0.8) / 4)
    assert result.clipfrac.item() == pytest.approx(2 / 4)
    assert result.ratio.item() == pytest.approx((2 + 0.5 + 1 + 0.5) / 4)
    # k2 of new against old: x^2 / 2
    assert result.approxkl.item() == pytest.approx(3 * math.log(2) ** 2 / 2 / 4, rel=1e-5)


def test_policy_gradient_is_zero_where_clipped_and_minus_a_rho_elsewhere() -> None:
    logps = torch.tensor([[math.log(2), math.log(1.1)]], requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    policy_loss(logps, torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), mask, 0.2).loss.backward()
    torch.testing.assert_close(logps.grad, torch.tensor([[0.0, -3 * 1.1 / 2]]))


def test_value_loss_takes_the_worse_of_clipped_and_unclipped() -> None:
    # V, V_old, R = (1, 0, 1): clipped to 0.2, error 0.64 > 0.   (0.1, 0, 1): within the range, 0.81.
    # (2, 0, -1): clipped 0.2 -> 1.44 < 9.   (5, 5, 5): 0
    values, old = torch.tensor([[1.0, 0.1, 2], [5, 9, 9]]), torch.tensor([[0.0, 0, 0], [5, 0, 0]])
    returns = torch.tensor([[1.0, 1, -1], [5, 0, 0]])
    result = value_loss(values, old, returns, VALID, clip_range=0.2)
    assert result.loss.item() == pytest.approx((0.64 + 0.81 + 9 + 0) / 4 / 2)
    assert result.clipfrac.item() == pytest.approx(1 / 4)


def test_whitening_of_rewards_keeps_the_mean() -> None:
    values = torch.tensor([[1.0, 2, 6], [3, 1e9, -1e9]])
    kept = masked_whiten(values, VALID, shift_mean=False)
    assert masked_mean(kept, VALID).item() == pytest.approx(3.0, abs=1e-5)
    assert masked_var(kept, VALID).item() == pytest.approx(1.0, abs=1e-5)
    # mean 3, variance (4 + 1 + 9 + 0) / 3
    scale = (14 / 3) ** 0.5
    torch.testing.assert_close(kept[0], torch.tensor([3 - 2 / scale, 3 - 1 / scale, 3 + 3 / scale]))
    assert kept[1, 1:].tolist() == [0, 0]


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2, 3], [4, 0, 0]])
    assert explained_variance(returns, returns, VALID).item() == 1
    assert explained_variance(returns + 7, returns, VALID).item() == pytest.approx(1)
    assert explained_variance(torch.zeros(2, 3), returns, VALID).item() == 0
    # All returns are one, so there is nothing to explain, whatever the critic says.
    for values in (torch.full((2, 3), 2.0), torch.randn(2, 3)):
        assert explained_variance(values, torch.full((2, 3), 2.0), VALID).item() == 0


def ragged(generator: torch.Generator, lengths: list[int]) -> list[list[float]]:
    return [torch.randn(n, generator=generator, dtype=torch.float64).tolist() for n in lengths]


def padded(rows: list[list[float]], left: int, fill: float) -> torch.Tensor:
    """Return rows after `left` places of padding, with more padding on the right."""
    width = left + max(map(len, rows)) + 1
    return torch.tensor([[fill] * left + row + [fill] * (width - left - len(row)) for row in rows], dtype=torch.float64)


@pytest.mark.parametrize("left", [0, 2])
@pytest.mark.parametrize("lengths", [[5, 1, 3], [4], [1]])
def test_losses_and_gradients_equal_the_slow_reference_whatever_padding_holds(lengths: list[int], left: int) -> None:
    generator = torch.Generator().manual_seed(0)
    new, old, third = (ragged(generator, lengths) for _ in range(3))
    mask = padded([[1.0] * n for n in lengths], left, 0.0).bool()
    for ours, theirs in ((policy_loss, slow.policy_loss), (value_loss, slow.value_loss)):
        tensor = padded(new, left, 88.0).requires_grad_()
        result = ours(tensor, padded(old, left, -55.0), padded(third, left, 1e9), mask, 0.2)
        result.loss.backward()
        assert result.loss.item() == pytest.approx(theirs(new, old, third, 0.2))
        assert tensor.grad is not None
        assert tensor.grad[~mask].abs().max() == 0
        for i, row in enumerate(new):
            for t, x in enumerate(row):

                def loss(x: float, i: int = i, t: int = t, theirs: object = theirs) -> float:
                    changed = [list(row) for row in new]
                    changed[i][t] = x
                    return theirs(changed, old, third, 0.2)  # type: ignore[operator]

                assert tensor.grad[i, left + t].item() == pytest.approx(slow.slope(loss, x), rel=1e-5, abs=1e-8)


# ---- all of it on a problem whose optimum is known -------------------------------------------------------------------


class Toy:
    """Sequences of two tokens from a vocabulary of three; the second may depend on the first. Scores are a table.

    The policy with maximum score - beta KL is pi(a, b) = ref(a, b) exp(score(a, b) / beta) / Z (Ziegler et al. 2019,
    eq. 3). All nine sequences are one batch, each as often as the policy would draw it: without the noise of sampling,
    what is reached is what the loss asks for.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scores = torch.tensor([[1.0, -0.5, 0.2], [0.0, 1.5, -1.0], [0.3, 0.3, -2.0]])
        self.reference = [torch.randn(3, generator=generator), torch.randn(3, 3, generator=generator)]
        self.logits = [tensor.clone().requires_grad_() for tensor in self.reference]
        self.values = torch.zeros(4, requires_grad=True)  # of the empty sequence, and after each first token
        self.optimiser = torch.optim.Adam([*self.logits, self.values], lr=0.05, eps=1e-5)
        self.first, self.second = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)

    def logps(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """Return log-probs (9, 2) of the nine sequences' tokens."""
        first, second = torch.log_softmax(logits[0], -1), torch.log_softmax(logits[1], -1)
        return torch.stack([first[self.first], second[self.first, self.second]], 1)

    def critic(self) -> torch.Tensor:
        return torch.stack([self.values[0].expand(9), self.values[1 + self.first]], 1)

    def step(self, beta: float, epochs: int = 2) -> float:
        """Run one rollout and its updates; return the KL of the sampling policy in nats per sequence."""
        with torch.no_grad():
            old_logps, old_values, reference = self.logps(self.logits), self.critic(), self.logps(self.reference)
            weights = old_logps.sum(1).exp()  # (9,) probabilities under the policy
            kl = float((weights * k1(old_logps, reference).sum(1)).sum())
            # Of 1000 sequences, each occurs as often as its probability under the policy says.
            counts = (weights * 1000).round().long()
            rows = torch.arange(9).repeat_interleave(counts)
            mask = torch.ones(len(rows), 2, dtype=torch.bool)
            scores = self.scores[self.first, self.second][rows]
            rewards, _ = token_rewards(scores, old_logps[rows], reference[rows], mask, beta)
            advantages, returns = gae(rewards, old_values[rows], mask, 1.0, 0.95)
        for _ in range(epochs):
            self.optimiser.zero_grad()
            policy = policy_loss(self.logps(self.logits)[rows], old_logps[rows], advantages, mask, 0.2)
            value = value_loss(self.critic()[rows], old_values[rows], returns, mask, 0.2)
            (policy.loss + value.loss).backward()
            self.optimiser.step()
        return kl

    def optimum(self, beta: float) -> torch.Tensor:
        """Return the optimum's probabilities (9,)."""
        reference = self.logps(self.reference).sum(1)
        return torch.softmax(reference + self.scores[self.first, self.second] / beta, 0)

    def optimal_kl(self, beta: float) -> float:
        best = self.optimum(beta)
        return float((best * (best.log() - self.logps(self.reference).sum(1))).sum())


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_ppo_reaches_the_optimum_of_the_leashed_reward(beta: float) -> None:
    toy = Toy()
    optimum = toy.optimum(beta)
    assert (optimum - toy.logps(toy.reference).sum(1).exp()).abs().max() > 0.1  # the optimum differs from the reference
    for _ in range(200):
        kl = toy.step(beta)
    policy = toy.logps(toy.logits).detach().sum(1).exp()
    assert (policy - optimum).abs().max() < 1e-2
    assert kl == pytest.approx(toy.optimal_kl(beta), abs=1e-2)


@pytest.mark.parametrize("start", [0.05, 3.0])
def test_the_controller_holds_the_target_on_it(start: float) -> None:
    toy, controller = Toy(), KLController(start, target=0.4, horizon=320)
    kls = []
    for _ in range(300):
        kls.append(toy.step(controller.beta))
        controller = controller.step(kls[-1], episodes=32)
    assert statistics.fmean(kls[-50:]) == pytest.approx(0.4, abs=0.01)
    assert max(abs(kl - 0.4) for kl in kls[-50:]) < 0.2 * 0.4
    # The coefficient that it found is the one whose optimum has this KL.
    assert toy.optimal_kl(controller.beta) == pytest.approx(0.4, abs=0.03)
