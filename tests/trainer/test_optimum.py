"""PPO, RLOO and GRPO on a problem with a known optimum: answers of one token, with a table of rewards.

Maximising E[r] - beta KL(pi || pi_ref) over all policies gives pi*(y) = pi_ref(y) exp(r(y) / beta) / Z.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.artifacts import ArtifactStore
from app.rows import PromptRow
from app.specs import GRPOSpec, ModelRef, Optimiser, PPOSpec, RLOOSpec
from tests.trainer.conftest import user, write_rows
from trainer.recipes import group, ppo
from trainer.reporting import ConsoleReporter
from trainer.sampling.responses import Response

LETTERS = "abcdefgh"
PROMPTS = ("ab", "cd", "ga", "hf")
REWARDS = torch.tensor([-0.25, -0.75, 0, 1, -1, 0.75, -0.5, 0.5, 0.25])  # of the end of turn, then of each letter


class Toy(NamedTuple):
    """A policy over nine tokens, and its log-probs (4, 9) after four prompts, in float64."""

    folder: Path
    logps: Tensor

    def trained(
        self,
        store: ArtifactStore,
        out: Path,
        method: type[PPOSpec] | type[RLOOSpec] | type[GRPOSpec] = PPOSpec,
        **changes: Any,
    ) -> tuple[Tensor, ConsoleReporter]:
        """Return log-probs (4, 9) after training, and the reported metrics."""
        ref = ModelRef(base=str(self.folder))
        settings = Optimiser(learning_rate=3e-3, epochs=4, batch_size=64, microbatch_size=64, warmup_ratio=0.0)
        spec = method(
            policy=ref,
            reference=ref,
            reward_models=("none: the table scores",),
            prompts=str(self.folder / "prompts.jsonl"),
            lora=None,
            optimiser=settings,
            episodes=50 * 64,
            rollout_size=64,
            samples_per_prompt=16,
            max_new_tokens=1,
            max_length=16,
            missing_eos_penalty=None,  # answers have only one token
            evaluate_every=50,
            **changes,
        )
        out.mkdir()
        reporter = ConsoleReporter(stream=None)
        recipe: Any = ppo if method is PPOSpec else group
        recipe.train(spec, store, reporter, out, scorer=table)
        return logps_of(out), reporter


def table(responses: Sequence[Response]) -> Tensor:
    return REWARDS[[response.sample.tokens[0] for response in responses]]


def logps_of(folder: Path) -> Tensor:
    """Compute them with plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[1 + LETTERS.index(letter) for letter in prompt] for prompt in PROMPTS])
    with torch.no_grad():
        return torch.log_softmax(model(ids).logits[:, -1].double(), -1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) (4,) for log-probs (4, 9)."""
    return (p.exp() * (p - q)).sum(-1)


def optimum(reference: Tensor, beta: float) -> Tensor:
    return torch.log_softmax(reference + REWARDS.double() / beta, -1)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    vocabulary = {token: i for i, token in enumerate(["</s>", *LETTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    config = LlamaConfig(
        vocab_size=9,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,  # so that the reference prefers some tokens
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    folder = tmp_path / "toy"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="</s>",
        pad_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(folder)
    rows = [PromptRow(id=i, messages=user(prompt)) for i, prompt in enumerate(PROMPTS)]
    write_rows(folder / "prompts.jsonl", rows)
    return Toy(folder, logps_of(folder))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (PPOSpec, {}),
        (RLOOSpec, {}),
        (RLOOSpec, {"kl_in": "loss"}),
        (RLOOSpec, {"normalisation": "published"}),
        (GRPOSpec, {}),
    ],
)
def test_a_fixed_leash_leads_to_the_optimum(
    toy: Toy, store: ArtifactStore, tmp_path: Path, method: type[PPOSpec], settings: dict[str, Any]
) -> None:
    policy, reporter = toy.trained(store, tmp_path / "policy", method, kl_coef=0.5, kl_target=None, **settings)
    best = optimum(toy.logps, 0.5)
    assert kl(toy.logps, best).mean() > 0.5  # the policy starts far from the optimum
    assert kl(policy, best).max() < 0.02
    assert set(reporter.values("objective/kl_coef")) == {0.5}
    # The reported KL to the reference is right, in nats per sequence of one token.
    sampled = reporter.values("objective/kl")[-15:]
    assert sum(sampled) / 15 == pytest.approx(float(kl(best, toy.logps).mean()), abs=0.1)
    assert reporter.values("objective/kl") == pytest.approx(reporter.values("objective/kl_per_token"))
    expected = float((policy.exp() * REWARDS.double()).sum(-1).mean())
    assert sum(reporter.values("objective/scores")[-15:]) / 15 == pytest.approx(expected, abs=0.05)


def test_the_controller_holds_its_target_at_the_optimum_for_its_beta(
    toy: Toy, store: ArtifactStore, tmp_path: Path
) -> None:
    target = 0.3
    policy, reporter = toy.trained(store, tmp_path / "policy", kl_coef=0.5, kl_target=target, kl_horizon=256)
    # Find the beta whose optimum has this KL by bisection.
    low, high = 0.1, 10.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(optimum(toy.logps, middle), toy.logps).mean() > target else (low, middle)
    betas, sampled = reporter.values("objective/kl_coef"), reporter.values("objective/kl")
    assert float(kl(policy, toy.logps).mean()) == pytest.approx(target, rel=0.25)
    assert sum(sampled[-20:]) / 20 == pytest.approx(target, rel=0.25)
    assert sum(betas[-20:]) / 20 == pytest.approx(low, rel=0.15)
    assert kl(policy, optimum(toy.logps, betas[-1])).max() < 0.05
    # Every rollout changed beta by Ziegler et al.'s rule, with 64 episodes and a horizon of 256.
    for before, after, measured in zip(betas, betas[1:], sampled, strict=False):
        assert after == pytest.approx(before * (1 + min(max(measured / target - 1, -0.2), 0.2) * 64 / 256))
