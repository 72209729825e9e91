"""Masked statistics and log-probs against hand arithmetic and the slow reference."""

import math

import pytest
import torch

from tests.trainer import reference
from trainer.algorithms.logprobs import entropy, projected_logps, scatter_to_mask, token_logps
from trainer.algorithms.masked import masked_mean, masked_var, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, 99.0], [6.0, -50.0, float("nan")]])
VALID = torch.tensor([[True, True, False], [True, False, False]])


def test_masked_mean_counts_every_valid_entry_alike_and_ignores_the_rest() -> None:
    assert masked_mean(VALUES, VALID).item() == 3.0


def test_masked_variance_with_and_without_bessels_correction() -> None:
    assert masked_var(VALUES, VALID).item() == pytest.approx((4 + 1 + 9) / 2)
    assert masked_var(VALUES, VALID, unbiased=False).item() == pytest.approx(14 / 3)


def test_whitening_gives_mean_0_variance_1_and_zero_where_invalid() -> None:
    whitened = masked_whiten(VALUES, VALID)
    assert masked_mean(whitened, VALID).item() == pytest.approx(0, abs=1e-6)
    assert masked_var(whitened, VALID).item() == pytest.approx(1)
    assert whitened[~VALID].tolist() == [0, 0, 0]


def test_whitening_without_shift_keeps_the_mean() -> None:
    whitened = masked_whiten(VALUES, VALID, shift_mean=False)
    assert masked_mean(whitened, VALID).item() == pytest.approx(3.0)
    assert masked_var(whitened, VALID).item() == pytest.approx(1)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_a_single_entry_is_left_as_it_is(shift_mean: bool) -> None:
    mask = torch.tensor([[False, True], [False, False]])
    assert masked_whiten(torch.tensor([[9.0, -3], [float("nan"), 9]]), mask, shift_mean).tolist() == [[0, -3], [0, 0]]


@pytest.mark.parametrize("scale", [0.0, 1.7, -300.0])
def test_what_floats_leave_between_equal_values_is_no_spread(scale: float) -> None:
    mask = torch.ones(8, 48, dtype=torch.bool)
    noise = torch.randn(8, 48, generator=torch.Generator().manual_seed(0))
    values = scale + 1e-6 * (1 + abs(scale)) * noise
    assert masked_whiten(values, mask).abs().max() < 1e-5 * (1 + abs(scale))
    torch.testing.assert_close(masked_whiten(values, mask, shift_mean=False), values)
    # A larger spread counts, for instance a thousandth of the values.
    assert masked_var(masked_whiten(scale + 1e-3 * (1 + abs(scale)) * noise, mask), mask).item() == pytest.approx(
        1, abs=0.02
    )


def test_token_logps_at_a_temperature() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0]])
    assert token_logps(logits, torch.tensor([1, 0])).tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)])
    # Dividing by T = 1/2 squares the odds: 9 to 1.
    assert token_logps(logits, torch.tensor([1, 0]), 0.5).tolist() == pytest.approx([math.log(9 / 10), math.log(1 / 2)])


def test_token_logps_gradient_is_one_hot_minus_softmax() -> None:
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    token_logps(logits, torch.tensor([1])).sum().backward()
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.25, 0.25])


def test_entropy_of_known_distributions() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, math.log(3), -1e4, -1e4]])
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert entropy(logits).tolist() == pytest.approx([math.log(4), three_to_one])


def test_scatter_and_sequence_sums_follow_row_order() -> None:
    mask = torch.tensor([[False, True, True], [True, False, False], [False, False, False]])
    logps = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    assert scatter_to_mask(logps, mask).tolist() == [[0, 1, 2], [4, 0, 0], [0, 0, 0]]
    scatter_to_mask(logps, mask)[0].sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [1, 1, 0]


# ---- log-probs from hidden states ------------------------------------------------------------------------------------

N, H, V = 13, 6, 37


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states (N, H), a head (V, H), tokens (N,), and the incoming gradients (N,)."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(V, (N,), generator=generator)
    return hidden, weight, tokens, torch.randn(N, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_projected_logps_and_entropies_equal_the_slow_reference(temperature: float) -> None:
    hidden, weight, tokens, _ = problem()
    ours = projected_logps(hidden, weight, tokens, temperature, chunk=4, with_entropy=True)
    assert ours.entropy is not None
    logits = (hidden.double() @ weight.double().T).tolist()
    for i, row in enumerate(logits):
        assert ours.logps[i].item() == pytest.approx(reference.log_prob(row, int(tokens[i]), temperature), rel=1e-5)
        assert ours.entropy[i].item() == pytest.approx(reference.entropy(row, temperature), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 4, N, 100])
@pytest.mark.parametrize("learns", ["hidden", "weight", "both"])
@pytest.mark.parametrize("kept_logits", [0, N * V])
def test_projected_gradients_equal_autograds_in_float64(
    learns: str, chunk: int, temperature: float, with_entropy: bool, kept_logits: int
) -> None:
    hidden, weight, tokens, above = problem()
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    logps = torch.log_softmax(exact[0] @ exact[1].T / temperature, -1)[torch.arange(N), tokens]
    logps.backward(above.double())

    hidden.requires_grad_(learns != "weight")
    weight.requires_grad_(learns != "hidden")
    ours = projected_logps(hidden, weight, tokens, temperature, chunk, with_entropy, kept_logits)
    ours.logps.backward(above)
    torch.testing.assert_close(ours.logps, logps.float())
    for tensor, expected in zip((hidden, weight), exact, strict=True):
        if tensor.requires_grad:
            assert expected.grad is not None
            torch.testing.assert_close(tensor.grad, expected.grad.float(), rtol=1e-4, atol=1e-5)
        else:
            assert tensor.grad is None
    assert (ours.entropy is not None) == with_entropy
    assert ours.entropy is None or not ours.entropy.requires_grad


@pytest.mark.parametrize("learns", [False, True])
def test_projected_logps_of_no_tokens(learns: bool) -> None:
    hidden, weight, tokens, _ = problem()
    weight.requires_grad_(learns)
    empty = hidden[:0].requires_grad_()
    for kept_logits in (0, 100):
        ours = projected_logps(empty, weight, tokens[:0], with_entropy=True, kept_logits=kept_logits)
        assert ours.logps.shape == (0,)
        assert ours.entropy is not None
        assert ours.entropy.shape == (0,)
        ours.logps.sum().backward()


def test_projected_logps_in_bfloat16_have_float32_digits() -> None:
    hidden, weight, tokens, above = problem(torch.bfloat16)
    hidden.requires_grad_()
    ours = projected_logps(hidden, weight, tokens, chunk=4)
    ours.logps.backward(above)
    logits = (hidden.detach() @ weight.T).float()  # the logits of a head in bfloat16
    assert ours.logps.dtype == torch.float32
    torch.testing.assert_close(ours.logps.detach(), token_logps(logits, tokens))
    exact = hidden.detach().double().requires_grad_()
    token_logps_64 = torch.log_softmax(exact @ weight.double().T, -1)[torch.arange(N), tokens]
    token_logps_64.backward(above.double())
    assert hidden.grad is not None
    assert exact.grad is not None
    assert (hidden.grad.double() - exact.grad).abs().max() < 0.03 * exact.grad.abs().max()


def test_nothing_of_the_vocabularys_size_is_kept_for_backward() -> None:
    hidden, weight, tokens, _ = problem()
    sizes: list[int] = []
    hidden.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
        projected_logps(hidden, weight, tokens, chunk=4).logps.sum().backward()
        assert 0 < max(sizes) <= N * H
        sizes.clear()
        token_logps(hidden @ weight.T, tokens).sum().backward()
        assert max(sizes) == N * V  # so the test would notice


def test_gradients_do_not_depend_on_the_chunk_or_on_other_rows() -> None:
    hidden, weight, tokens, above = problem()
    hidden.requires_grad_()
    projected_logps(hidden, weight, tokens, chunk=5).logps.backward(above)
    assert hidden.grad is not None
    for i in range(N):
        row = hidden[i : i + 1].detach().requires_grad_()
        projected_logps(row, weight, tokens[i : i + 1]).logps.backward(above[i : i + 1])
        torch.testing.assert_close(row.grad, hidden.grad[i : i + 1])
