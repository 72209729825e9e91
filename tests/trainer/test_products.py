"""Products through oneDNN give what torch's own give; expected values are torch's in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trainer.products
from app.specs import Lora, ModelRef
from trainer.activations import recompute_activations
from trainer.chat import TokenSequence
from trainer.modeling import load_causal_lm
from trainer.packing import pack
from trainer.policy import Policy
from trainer.products import SMALLEST, FastProducts, multiplies_right


@pytest.fixture
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.products, "SMALLEST", 0)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    taken: list[tuple[int, ...]] = []

    def product(left: Any, right: Any) -> Any:
        taken.append(tuple(left.shape))
        return PRODUCT(left, right)

    monkeypatch.setattr(trainer.products, "product", product)
    yield taken


PRODUCT = trainer.products.product


@pytest.mark.usefixtures("small_too")
@pytest.mark.parametrize("shape", [(1, 7), (5, 33), (2, 3, 65), (1, 129, 64)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_float64(
    shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert multiplies_right()  # tried once a process, and not counted below
    torch.manual_seed(0)
    x, weight, shift = torch.randn(shape), torch.randn(11, shape[-1]), torch.randn(11)
    grad = torch.randn(*shape[:-1], 11)
    found, wanted = [], []
    for results, dtype in ((found, torch.float32), (wanted, torch.float64)):
        leaves = [
            value.detach().to(dtype, copy=True).requires_grad_()
            for value in ((x, weight, shift) if bias else (x, weight))
        ]
        with counting(monkeypatch) as taken, FastProducts():
            output = F.linear(*leaves)
        output.backward(grad.to(dtype))
        results += [output, *(leaf.grad for leaf in leaves)]
        assert len(taken) == (2 if dtype == torch.float32 else 0)  # forward and the gradient of x; fp64 not at all
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_only_large_products_and_none_under_autocast_or_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert multiplies_right()
    small, weight = torch.randn(3, 64), torch.randn(64, 64)
    large = torch.randn(SMALLEST // 64 // 64, 64)
    with counting(monkeypatch) as taken:
        F.linear(large, weight)
        with FastProducts():
            F.linear(small, weight)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert F.linear(large, weight).dtype == torch.bfloat16
            assert taken == []
            F.linear(large, weight)
    assert taken == [tuple(large.shape)]


def test_a_build_whose_products_are_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.products, "product", lambda left, right: left @ right.t() + 0.01)
    multiplies_right.cache_clear()
    assert not multiplies_right()
    multiplies_right.cache_clear()


@pytest.mark.usefixtures("small_too")
@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_layers_that_are_computed_twice_multiply_alike_both_times(tiny_ref: ModelRef, lora: Lora | None) -> None:
    """What a layer keeps for its backward pass is what torch looks for when it computes the layer again."""
    torch.manual_seed(0)
    policy = Policy(load_causal_lm(tiny_ref, lora, trainable=True))
    packed = pack([TokenSequence([5, 6, 7], [8, 9]), TokenSequence([5, 6, 7], [10])], 0, policy.share)

    def gradients() -> list[torch.Tensor]:
        policy.zero_grad()
        policy(packed).logps.sum().backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    kept = gradients()
    recompute_activations(policy)
    for found, wanted in zip(gradients(), kept, strict=True):
        assert torch.equal(found, wanted)
