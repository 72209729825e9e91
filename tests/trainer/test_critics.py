"""Both critics: a new value head, and a reward model that continues to learn."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, OPTConfig

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from tests.trainer.conftest import build_reward_model, trainable_parameters
from trainer.batching.chat import TokenSequence
from trainer.batching.packing import pack
from trainer.models.loading import load_causal_lm, load_tokenizer
from trainer.models.policy import trunk_of
from trainer.speed.precision import computes_in
from trainer.training.critics import ActorCritic, RewardCritic, ValueHead

SEQUENCES = [
    TokenSequence([5, 6, 7, 8], [9, 10, 11]),
    TokenSequence([5, 6, 7, 8], [12]),
    TokenSequence([20, 21], [22, 23, 24, 25]),
]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_a_reward_critic_says_what_the_reward_model_says_of_every_beginning(
    tiny_ref: ModelRef, tmp_path: Path, lora: Lora | None, share: bool
) -> None:
    folder = build_reward_model(tmp_path / "rewards", tiny_ref, heads=("reward/0", "reward/1", "style"))
    critic = RewardCritic(folder, load_tokenizer(tiny_ref), lora, torch.float32)
    module = ActorCritic(load_causal_lm(tiny_ref, Lora(rank=4), trainable=True), critic).eval()
    values = module(pack(SEQUENCES, 0, share)).values
    classifier = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = []
    for prompt, completion in SEQUENCES:
        for t in range(len(completion)):
            with torch.no_grad():
                seen = classifier(torch.tensor([[*prompt, *completion[:t]]])).logits[0]
            # The mean of the members, each minus its offset, without style. Values are of the state before token t.
            expected.append((seen[0] - 0.25 + seen[1] - 0.5) / 2)
    torch.testing.assert_close(values, torch.stack(expected), atol=1e-5, rtol=1e-5)

    values.sum().backward()
    named = [name for name, parameter in critic.named_parameters() if parameter.requires_grad]
    assert any("score" in name for name in named)
    assert all("lora" in name or "score" in name for name in named) is (lora is not None)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in critic.named_parameters() if "score" in n)


def test_a_value_head_is_zero_and_learns_on_the_policys_trunk(tiny_ref: ModelRef) -> None:
    causal = load_causal_lm(tiny_ref, Lora(rank=4), trainable=True)
    module = ActorCritic(causal, ValueHead(causal)).eval()
    outputs = module(pack(SEQUENCES, 0, module.share))
    assert outputs.values.tolist() == [0.0] * 8
    assert outputs.values.dtype == torch.float32
    (outputs.values - 1).square().sum().backward()
    assert module.critic.head.weight.grad.abs().max() > 0
    torch.nn.init.ones_(module.critic.head.weight)
    module(pack(SEQUENCES, 0, module.share)).values.sum().backward()
    adapters = [p for name, p in causal.named_parameters() if "lora_B" in name]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in adapters)
    # All trained parameters are in the one module that processes and checkpoints handle.
    assert len(trainable_parameters(module)) == len(trainable_parameters(causal)) + 2


def test_a_value_head_reads_states_that_are_narrower_than_the_layers() -> None:
    config = OPTConfig(
        vocab_size=260, hidden_size=32, word_embed_proj_dim=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2
    )
    causal = AutoModelForCausalLM.from_config(config)
    module = ActorCritic(causal, ValueHead(causal)).eval()
    assert module(pack(SEQUENCES, 0, module.share)).values.tolist() == [0.0] * 8


def test_a_reward_model_with_other_tokens_cannot_be_the_critic(tiny_ref: ModelRef, reward_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_ref)
    tokenizer.add_tokens(["unheard-of"])
    with pytest.raises(ModelUnavailable, match="does not read the policy's tokens"):
        RewardCritic(reward_folder, tokenizer, None, torch.float32)


@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_what_learns_in_a_critic_is_held_in_fp32_whatever_is_computed(
    tiny_ref: ModelRef, reward_folder: Path, lora: Lora | None
) -> None:
    """bf16 would round small steps away. Frozen weights take half the memory in bf16."""
    critic = RewardCritic(reward_folder, load_tokenizer(tiny_ref), lora, torch.bfloat16)
    assert {p.dtype for p in trainable_parameters(critic)} == {torch.float32}
    frozen = {p.dtype for p in critic.parameters() if not p.requires_grad}
    assert frozen == ({torch.bfloat16} if lora else set())
    assert computes_in(trunk_of(critic.model.classifier)) is torch.bfloat16
