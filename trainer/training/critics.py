"""The policy and its critic as one module: processes exchange the gradients of both, checkpoints hold both."""

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
    """Outputs for the N response tokens of a packed batch, all (N,): log-probs, entropies in nats, values of the states
    before.

    Entropies are computed only on request, and carry no gradient.
    """

    logps: Tensor
    entropy: Tensor | None
    values: Tensor


class ActorCritic(nn.Module):
    """All that PPO trains. Both parts read the same packed rows.

    Attributes:
        share: whether both read rows with shared prompts right.
    """

    def __init__(self, causal: Any, critic: "ValueHead | RewardCritic") -> None:
        super().__init__()
        self.policy, self.critic = Policy(causal), critic
        self.share = self.policy.share and critic.share

    def forward(self, packed: Packed, temperature: float = 1.0, entropies: bool = False) -> Outputs:
        outputs = self.policy(packed, temperature, entropies)
        return Outputs(outputs.logps, outputs.entropy, self.critic(packed, outputs.hidden))


class ValueHead(nn.Module):
    """A head on the policy's trunk, zero at first: the first advantages hold rewards only, no noise of a critic."""

    share = True

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.head = nn.Linear(head_of(causal)[0].weight.shape[-1], 1)  # what the trunk gives, not always hidden_size
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.to(device())

    @torch.no_grad()
    def begin_at(self, value: Tensor, valid_mask: Tensor) -> Tensor:
        """Makes a head that is still zero say `value` () of every state, and returns that where the mask (B, T) is."""
        self.head.bias.fill_(value)
        return torch.where(valid_mask, value, 0)

    def forward(self, packed: Packed, hidden: Tensor) -> Tensor:
        """Values (N,) in fp32 of the policy's hidden states (N, H)."""
        return self.head(hidden.float()).squeeze(-1)


class RewardCritic(nn.Module):
    """A model of its own that begins as a reward model (Ouyang et al. 2022): its score of what stands there so far.

    It knows from the start what is good, and the policy's trunk need not serve two masters; it takes the memory and the
    time of a second model. It begins as the first member. With `lora` its trunk learns through a new adapter
    beside the reward model's own; its head always learns in full. Products are computed in `dtype`.
    """

    def __init__(self, folder: str | Path, tokenizer: Any, lora: Lora | None, dtype: torch.dtype) -> None:
        """Raises ModelUnavailable: the folder holds no reward model, or one that reads other tokens than the policy."""
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
        """Values (N,) in fp32: the mean of the scoring heads at the N states; the policy's own states are not read."""
        # A reward is read at the last token of a sequence; here at every token that a response token follows.
        return self.model(packed._replace(ends=packed.predictors))[:, self.heads].mean(-1)
