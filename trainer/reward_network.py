"""A reward model as a module: one trunk, and members that each have an adapter and heads of their own."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from app.specs import Lora
from trainer import member_adapters
from trainer.doubt import Doubt
from trainer.modeling import lora_config
from trainer.packing import Packed
from trainer.policy import can_share, hidden_states, trunk_of
from trainer.precision import set_compute_dtype

REWARD = "reward"  # the head, or the prefix of the heads, whose score is the reward; others are aspects
ADDED = "added"  # the adapter of a critic that goes on from a reward model


def score_heads(names: Sequence[str]) -> list[int]:
    """Which of these heads score the response as a whole."""
    return [i for i, name in enumerate(names) if name.partition("/")[0] == REWARD]


def score_of(rewards: Tensor, names: Sequence[str]) -> Tensor:
    """The mean (...) over the score heads of rewards (..., len(names))."""
    return rewards[..., score_heads(names)].mean(-1)


def shares_of(deviation: Tensor, names: Sequence[str]) -> Tensor:
    """Return the factors that turn rewards with these standard deviations (H,) into the score that is deployed.

    Normalised heads have equal spreads, so one that spread its rewards more counts for less than in the plain mean. The
    factors have mean 1 over the score heads: the scale stays theirs. (H,), 1 for a single head.
    """
    gains = 1 / deviation.clamp(min=1e-6)
    return (gains / score_of(gains, names)).float()


class RewardModel(nn.Module):
    """A sequence classifier with a label a head, pooled at the LAST VALID token by mask, minus `offsets`.

    With `layers` the heads read a frozen trunk's `features` instead, and members differ in their heads only.

    Pooling by padding id, as transformers does, reads the wrong place when padding and EOS are one token; here ids
    never decide. For plain transformers the saved folder has a padding token that no response ends with, so both agree.

    Attributes:
        members: how many members there are, each with an adapter and heads of its own; 1 with full weights.
        own_heads: the names of a member's heads: `reward`, or `reward/0` ... of an ensemble, then aspects.
        heads: the names of the C columns of rewards, those of each member after another; `reward/2` is member 2's.
        offsets: (C,) subtracted from the heads' outputs.
        gains: (C,) what the heads were multiplied by after training: rewards / gains are on Bradley-Terry's scale.
        layers: of a frozen trunk, those that the heads read, counted from 1; empty where the trunk is trained.
        doubt: what lowers the score of responses unlike those that the heads were fitted to; none before that is known.
        ceiling: the score that 1% of the compared responses exceed; none before that is known.
    """

    offsets: Tensor
    gains: Tensor
    scores: Any  # a ModuleList of each member's heads: linear layers without a bias

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
        self.scores = nn.ModuleList([classifier.score])  # of each member
        for _ in range(members - 1):
            self.scores.append(copy.deepcopy(classifier.score))
        # Not in the state: they live in the folder's config, where other programs find them.
        for name, values, default in (("offsets", offsets, 0.0), ("gains", gains, 1.0)):
            self.register_buffer(
                name, torch.tensor(values or [default] * len(self.heads), device=where), persistent=False
            )
        self.doubt: Doubt | None = None
        self.ceiling: float | None = None
        self.always: tuple[str, ...] = ()  # adapters that are active beside each member's
        self.share = can_share(trunk_of(classifier))

    @property
    def score_heads(self) -> list[int]:
        """Which columns score the response as a whole: one, or those of all members and ensembles."""
        return score_heads(self.heads)

    def score(self, rewards: Tensor) -> Tensor:
        """The mean (...) over the score heads of rewards (..., C)."""
        return score_of(rewards, self.heads)

    def columns(self, member: int) -> slice:
        """A member's columns of rewards (..., C)."""
        width = len(self.own_heads)
        return slice(member * width, (member + 1) * width)

    def together(self, rewards: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Return what all members say together of rewards (..., C), (..., H), and its deviation (H,) for `shares_of`.

        A member counts as it does in the deployed score: by 1 over the standard deviation (C,) of its rewards.
        """
        gains = 1 / deviation.view(self.members, -1).clamp(min=1e-6)
        mean_gain = gains.mean(0)
        weighted = rewards.unflatten(-1, (self.members, -1)) * (gains / mean_gain).to(rewards)
        return weighted.mean(-2), 1 / mean_gain

    def add_adapter(self, lora: Lora) -> None:
        """Puts a new adapter, the only one that learns, beside the frozen one of the only member."""
        assert self.members == 1, "members share the trunk, so no adapter is one's alone"
        self.requires_grad_(False)
        member_adapters.put_on(self.classifier, lora_config(lora, "SEQ_CLS"), ADDED)
        self.always = (*self.always, ADDED)

    def forward(self, packed: Packed, member: int | None = None) -> Tensor:
        """Rewards in fp32: (S, H) of one member, (S, C) of all of them."""
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
        """Rewards (S, C) of all members, and (S,): 1 for responses beyond doubt's limit, else 0; NaN without doubt."""
        if not self.layers or self.doubt is None:
            rewards = self(packed)
            return rewards, torch.full((len(rewards),), torch.nan)
        features = self.features(packed)
        return self._said_of(features), (self.doubt.deviation(features) > self.doubt.limit).float()

    def _said_of(self, features: Tensor) -> Tensor:
        """What all members say of responses with these features: (S, C)."""
        return torch.cat([head(features) for head in self.scores], -1) - self.offsets - self._doubted(features)

    def _doubted(self, features: Tensor) -> Tensor:
        """(S, C) what doubt takes from the rewards; aspects are not doubted."""
        taken = torch.zeros(len(features), len(self.heads), device=features.device)
        if self.doubt is not None:
            columns = self.score_heads
            taken[:, columns] = self.doubt.cost(features)[:, None] * self.gains[columns]
        return taken

    @torch.no_grad()
    def features(self, packed: Packed) -> Tensor:
        """What a frozen trunk says of the responses, (S, 2 * layers * H) in fp32.

        The mean over a response's tokens of the states of each layer in `layers`, then the states at its last token.
        """
        states = hidden_states(trunk_of(self.classifier), packed, self.layers)
        lengths = packed.lengths
        before = lengths.cumsum(0) - lengths  # tokens of the responses before each
        firsts = packed.ends - lengths + 1
        places = torch.arange(len(packed.owners), device=states.device) + (firsts - before)[packed.owners]
        last = states[packed.ends].float()
        mean = torch.zeros_like(last).index_add(0, packed.owners, states[places].float())
        mean /= lengths.clamp(min=1)[:, None, None]
        return torch.cat([mean, last], 1).flatten(1)

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Makes rewards that have this mean and standard deviation (C,) have 0 and 1. Call once, after training."""
        mean, deviation = mean.to(self.offsets), deviation.to(self.offsets)
        for member, head in enumerate(self.scores):
            head.weight.div_(deviation[self.columns(member)][:, None])
        self.gains.div_(deviation)
        self.offsets.add_(mean).div_(deviation)


def head_names(ensemble: int, aspects: Sequence[str]) -> tuple[str, ...]:
    """Names of a new model's heads."""
    return (*([REWARD] if ensemble == 1 else [f"{REWARD}/{i}" for i in range(ensemble)]), *aspects)


@torch.no_grad()
def merge_adapters(model: RewardModel) -> None:
    """Adds what the adapters of the only member learned to its weights, in fp32; does nothing without any."""
    assert model.members == 1, "members share the trunk, so none can be merged into it"
    layers: dict[str, Any] = {}
    for name, module in model.classifier.named_modules():
        # Where several parameters of a module are adapted (experts'), one adapter holds the next.
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
