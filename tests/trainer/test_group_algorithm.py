"""Advantages, losses and gradients of RLOO and GRPO, against TRL's trainers and arithmetic."""

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.specs import GRPOSpec, ModelRef, Optimiser, RLOOSpec
from trainer.algorithms.group import answer_weights, group_loss, group_relative, has_signal, leave_one_out
from trainer.models.loading import load_causal_lm
from trainer.models.policy import Policy
from trainer.recipes.group import Learner
from trainer.training.experience import Rollout
from trainer.training.training import Training

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

K, LONGEST, PAD = 4, 9, 2
REWARDS = torch.tensor([[1.0, 3.0, 2.0, -2.0], [0.5, 0.5, 0.25, 0.5], [7.0, 7.0, 7.0, 7.0]])


# ---- advantages ------------------------------------------------------------------------------------------------------


def test_advantages_by_arithmetic() -> None:
    # 1 - (3 + 2 - 2) / 3, 3 - (1 + 2 - 2) / 3, 2 - (1 + 3 - 2) / 3, -2 - (1 + 3 + 2) / 3
    assert leave_one_out(REWARDS)[0].tolist() == pytest.approx([0, 8 / 3, 4 / 3, -4])
    assert group_relative(REWARDS, scaled=False)[0].tolist() == pytest.approx([0, 2, 1, -3])
    std = np.sqrt((0 + 4 + 1 + 9) / 3)
    assert group_relative(REWARDS, scaled=True)[0].tolist() == pytest.approx([0, 2 / std, 1 / std, -3 / std], rel=1e-3)


def test_equal_rewards_have_no_signal_whatever_floats_make_of_them() -> None:
    noise = 1e-6 * torch.randn(3, K, generator=torch.Generator().manual_seed(0))
    assert has_signal(REWARDS + noise).tolist() == [True, True, False]
    assert has_signal(100 * torch.ones(1, K) + 100 * noise[:1]).tolist() == [False]
    assert has_signal(torch.tensor([[0.0, 0.0, 0.0, 1e-3]])).tolist() == [True]


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("grpo", {"scale_rewards": "group"}, group_relative(REWARDS, scaled=True)),
        ("grpo", {"scale_rewards": "none"}, group_relative(REWARDS, scaled=False)),
        ("rloo", {}, leave_one_out(REWARDS)),
    ],
)
def test_advantages_are_trls(
    tiny_model: Path, tmp_path: Path, kind: str, settings: dict[str, Any], expected: Tensor
) -> None:
    trainer = trl_trainer(kind, tiny_model, tmp_path, beta=0.0, **settings)
    trainer.model.train()
    trainer._calculate_rewards = lambda *_: REWARDS.reshape(-1, 1)
    found = trainer._generate_and_score_completions([{"prompt": "Hm"}] * REWARDS.numel())
    torch.testing.assert_close(found["advantages"], expected.flatten(), atol=1e-6, rtol=1e-6)
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(1 / 3)]


# ---- losses and gradients --------------------------------------------------------------------------------------------


def trl_trainer(kind: str, model: Path, folder: Path, **settings: Any) -> Any:
    config, trainer = (GRPOConfig, GRPOTrainer) if kind == "grpo" else (RLOOConfig, RLOOTrainer)
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=3 * K,
        num_generations=K,
        max_completion_length=LONGEST,
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        **settings,
    )
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=AutoTokenizer.from_pretrained(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": "Hm"}] * 12),
    )


class Numbers:
    """Three groups of four answers of odd lengths, with log-probs under the sampling policy and a reference."""

    def __init__(self, model: Any) -> None:
        generator = torch.Generator().manual_seed(0)

        def ids(length: int) -> Tensor:
            return torch.randint(3, 260, (length,), generator=generator)

        prompts = [ids(length) for length in (5, 2, 7)]
        self.prompts = [prompt for prompt in prompts for _ in range(K)]
        self.lengths = torch.tensor([9, 1, 4, 7, 3, 3, 9, 2, 5, 8, 1, 6])
        self.answers = [ids(int(length)) for length in self.lengths]
        self.advantages = torch.randn(3 * K, generator=generator)
        self.mask = torch.arange(LONGEST) < self.lengths[:, None]
        with torch.no_grad():
            logps = torch.zeros(self.mask.shape)
            for i, (prompt, answer) in enumerate(zip(self.prompts, self.answers, strict=True)):
                logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
                logps[i, : len(answer)] = logits.log_softmax(-1)[range(len(answer)), answer]
        noise = torch.randn(2, *logps.shape, generator=generator)
        self.old_logps = torch.where(self.mask, logps + 0.2 * noise[0], 0)
        self.reference_logps = torch.where(self.mask, logps + 0.5 * noise[1], 0)

    def rollout(self) -> Rollout:
        return Rollout(
            rows=torch.zeros(3 * K, dtype=torch.long),
            prompts=torch.nn.utils.rnn.pad_sequence(self.prompts, batch_first=True),
            prompt_lengths=torch.tensor([len(prompt) for prompt in self.prompts]),
            tokens=torch.nn.utils.rnn.pad_sequence(self.answers, batch_first=True),
            lengths=self.lengths,
            finished=torch.ones(3 * K, dtype=torch.bool),
            scores=torch.zeros(3 * K),
            logps=self.old_logps,
            reference_logps=self.reference_logps,
            values=torch.zeros(self.mask.shape),
        )

    def inputs(self) -> dict[str, Tensor]:
        """Return the input of TRL's trainers: prompts padded on the left."""
        width = max(len(prompt) for prompt in self.prompts)
        rows = [torch.cat([torch.full((width - len(prompt),), PAD), prompt]) for prompt in self.prompts]
        there = torch.tensor([[column >= width - len(prompt) for column in range(width)] for prompt in self.prompts])
        return {
            "prompt_ids": torch.stack(rows),
            "prompt_mask": there.long(),
            "completion_ids": torch.nn.utils.rnn.pad_sequence(self.answers, batch_first=True, padding_value=PAD),
            "completion_mask": self.mask.long(),
            "advantages": self.advantages,
            "old_per_token_logps": self.old_logps,
            "ref_per_token_logps": self.reference_logps,
            "old_logps": self.old_logps.sum(1),
        }


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("grpo", {}, {"loss_type": "dr_grpo", "beta": 0.0}),
        ("grpo", {"normalisation": "published"}, {"loss_type": "grpo", "beta": 0.0}),
        ("grpo", {"kl_in": "loss"}, {"loss_type": "dr_grpo", "beta": 0.3}),
        (
            "grpo",
            {"kl_in": "loss", "normalisation": "published"},
            {"loss_type": "grpo", "beta": 0.3},
        ),
        ("rloo", {"normalisation": "published"}, {"beta": 0.0}),
    ],
)
def test_losses_and_gradients_are_trls(
    tiny_model: Path, tmp_path: Path, kind: str, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    if kind == "grpo":  # the KL penalty has another gradient as published
        theirs = theirs | {"use_bias_correction_kl": ours.get("normalisation") != "published"}
    trainer = trl_trainer(kind, tiny_model, tmp_path, **theirs)
    numbers = Numbers(trainer.model.eval())
    expected = trainer.compute_loss(trainer.model, numbers.inputs())
    expected.backward()

    found, model = accumulated(kind, tiny_model, numbers, **ours)
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert 0 < found["policy/clipfrac_avg"] < 1
    assert_same_gradients(model, trainer.model)


def accumulated(kind: str, model: Path, numbers: Numbers, **settings: Any) -> tuple[dict[str, float], Any]:
    """Return our learner's metrics of the numbers, in several parts, and the model with its gradients."""
    ref = ModelRef(base=str(model))
    optimiser = Optimiser(learning_rate=1e-3, batch_size=12, microbatch_size=1, microbatch_tokens=20)
    spec = (GRPOSpec if kind == "grpo" else RLOOSpec)(
        policy=ref,
        reference=ref,
        reward_models=("none",),
        prompts="none",
        lora=None,
        optimiser=optimiser,
        samples_per_prompt=K,
        max_new_tokens=LONGEST,
        **settings,
    )
    policy = Policy(load_causal_lm(ref, trainable=True))
    assert policy.share
    learner = Learner(spec, Training(policy, optimiser, seed=0, total_steps=1), True, PAD, None)
    return learner.accumulate(numbers.rollout(), range(3 * K), numbers.advantages, 0.3), policy.causal


def assert_same_gradients(model: Any, expected: Any) -> None:
    wanted = dict(expected.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in wanted.values())
    assert largest > 1e-3
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-5 * largest, rtol=1e-3, msg=name)


def test_rloo_with_a_constant_is_reinforce_by_tokens_in_float64(tiny_model: Path) -> None:
    """At the sampling policy, its gradient equals the published one up to a constant factor."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    numbers = Numbers(copy.deepcopy(model).float())
    terms = []
    for i, (prompt, answer) in enumerate(zip(numbers.prompts, numbers.answers, strict=True)):
        logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1)[range(len(answer)), answer]
        x = logps - numbers.old_logps[i, : len(answer)].double()
        a = numbers.advantages[i].double()
        terms.append(-torch.minimum(a * x.exp(), a * x.exp().clamp(0.8, 1.28)).sum())
    loss = torch.stack(terms).sum() / (12 * LONGEST)
    loss.backward()
    found, mine = accumulated("rloo", tiny_model, numbers)
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert_same_gradients(mine, model.float())
    assert "loss/kl_avg" not in found


def test_the_leash_in_the_loss_is_k3_with_the_weights_of_the_surrogate() -> None:
    logps = torch.tensor([-1.0, -2.0, -3.0])
    reference = torch.tensor([-1.5, -2.0, -2.0])
    owners, lengths, zero = torch.tensor([0, 0, 1]), torch.tensor([2, 1]), torch.zeros(2)
    k3 = [np.exp(-0.5) - 0.5, 0.0, np.exp(1) - 2]  # exp(-x) - 1 + x of 0.5, 0 and -1

    def kl(weights: Tensor, whole: bool = False) -> float:
        return float(group_loss(logps, logps, reference, zero, weights, owners, 0.2, 0.28, whole).kl)

    assert kl(answer_weights(lengths, 2, 5, "constant")) == pytest.approx(sum(k3) / 10)
    assert kl(answer_weights(lengths, 2, 5, "published")) == pytest.approx((k3[0] / 2 + k3[2]) / 2)
    assert kl(torch.full((2,), 0.5), whole=True) == pytest.approx(sum(k3) / 2)


def test_what_goes_up_may_go_further_than_what_goes_down() -> None:
    ratios = torch.tensor([1.25, 1.3, 0.85, 0.75, 1.3, 0.75], dtype=torch.float64)
    advantages = torch.tensor([1.0, 1, -1, -1, -1, 1], dtype=torch.float64)
    logps = ratios.log().requires_grad_()
    ones = torch.ones(6, dtype=torch.float64)
    loss = group_loss(logps, ones * 0, logps.detach(), advantages, ones, torch.arange(6), 0.2, 0.28)
    # The ratio is limited at 1.28 if more would be a gain, and at 0.8 if less would be; never if it would be a loss.
    assert loss.policy.item() == pytest.approx(-1.25 - 1.28 + 0.85 + 0.8 + 1.3 - 0.75)
    (gradient,) = torch.autograd.grad(loss.policy, logps)
    assert gradient.tolist() == pytest.approx([-1.25, 0, 0.85, 0, 1.3, -0.75])
    assert loss.clipfrac.item() == pytest.approx(2 / 6)
