"""Logits as a causal LM's own code computes them, and gradients that do not depend on the order of threads."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from app.errors import ModelUnavailable
from app.specs import ModelRef
from tests.trainer.conftest import byte_tokenizer
from trainer.algorithms.logprobs import token_logps
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.models.loading import load_causal_lm
from trainer.models.policy import (
    OWN_LOGITS,
    Policy,
    check_logits,
    completion_outputs,
    hidden_states,
    trunk_of,
    vocabulary_logits,
)
from trainer.speed.precision import set_compute_dtype

SHAPE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}

# Operations between a head and its logits: known by name, or done by the model's own code.
KNOWN: dict[str, Callable[[], Any]] = {
    "a cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.5)),
    "a scale": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "nothing": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
}
UNKNOWN: dict[str, Callable[[], Any]] = {
    "a scale that multiplies where others divide": lambda: HyperCLOVAXForCausalLM(
        HyperCLOVAXConfig(**SHAPE, logits_scaling=0.25)
    ),
    "a scale under another name": lambda: FalconH1ForCausalLM(
        FalconH1Config(**SHAPE, lm_head_multiplier=0.25, mamba_d_ssm=32, mamba_n_heads=2, mamba_d_head=16)
    ),
}
SEQUENCES = [TokenSequence([3, 4, 5], [6, 7]), TokenSequence([8, 9], [10, 11, 12])]


@pytest.mark.parametrize("name", [*KNOWN, *UNKNOWN])
def test_log_probs_are_those_of_the_architectures_own_logits(name: str) -> None:
    torch.manual_seed(0)
    model = (KNOWN | UNKNOWN)[name]().eval()
    check_logits(model)
    assert (getattr(model, OWN_LOGITS) is not None) == (name in UNKNOWN)
    wanted = []
    for prompt, completion in SEQUENCES:
        logps = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted.append(logps[range(len(completion)), list(completion)])
    expected = torch.cat(wanted)
    found = completion_outputs(model, pack(SEQUENCES, 0, share=False)).logps
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, own = (torch.autograd.grad(logps.sum(), parameters, allow_unused=True) for logps in (found, expected))
    for gradient, wanted_gradient in zip(ours, own, strict=True):
        assert (gradient is None) == (wanted_gradient is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-3, atol=1e-4)


def test_a_model_is_tried_when_it_is_loaded(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    shape = SHAPE | {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**shape, logits_scaling=0.25)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert getattr(load_causal_lm(ModelRef(base=str(tmp_path))), OWN_LOGITS) is not None


def test_logits_from_elsewhere_are_refused() -> None:
    """The head reads more than the last states of its trunk."""

    class Shifted(LlamaForCausalLM):
        def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
            output = super().forward(input_ids=input_ids, **kwargs)
            output.logits = output.logits + input_ids[..., None]
            return output

    with pytest.raises(ModelUnavailable, match="architecture llama makes its logits in a way that is not known here"):
        check_logits(Shifted(LlamaConfig(**SHAPE)).eval())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_many_completions_of_one_prompt_give_one_gradient_on_several_threads() -> None:
    """The prompt's last state predicts all their first tokens, so their gradients are summed there."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE | {"hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1})
    policy = Policy(LlamaForCausalLM(config).eval())
    packed = pack([TokenSequence([3, 4], [i, 5]) for i in range(6, 46)], 0, policy.share)
    weights = torch.randn(len(packed.targets))

    def gradient() -> torch.Tensor:
        policy.zero_grad()
        (weights * policy(packed).logps).sum().backward()
        found = policy.causal.model.layers[0].mlp.down_proj.weight.grad
        assert found is not None
        return found.clone()

    first = gradient()
    assert all(torch.equal(gradient(), first) for _ in range(50))


# ---- log-probs in chunks ---------------------------------------------------------------------------------------------

CHUNK = 256  # logits of this many rows exist at once
MANY = [TokenSequence([3, 4, 5 + i % 40], [(7 * i + j) % 50 for j in range(9)]) for i in range(50)]


def policy_with(dtype: torch.dtype, head_learns: bool) -> Policy:
    """A policy with full fp32 weights and products in `dtype`; embeddings and head are tied if the head learns."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=head_learns)).eval()
    model.lm_head.weight.requires_grad_(head_learns)
    set_compute_dtype(trunk_of(model), dtype)
    return Policy(model)


WAYS = pytest.mark.parametrize(
    ("dtype", "head_learns"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, False)]
)


@WAYS
def test_chunks_give_the_log_probs_hits_and_gradients_of_whole_logits(dtype: torch.dtype, head_learns: bool) -> None:
    policy = policy_with(dtype, head_learns)
    packed = pack(MANY, 0, policy.share)
    assert len(packed.targets) > CHUNK
    above = torch.randn(len(packed.targets))

    def gradients(logps: torch.Tensor) -> list[torch.Tensor]:
        policy.zero_grad()
        (above * logps).sum().backward()
        return [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]

    hidden = hidden_states(trunk_of(policy.causal), packed).index_select(0, packed.predictors)
    logits = vocabulary_logits(policy.causal, hidden)
    wanted = token_logps(logits, packed.targets, 0.7)
    wanted_gradients = gradients(wanted)
    found = policy(packed, 0.7, accuracy=True)
    assert found.logps.dtype == torch.float32
    torch.testing.assert_close(found.logps, wanted)
    assert found.correct is not None
    assert found.correct.tolist() == (logits.argmax(-1) == packed.targets).tolist()
    assert 0 < int(found.correct.sum()) < len(MANY) * 9
    digits = 1e-5 if dtype == torch.float32 else 2e-2  # bf16 has eight bits
    for ours, theirs in zip(gradients(found.logps), wanted_gradients, strict=True):
        assert (ours - theirs).norm() <= digits * theirs.norm()


class Largest(TorchDispatchMode):
    """Records the maximum number of rows of tensors with a column per token of the vocabulary."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == SHAPE["vocab_size"]:
                self.rows = max(self.rows, tensor.numel() // tensor.shape[-1])
        return made


@WAYS
def test_logits_of_all_tokens_never_exist_together(dtype: torch.dtype, head_learns: bool) -> None:
    policy = policy_with(dtype, head_learns)
    packed = pack(MANY, 0, policy.share)
    with Largest() as seen:
        policy(packed, accuracy=True).logps.sum().backward()
    assert seen.rows == CHUNK
    with Largest() as seen:
        vocabulary_logits(policy.causal, torch.zeros(len(packed.targets), SHAPE["hidden_size"]))
    assert seen.rows == len(packed.targets)  # so such tensors would have been noticed
