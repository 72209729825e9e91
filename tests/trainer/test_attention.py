"""Attention without padding gives the same numbers as attention with padding, and as each sequence alone."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.models.policy import Policy, can_share, hidden_states, trunk_of
from trainer.speed.attention import RAGGED

SEQUENCES = [TokenSequence([5, 6, 7], [8, 9]), TokenSequence([5, 6, 7], [10]), TokenSequence([11], [12] * 9)]
SEQUENCES += [TokenSequence([13, 14], [15]), TokenSequence([13, 14], [])]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=2, **shape)).eval()


def test_a_model_on_a_cpu_reads_without_padding_and_learns_the_same() -> None:
    padded, ragged = llama(), llama()
    assert padded.config._attn_implementation == "sdpa"
    assert can_share(trunk_of(ragged))
    assert ragged.config._attn_implementation == RAGGED
    packed = pack(SEQUENCES, 0, share=True)
    assert bool((packed.group_ids < 0).any())
    seen: list[tuple[int, ...]] = []
    for model in (padded, ragged):
        model.model.layers[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:2])))
        states = hidden_states(trunk_of(model), packed)
        states[packed.predictors].square().sum().backward()
    rows, columns = packed.input_ids.shape
    assert seen == [(rows, columns), (1, int((packed.group_ids >= 0).sum()))]
    for (name, wanted), found in zip(padded.named_parameters(), ragged.parameters(), strict=True):
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_log_probs_are_those_of_each_sequence_alone() -> None:
    policy = Policy(llama())
    alone = [policy(pack([sequence], 0, share=False)).logps for sequence in SEQUENCES if sequence.completion]
    together = policy(pack(SEQUENCES, 0, policy.share)).logps
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_generation_of_a_model_set_to_it_is_as_before() -> None:
    plain, ragged = llama(), llama()
    can_share(trunk_of(ragged))
    prompts, mask = torch.tensor([[1, 2, 3], [0, 4, 5]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    wanted, found = (
        model.generate(prompts, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0)
        for model in (plain, ragged)
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_other_architectures_share_or_stay_as_they_are(implementation: str) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=24, n_layer=2, n_head=2, n_positions=64)
    config._attn_implementation = implementation
    policy = Policy(GPT2LMHeadModel(config).eval())
    # Eager attention adds the mask to the scores, so it does not accept a boolean mask.
    assert policy.share == (implementation == "sdpa")
    assert policy.causal.config._attn_implementation == (RAGGED if implementation == "sdpa" else "eager")
    alone = [policy(pack([sequence], 0, share=False)).logps for sequence in SEQUENCES if sequence.completion]
    together = policy(pack(SEQUENCES, 0, policy.share)).logps
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("failure", [AssertionError("a mask of two dimensions"), KeyError(4), AttributeError("mask")])
def test_a_model_that_takes_no_such_mask_reads_every_sequence_alone(failure: Exception) -> None:
    """A model's own code may check masks in its own way."""

    def check(_module: torch.nn.Module, _args: object, named: dict[str, object]) -> None:
        if named.get("attention_mask") is not None:
            raise failure

    model = llama()
    trunk_of(model).register_forward_pre_hook(check, with_kwargs=True)
    assert not Policy(model).share
    assert model.config._attn_implementation == "sdpa"


def test_memory_that_runs_out_while_a_model_is_tried_is_no_fault_of_its() -> None:
    def full(_module: torch.nn.Module, _args: object, named: dict[str, object]) -> None:
        if named.get("attention_mask") is not None:
            raise torch.OutOfMemoryError

    model = llama()
    trunk_of(model).register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        can_share(trunk_of(model))
