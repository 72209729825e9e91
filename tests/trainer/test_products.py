"""Products through oneDNN give what torch's own give; expected values are torch's in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trainer.speed.matmul
from app.specs import Lora, ModelRef
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.models.loading import load_causal_lm
from trainer.models.policy import Policy, trunk_of
from trainer.speed.gradient_checkpointing import recompute_activations
from trainer.speed.matmul import SMALLEST, FastProducts, fast_products, multiplies_right
from trainer.speed.precision import set_compute_dtype


@pytest.fixture
def small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.speed.matmul, "SMALLEST", 0)


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    taken: list[tuple[int, ...]] = []

    def product(left: Any, right: Any) -> Any:
        taken.append(tuple(left.shape))
        return PRODUCT(left, right)

    monkeypatch.setattr(trainer.speed.matmul, "product", product)
    yield taken


PRODUCT = trainer.speed.matmul.product


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
    monkeypatch.setattr(trainer.speed.matmul, "product", lambda left, right: left @ right.t() + 0.01)
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


def modes_within(policy: Policy, rows: int) -> list[int]:
    """How many modes are asked about every call of torch while the trunk runs on so many tokens."""
    seen: list[int] = []
    hook = trunk_of(policy.causal).register_forward_hook(
        lambda *_: seen.append(torch._C._len_torch_function_stack())  # type: ignore[attr-defined]
    )
    policy(pack([TokenSequence([5], [6] * (rows - 1))], 0, policy.share))
    hook.remove()
    return seen


def test_nothing_is_entered_around_a_pass_that_has_nothing_to_gain(tiny_ref: ModelRef) -> None:
    policy = Policy(load_causal_lm(tiny_ref, Lora(rank=4), trainable=True))
    trunk = trunk_of(policy.causal)
    many = SMALLEST // (192 * 96) + 1  # tokens: the largest weight of the tiny model is 192 * 96
    assert modes_within(policy, 16) == [0]
    assert isinstance(fast_products(trunk, many), FastProducts)
    assert not isinstance(fast_products(trunk, many - 2), FastProducts)
    set_compute_dtype(trunk, torch.bfloat16)
    assert not isinstance(fast_products(trunk, many), FastProducts)
    set_compute_dtype(trunk, torch.float32)
    assert not isinstance(fast_products(trunk.to("meta"), many), FastProducts)  # stands for any accelerator


@pytest.mark.usefixtures("small_too")
@pytest.mark.parametrize(("dtype", "modes"), [(torch.float32, 1), (torch.bfloat16, 0)])
def test_a_pass_enters_the_mode_if_it_can_act(tiny_ref: ModelRef, dtype: torch.dtype, modes: int) -> None:
    policy = Policy(load_causal_lm(tiny_ref, Lora(rank=4), trainable=True, dtype=dtype))
    assert modes_within(policy, 16) == [modes]


@pytest.mark.usefixtures("small_too")
def test_a_build_without_the_products_enters_nothing(tiny_ref: ModelRef, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.speed.matmul, "multiplies_right", lambda: False)
    assert modes_within(Policy(load_causal_lm(tiny_ref, Lora(rank=4), trainable=True)), 16) == [0]
