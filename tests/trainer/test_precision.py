"""bf16 if it is faster, otherwise fp32; and gradient checkpointing, which gives the same numbers with less memory."""

import time
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.specs import Lora, ModelRef, Optimiser
from tests.trainer.conftest import byte_tokenizer, trainable_parameters
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.checkpoints import Checkpoints
from trainer.models.loading import load_causal_lm, load_policy_and_reference, working_dtype
from trainer.models.policy import Policy, can_share, completion_outputs, trunk_of
from trainer.models.saving import save_policy
from trainer.reward.model import new_reward_model
from trainer.reward.network import merge_adapters
from trainer.sampling.generation import best_ways
from trainer.speed import precision
from trainer.speed.gradient_checkpointing import recompute_activations
from trainer.speed.precision import Rates, choose, measure
from trainer.training.training import Training

CPU = torch.device("cpu")


def rates(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    """Pretend that the processor multiplies bf16 in hardware, at these rates."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "measure", lambda device, hidden_size: Rates(float32, bfloat16))


# ---- the choice ------------------------------------------------------------------------------------------------------


def test_measuring_takes_less_than_a_tenth_of_a_second_and_is_done_once() -> None:
    measure(CPU, 576)  # initialises the libraries
    measure.cache_clear()
    began = time.process_time()
    seen = measure(CPU, 4096)
    assert time.process_time() - began < 0.5  # of all threads
    assert min(seen) > 1e8
    assert measure(CPU, 4096) is seen


def test_bfloat16_is_taken_where_it_is_faster_by_half(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trainer")
    rates(monkeypatch, 100e9, 149e9)
    assert choose("auto", 576, CPU) == torch.float32
    rates(monkeypatch, 100e9, 151e9)
    assert choose("auto", 576, CPU) == torch.bfloat16
    assert "100 GFLOP/s in fp32, 151 in bf16; computing in bfloat16" in caplog.text
    assert choose("float32", 576, CPU) == torch.float32
    assert choose("bfloat16", 64, CPU) == torch.bfloat16
    assert choose("auto", 96, CPU) == torch.float32  # too small for products to matter
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    assert choose("auto", 576, CPU) == torch.float32
    assert "This cpu does not multiply in bf16; computing in float32" in caplog.text


def test_a_run_keeps_the_precision_it_began_with(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, store: ArtifactStore
) -> None:
    """If a resumed run measured again on a busy machine, it could end with other bits."""
    monkeypatch.setattr(precision, "SMALLEST_HIDDEN_SIZE", 0)
    spec = ModelRef(base=str(tiny_model))
    rates(monkeypatch, 1e9, 2e9)
    assert working_dtype("auto", spec, Checkpoints(store, "run", spec)) == torch.bfloat16
    rates(monkeypatch, 1e9, 1e9)
    assert working_dtype("auto", spec, Checkpoints(store, "run", spec)) == torch.bfloat16
    assert working_dtype("auto", spec) == torch.float32
    Checkpoints(store, "run", spec).remove()
    assert working_dtype("auto", spec, Checkpoints(store, "run", spec)) == torch.float32


# ---- what it means ---------------------------------------------------------------------------------------------------

IDS = torch.randint(3, 260, (60,), generator=torch.Generator().manual_seed(0)).tolist()
SEQUENCES = [
    TokenSequence(IDS[:9], IDS[9:20]),
    TokenSequence(IDS[20:33], IDS[33:40]),
    TokenSequence(IDS[40:44], IDS[44:]),
]


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_bfloat16_holds_frozen_weights_learns_in_float32_and_gives_float32_log_probs(
    tiny_ref: ModelRef, lora: Lora | None
) -> None:
    exact = Policy(load_causal_lm(tiny_ref, lora, trainable=True, dtype=torch.float32))
    policy = Policy(load_causal_lm(tiny_ref, lora, trainable=True, dtype=torch.bfloat16))
    assert policy.share
    for name, parameter in policy.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    training = Training(policy, Optimiser(learning_rate=1e-3, warmup_ratio=0), seed=0, total_steps=4)
    packed = pack(SEQUENCES, 2, share=True)
    before = exact(packed).logps.detach()
    losses = []
    for _ in range(4):
        logps = training.model(packed).logps
        assert logps.dtype == torch.float32
        loss = -logps.mean()
        loss.backward()
        losses.append(loss.item())
        training.step(losses[-1])
    # bf16 keeps 8 bits: results are close to the exact numbers, but not equal
    assert losses[0] == pytest.approx(-before.mean().item(), rel=1e-2)
    assert losses[0] != -before.mean().item()
    assert losses == sorted(losses, reverse=True)
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in policy.parameters())


def test_reference_and_reward_model_follow(tiny_ref: ModelRef, other_tiny_model: Path) -> None:
    other = ModelRef(base=str(other_tiny_model))
    _, reference = load_policy_and_reference(tiny_ref, other, None, torch.bfloat16)
    with reference() as frozen:
        assert {p.dtype for p in frozen.parameters()} == {torch.bfloat16}
    model = new_reward_model(tiny_ref, Lora(rank=4), dtype=torch.bfloat16)
    packed = pack(SEQUENCES, 2, share=True)
    rewards = model(packed)
    assert rewards.dtype == torch.float32
    merge_adapters(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(packed), rewards, atol=0.1, rtol=0.1)


def test_bfloat16_keeps_what_a_small_adapter_changes(tmp_path: Path) -> None:
    """An adapter that changes weights of about 0.05 by 2e-5, a tenth of half the distance between bf16 numbers there.

    Its inputs point one way, so over 512 of them the changes add up to a hundredth of an output. If the adapter is
    merged and rounded to bf16, only the smallest weights change: a sixth of that effect is left.
    """
    tokenizer, hidden = byte_tokenizer(), 512
    base = ModelRef(base=str(tmp_path / "base"))
    policy = ModelRef(base=base.base, adapter=str(tmp_path / "policy"))
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden,
            num_hidden_layers=1,
            num_attention_heads=4,
            initializer_range=0.05,
        )
    )
    direction = torch.randn(hidden, generator=generator).sign()
    with torch.no_grad():
        model.model.embed_tokens.weight.add_(0.2 * direction)
    model.to(torch.bfloat16).save_pretrained(base.base)  # published weights are bf16 numbers
    tokenizer.save_pretrained(base.base)
    adapted = load_causal_lm(base, Lora(rank=1, alpha=1), trainable=True, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name:
                parameter.copy_(direction / hidden)
            elif "lora_B" in name and any(part in name for part in ("v_proj", "gate_proj", "up_proj")):
                parameter.copy_(2e-5 * hidden * torch.randn(parameter.shape, generator=generator).sign())
    save_policy(adapted, tokenizer, tmp_path / "policy")

    ids = torch.randint(3, 260, (16, 100), generator=generator).tolist()
    packed = pack([TokenSequence(row[:20], row[20:]) for row in ids], 2, share=False)

    def logps(ref: ModelRef, dtype: torch.dtype) -> torch.Tensor:
        model = load_causal_lm(ref, dtype=dtype)
        assert not trainable_parameters(model)
        with torch.no_grad():
            return completion_outputs(model, packed).logps

    exact, change = (logps(policy, dtype) - logps(base, dtype) for dtype in (torch.float32, torch.bfloat16))
    # Rounded activations add noise to each token. The least-squares slope over 1280 tokens shows how much remains.
    assert (change @ exact / (exact @ exact)).item() == pytest.approx(1, abs=0.1)
    # The frozen model still shares prompts between answers, and sampling still refills rows.
    frozen = load_causal_lm(policy, dtype=torch.bfloat16)
    assert can_share(trunk_of(frozen))
    assert best_ways(frozen).refill


# ---- activations computed twice --------------------------------------------------------------------------------------


def gradients_of(policy: Policy, share: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    loss = -policy(pack(SEQUENCES, 2, share)).logps.mean()
    loss.backward()
    named = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    return loss.item(), named


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_losses_and_gradients_stay_what_they_are(tiny_ref: ModelRef, lora: Lora | None) -> None:
    torch.manual_seed(0)
    policy = Policy(load_causal_lm(tiny_ref, lora, trainable=True))
    loss, gradients = gradients_of(policy)
    layer = next(m for m in policy.modules() if type(m).__name__ == "LlamaDecoderLayer")
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    layer.self_attn.register_forward_hook(count)
    settings = Optimiser(learning_rate=1e-3, gradient_checkpointing=True)
    training = Training(policy, settings, seed=0, total_steps=1)
    again, recomputed = gradients_of(training.model)
    assert calls == 2  # once forward, once more in the backward pass
    assert again == pytest.approx(loss, rel=1e-6)
    assert recomputed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def test_dropout_stays_off_and_sampling_keeps_its_cache() -> None:
    """By default, GPT-2 has dropout everywhere, and layers in training mode do not use their cache."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2)).eval()
    assert model.config.attn_pdrop > 0
    policy = Policy(model)
    loss, gradients = gradients_of(policy, share=False)
    recompute_activations(policy)
    for _ in range(2):
        again, recomputed = gradients_of(policy, share=False)
        assert again == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)
    cache = DynamicCache(config=model.config)
    model.base_model(input_ids=torch.tensor([IDS[:9]]), past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 9


def saved_bytes(policy: Policy) -> int:
    """Return the bytes that a forward pass keeps for its backward pass, without weights, counting each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        outputs = policy(pack([TokenSequence(IDS, IDS)] * 4, 2, share=False))
    assert outputs.logps.requires_grad
    return sum(kept.values())


def test_less_is_kept_for_the_backward_pass() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=256, num_hidden_layers=12, num_attention_heads=4
    )
    policy = Policy(LlamaForCausalLM(config).eval())
    before = saved_bytes(policy)
    recompute_activations(policy)
    assert saved_bytes(policy) < before / 5


def test_an_architecture_that_cannot_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LlamaConfig(
        vocab_size=len(byte_tokenizer()),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    with pytest.raises(InvalidInput, match="architecture llama cannot compute its activations twice"):
        recompute_activations(Policy(model))


def test_every_weight_that_learns_still_learns(tiny_ref: ModelRef) -> None:
    policy = Policy(load_causal_lm(tiny_ref, Lora(rank=2), trainable=True, dtype=torch.bfloat16))
    recompute_activations(policy)
    _, gradients = gradients_of(policy)
    assert len(gradients) == len(trainable_parameters(policy))
