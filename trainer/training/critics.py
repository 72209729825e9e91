"""The policy and its critic as one module, so that distributed training and checkpoints cover both."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from app.errors import ModelUnavailable
from app.specs import Lora
from trainer.batching.packing import Packed
from trainer.evaluation.figures import scoring_heads
from trainer.models.policy import Policy, head_of, trunk_of
from trainer.processes import device
from trainer.reward.model import load_reward_model
from trainer.speed.precision import set_compute_dtype


class Outputs(NamedTuple):
    """Outputs for the N response tokens of a packed batch, all (N,).

    Attributes:
        logps: log-probs of the tokens.
        entropy: in nats, without gradient; None unless requested.
        values: values of the states before the tokens.
    """

    logps: Tensor
    entropy: Tensor | None
    values: Tensor


class ActorCritic(nn.Module):
    """All modules that PPO trains. Policy and critic read the same packed rows.

    Attributes:
        share: whether both handle rows with shared prompts.
    """

    def __init__(self, causal: Any, critic: "ValueHead | RewardCritic") -> None:
        super().__init__()
        self.policy, self.critic = Policy(causal), critic
        self.share = self.policy.share and critic.share

    def forward(self, packed: Packed, temperature: float = 1.0, entropies: bool = False) -> Outputs:
        outputs = self.policy(packed, temperature, entropies)
        return Outputs(outputs.logps, outputs.entropy, self.critic(packed, outputs.hidden))


class ValueHead(nn.Module):
    """A value head on the policy's trunk, initially 0, so that the first advantages contain no noise of a critic."""

    share = True

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.head = nn.Linear(head_of(causal)[0].weight.shape[-1], 1)  # the trunk's output can differ from hidden_size
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(device())

    @torch.no_grad()
    def begin_at(self, value: Tensor, valid_mask: Tensor) -> Tensor:
        """Make an untrained head return `value` () for every state; return these values (B, T), 0 outside the mask."""
        self.head.bias.fill_(value)
        return torch.where(valid_mask, value, 0)

    def forward(self, packed: Packed, hidden: Tensor) -> Tensor:
        """Return values (N,) in fp32 for the policy's hidden states (N, H)."""
        return self.head(hidden.float()).squeeze(-1)


class RewardCritic(nn.Module):
    """A separate critic model, initialised from a reward model (Ouyang et al. 2022).

    Its value of a state starts as the reward model's score of the text so far. The critic is useful from the start, and
    the policy's trunk does not have to serve both purposes, but it takes the memory and time of a second model. With
    several members, the first one is used. With `lora`, its trunk is trained through a new adapter in addition to the
    reward model's own; its head is always trained in full. Products are computed in `dtype`.
    """

    def __init__(self, folder: str | Path, tokenizer: Any, lora: Lora | None, dtype: torch.dtype) -> None:
        """Raises ModelUnavailable if the reward model does not load or cannot be the critic of this policy."""
        super().__init__()
        model, own_tokenizer = load_reward_model(folder, dtype if lora else torch.float32, member=0)
        if model.layers:
            raise ModelUnavailable(
                f"The reward model {folder} reads whole responses on a frozen trunk, so it cannot be the critic.",
                "Choose critic `policy`, or train the reward model's trunk.",
            )
        vocabulary = own_tokenizer.get_vocab()
        if any(vocabulary.get(token) != i for token, i in tokenizer.get_vocab().items()):
            raise ModelUnavailable(
                f"The reward model {folder} does not read the policy's tokens, so it cannot be the critic.",
                "Choose critic `policy`, or a reward model that was trained on a model with the policy's tokenizer.",
            )
        self.model, self.share = model, model.share
        self.heads = scoring_heads(model)
        trunk = trunk_of(model.classifier)
        set_compute_dtype(trunk, dtype)
        if lora is None:
            trunk.requires_grad_(True)
        else:
            model.add_adapter(lora)
        model.classifier.score.requires_grad_(True)

    def forward(self, packed: Packed, hidden: Tensor) -> Tensor:
        """Return values (N,) in fp32: the mean of the scoring heads at the N states. `hidden` is not used."""
        # A reward model reads the last token of a sequence; the critic reads every token before a response token.
        return self.model(packed._replace(ends=packed.predictors))[:, self.heads].mean(-1)
