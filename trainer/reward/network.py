"""The reward model as a torch module: one trunk, and members that each have their own adapter and heads."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from app.specs import Lora
from trainer.batching.packing import Packed
from trainer.models import member_adapters
from trainer.models.loading import lora_config
from trainer.models.policy import can_share, hidden_states, trunk_of
from trainer.reward.doubt import Doubt
from trainer.speed.precision import set_compute_dtype

REWARD = "reward"  # name, or prefix of the names, of the heads that score the response; other heads are aspects
ADDED = "added"  # name of the adapter of a critic that starts from a reward model


def score_heads(names: Sequence[str]) -> list[int]:
    """Return the indices of the heads that score the response as a whole."""
    return [i for i, name in enumerate(names) if name.partition("/")[0] == REWARD]


def score_of(rewards: Tensor, names: Sequence[str]) -> Tensor:
    """Return the mean (...) over the score heads of rewards (..., len(names))."""
    return rewards[..., score_heads(names)].mean(-1)


def shares_of(deviation: Tensor, names: Sequence[str]) -> Tensor:
    """Return the per-head factors (H,) that reproduce the deployed score from rewards with these deviations (H,).

    The deployed heads are normalised to equal spread, so a head with a large spread gets a factor below 1. The factors
    have mean 1 over the score heads, which keeps the scale of the rewards. For a single head the factor is 1.
    """
    gains = 1 / deviation.clamp(min=1e-6)
    return (gains / score_of(gains, names)).float()


class RewardModel(nn.Module):
    """A sequence classifier with one label per head, pooled at the LAST VALID token by mask, minus `offsets`.

    With `layers`, the heads read a frozen trunk's `features` instead, and members differ only in their heads.

    Pooling by padding id, as transformers does, reads the wrong place if padding and EOS are the same token, so this
    class pools by mask. In the saved folder, the padding token is one that no response ends with, so that transformers
    pools at the same place.

    Attributes:
        members: number of members, each with its own adapter and heads; 1 with full weights.
        own_heads: the names of a member's heads: `reward`, or `reward/0`... for an ensemble, then aspects.
        heads: the names of the C columns of rewards, member by member; `reward/2` is the head of member 2.
        offsets: (C,) subtracted from the heads' outputs.
        gains: (C,) factors that the heads were multiplied by after training: rewards / gains are on Bradley-Terry's
            scale.
        layers: layers of a frozen trunk that the heads read, counted from 1; empty if the trunk is trained.
        doubt: the penalty for responses unlike those in the fit; None until it is known.
        ceiling: the score that 1% of the compared responses exceed; None until it is known.
    """

    offsets: Tensor
    gains: Tensor
    scores: Any  # a ModuleList of linear layers without bias: each member's heads

    def __init__(
        self,
        classifier: Any,
        offsets: Sequence[float] | None = None,
        gains: Sequence[float] | None = None,
        members: int = 1,
        layers: Sequence[int] = (),
    ):
        super().__init__()
        self.classifier, self.members, self.layers = classifier, members, tuple(layers)
        self.own_heads = tuple(classifier.config.id2label[i] for i in range(classifier.config.num_labels))
        self.heads = self.own_heads
        if members > 1:
            self.heads = tuple(f"{name}/{member}" for member in range(members) for name in self.own_heads)
        where = classifier.score.weight.device
        self.scores = nn.ModuleList([classifier.score])
        for _ in range(members - 1):
            self.scores.append(copy.deepcopy(classifier.score))
        # Not in the state dict: they are stored in the folder's config, where other programs find them.
        for name, values, default in (("offsets", offsets, 0.0), ("gains", gains, 1.0)):
            self.register_buffer(
                name, torch.tensor(values or [default] * len(self.heads), device=where), persistent=False
            )
        self.doubt: Doubt | None = None
        self.ceiling: float | None = None
        self.always: tuple[str, ...] = ()  # adapters that are active in addition to each member's
        self.share = can_share(trunk_of(classifier))

    @property
    def score_heads(self) -> list[int]:
        """Indices of the columns that score the response as a whole: one, or those of all members and ensembles."""
        return score_heads(self.heads)

    def score(self, rewards: Tensor) -> Tensor:
        """Return the mean (...) over the score heads of rewards (..., C)."""
        return score_of(rewards, self.heads)

    def columns(self, member: int) -> slice:
        """Return the slice of a member's columns in rewards (..., C)."""
        width = len(self.own_heads)
        return slice(member * width, (member + 1) * width)

    def together(self, rewards: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Combine the rewards (..., C) of all members into (..., H); also return a deviation (H,) for `shares_of`.

        A member weighs as much as in the deployed score: 1 over the standard deviation (C,) of its rewards.
        """
        gains = 1 / deviation.view(self.members, -1).clamp(min=1e-6)
        mean_gain = gains.mean(0)
        weighted = rewards.unflatten(-1, (self.members, -1)) * (gains / mean_gain).to(rewards)
        return weighted.mean(-2), 1 / mean_gain

    def add_adapter(self, lora: Lora) -> None:
        """Add a new trainable adapter next to the frozen adapter of the only member."""
        assert self.members == 1, "members share the trunk, so no adapter is one's alone"
        self.requires_grad_(False)
        member_adapters.put_on(self.classifier, lora_config(lora, "SEQ_CLS"), ADDED)
        self.always = (*self.always, ADDED)

    def forward(self, packed: Packed, member: int | None = None) -> Tensor:
        """Return rewards in fp32: (S, H) of one member, or (S, C) of all members if `member` is None."""
        if self.layers:
            features = self.features(packed)
            if member is None:
                return self._said_of(features)
            own = self.columns(member)
            return self.scores[member](features) - self.offsets[own] - self._doubted(features)[:, own]
        if member is None:
            return torch.cat([self.forward(packed, each) for each in range(self.members)], -1)
        member_adapters.activate(self.classifier, (*self.always, str(member)))
        pooled = hidden_states(trunk_of(self.classifier), packed).index_select(0, packed.ends)
        head = self.scores[member]
        return head(pooled.to(head.weight.dtype)).float() - self.offsets[self.columns(member)]

    @torch.no_grad()
    def look(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """Return rewards (S, C) of all members, and (S,): 1 for responses beyond the doubt's limit, else 0.

        Without doubt, the second tensor is NaN.
        """
        if not self.layers or self.doubt is None:
            rewards = self(packed)
            return rewards, torch.full((len(rewards),), torch.nan)
        features = self.features(packed)
        return self._said_of(features), (self.doubt.deviation(features) > self.doubt.limit).float()

    def _said_of(self, features: Tensor) -> Tensor:
        """Return the rewards (S, C) of all members for responses with these features."""
        return torch.cat([head(features) for head in self.scores], -1) - self.offsets - self._doubted(features)

    def _doubted(self, features: Tensor) -> Tensor:
        """Return the doubt's penalties (S, C), which are 0 for aspects."""
        taken = torch.zeros(len(features), len(self.heads), device=features.device)
        if self.doubt is not None:
            columns = self.score_heads
            taken[:, columns] = self.doubt.cost(features)[:, None] * self.gains[columns]
        return taken

    @torch.no_grad()
    def features(self, packed: Packed) -> Tensor:
        """Return the features (S, 2 * layers * H) of responses in a frozen trunk, in fp32.

        These are, for each layer in `layers`, the mean of the states over a response's tokens, and then, again for each
        layer, the state at its last token.
        """
        states = hidden_states(trunk_of(self.classifier), packed, self.layers)
        lengths = packed.lengths
        before = lengths.cumsum(0) - lengths  # number of tokens in all earlier responses
        firsts = packed.ends - lengths + 1
        places = torch.arange(len(packed.owners), device=states.device) + (firsts - before)[packed.owners]
        last = states[packed.ends].float()
        mean = torch.zeros_like(last).index_add(0, packed.owners, states[places].float())
        mean /= lengths.clamp(min=1)[:, None, None]
        return torch.cat([mean, last], 1).flatten(1)

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Rescale rewards with this mean and standard deviation (C,) to mean 0 and standard deviation 1.

        Call it once, after training.
        """
        mean, deviation = mean.to(self.offsets), deviation.to(self.offsets)
        for member, head in enumerate(self.scores):
            head.weight.div_(deviation[self.columns(member)][:, None])
        self.gains.div_(deviation)
        self.offsets.add_(mean).div_(deviation)


def head_names(ensemble: int, aspects: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a new model's heads."""
    return (*([REWARD] if ensemble == 1 else [f"{REWARD}/{i}" for i in range(ensemble)]), *aspects)


@torch.no_grad()
def merge_adapters(model: RewardModel) -> None:
    """Merge the adapters of the only member into its weights, in fp32; do nothing if there are none."""
    assert model.members == 1, "members share the trunk, so none can be merged into it"
    layers: dict[str, Any] = {}
    for name, module in model.classifier.named_modules():
        # If several parameters of a module are adapted (as in experts), the adapter layers are nested.
        if isinstance(module, BaseTunerLayer) and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = module
    if layers:
        member_adapters.activate(model.classifier, (*model.always, "0"))
        model.classifier.float()  # bf16 would round the adapters' small changes away
        set_compute_dtype(trunk_of(model.classifier), torch.float32)
        model.always = ()
    for name, layer in layers.items():
        while isinstance(layer, BaseTunerLayer):
            layer.merge()
            layer = layer.base_layer
        model.classifier.set_submodule(name, layer)
