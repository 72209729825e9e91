"""Reward models: a policy's trunk with scalar heads, made, run, saved, loaded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from trainer.chat import end_of_turn_id
from trainer.checks import refuse_missing, refuse_nan, refuse_pickles
from trainer.modeling import (
    device,
    load_causal_lm,
    load_config,
    load_tokenizer,
    loading,
    lora_config,
    trusts_remote_code,
    working_dtype,
)
from trainer.packing import Packed
from trainer.policy import can_share, hidden_states, trunk_of
from trainer.training import accelerator

POOLING = "last_valid_token"
REWARD = "reward"  # the head, or the prefix of the heads, whose score is the reward; others are aspects


class RewardModel(nn.Module):
    """A sequence classifier with a label a head, pooled at the LAST VALID token by mask, minus `offsets`.

    Pooling by padding id, as transformers does, reads the wrong place when padding and EOS are one token; here ids
    never decide. For plain transformers the saved folder has a padding token that no response ends with, so both agree.

    Attributes:
        heads: the names of the H heads: `reward`, or `reward/0` ... of an ensemble, then aspects.
        offsets: (H,) subtracted from the heads' outputs.
        gains: (H,) what the heads were multiplied by after training: rewards / gains are on Bradley-Terry's scale.
    """

    offsets: Tensor
    gains: Tensor

    def __init__(self, classifier: Any, offsets: Sequence[float] | None = None, gains: Sequence[float] | None = None):
        super().__init__()
        self.classifier = classifier
        self.heads = tuple(classifier.config.id2label[i] for i in range(classifier.config.num_labels))
        where = classifier.score.weight.device
        # Not in the state: they live in the folder's config, where other programs find them.
        for name, values, default in (("offsets", offsets, 0.0), ("gains", gains, 1.0)):
            self.register_buffer(
                name, torch.tensor(values or [default] * len(self.heads), device=where), persistent=False
            )
        self.share = can_share(trunk_of(classifier))

    @property
    def score_heads(self) -> list[int]:
        """Which heads score the response as a whole: one, or the members of the ensemble."""
        return [i for i, name in enumerate(self.heads) if name.partition("/")[0] == REWARD]

    def score(self, rewards: Tensor) -> Tensor:
        """The mean (...) over the score heads of rewards (..., H)."""
        return rewards[..., self.score_heads].mean(-1)

    def shares(self, deviation: Tensor) -> Tensor:
        """What to multiply rewards (..., H) with these standard deviations (H,) by for the score that is deployed.

        Normalised members of an ensemble have equal spreads, so one that spread its rewards more counts for less than
        in the plain mean. Of mean 1 over the score heads: the scale stays theirs. (H,), 1 for a single head.
        """
        gains = 1 / deviation.clamp(min=1e-6)
        return (gains / self.score(gains)).float()

    def forward(self, packed: Packed) -> Tensor:
        """Rewards (S, H) in fp32."""
        pooled = hidden_states(trunk_of(self.classifier), packed).index_select(0, packed.ends)
        return self.classifier.score(pooled.to(self.classifier.score.weight.dtype)).float() - self.offsets

    @torch.no_grad()
    def normalise(self, mean: Tensor, deviation: Tensor) -> None:
        """Makes rewards that have this mean and standard deviation (H,) have 0 and 1. Call once, after training."""
        mean, deviation = mean.to(self.offsets), deviation.to(self.offsets)
        self.classifier.score.weight.div_(deviation[:, None])
        self.gains.div_(deviation)
        self.offsets.add_(mean).div_(deviation)


def head_names(ensemble: int, aspects: Sequence[str]) -> tuple[str, ...]:
    """Names of a new model's heads."""
    return (*([REWARD] if ensemble == 1 else [f"{REWARD}/{i}" for i in range(ensemble)]), *aspects)


def new_reward_model(
    backbone: ModelRef, lora: Lora | None, heads: Sequence[str] = (REWARD,), dtype: torch.dtype | None = None
) -> RewardModel:
    """A reward model on a policy's trunk; `merge_adapters` once training is over.

    Each head is N(0, 1 / (hidden + 1)) in variance (Stiennon et al. 2020), without a bias, in fp32, trained in full.
    """
    known = load_config(backbone.base)
    kinds = type(known), type(known.get_text_config())
    # A model's own code, where it is trusted, says itself what classifier it has.
    if not trusts_remote_code() and not any(kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING for kind in kinds):
        raise _no_scalar_head(known, backbone.base)
    causal = load_causal_lm(backbone, trainable=lora is None, dtype=dtype)
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels = len(heads)
    config.id2label, config.label2id = dict(enumerate(heads)), {name: i for i, name in enumerate(heads)}
    with torch.device("meta"), loading(backbone.base):
        classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusts_remote_code())
    _require_scalar_head(classifier, backbone.base)
    trunk = causal.base_model
    setattr(classifier, classifier.base_model_prefix, trunk)
    hidden_size = classifier.score.in_features  # not always the layers'
    classifier.score = nn.Linear(hidden_size, len(heads), bias=False)
    nn.init.normal_(classifier.score.weight, std=(hidden_size + 1) ** -0.5)
    classifier.score.to(device())
    model = RewardModel(classifier).eval()
    if lora is not None:
        get_peft_model(trunk, lora_config(lora, "FEATURE_EXTRACTION"))  # swaps the trunk's layers in place
    return model.eval()


def _require_scalar_head(classifier: Any, name: str) -> None:
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise _no_scalar_head(classifier.config, name)


def _no_scalar_head(config: Any, name: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"The architecture of {name} ({config.model_type}) has no scalar head that reads the last token.",
        "Choose a decoder-only model that transformers has a sequence classifier for, such as Llama or Qwen.",
    )


@torch.no_grad()
def merge_adapters(model: RewardModel) -> None:
    """Adds what adapters learned to the weights they stand beside, and removes them; does nothing without any."""
    layers: dict[str, Any] = {}
    for name, module in model.classifier.named_modules():
        # Where several parameters of a module are adapted (experts'), one adapter holds the next.
        if isinstance(module, BaseTunerLayer) and not any(name.startswith(f"{outer}.") for outer in layers):
            layers[name] = module
    if layers:
        model.classifier.float()  # bf16 would round the adapters' small changes away
    for name, layer in layers.items():
        while isinstance(layer, BaseTunerLayer):
            layer.merge()
            layer = layer.base_layer
        model.classifier.set_submodule(name, layer)


def save_reward_model(model: RewardModel, tokenizer: Any, folder: Path) -> None:
    """Writes a folder for `AutoModelForSequenceClassification.from_pretrained`, with its tokenizer. Merge first.

    The heads of decoder classifiers have no bias, so offsets stay in the config: plain transformers scores are ours
    plus `reward_offsets`, the same shift for every response. Of several processes only the main one writes.
    """
    if not accelerator().is_main_process:
        return
    classifier = model.classifier
    pad_id = _padding_that_ends_no_response(tokenizer, classifier)
    classifier.config.pad_token_id = pad_id
    classifier.config.get_text_config().pad_token_id = pad_id
    classifier.config.reward_offsets = model.offsets.tolist()
    classifier.config.reward_gains = model.gains.tolist()
    classifier.config.reward_pooling = POOLING
    classifier.save_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


def _padding_that_ends_no_response(tokenizer: Any, classifier: Any) -> int:
    """Makes the tokenizer pad with a token other than the end of a turn, and returns its id."""
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    if tokenizer.pad_token_id in ends:
        spare = next((t for t in (tokenizer.unk_token_id, tokenizer.bos_token_id) if t not in (None, *ends)), None)
        if spare is None:
            tokenizer.add_special_tokens({"pad_token": "<|reward_pad|>"})
            if len(tokenizer) > classifier.get_input_embeddings().num_embeddings:
                classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        else:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare)
    return tokenizer.pad_token_id


def load_reward_model(folder: str | Path, dtype: torch.dtype | None = None) -> tuple[RewardModel, Any]:
    """A frozen reward model and its tokenizer.

    Args:
        dtype: of its weights; None: as `working_dtype` measures.

    Raises:
        ModelUnavailable: nothing loads from there, or it is no reward model of ours.
    """
    refuse_pickles(str(folder))
    with loading(str(folder)):
        classifier, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=working_dtype("auto", str(folder)) if dtype is None else dtype,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trusts_remote_code(),
        )
    config = classifier.config
    if config.num_labels != 1 and getattr(config, "reward_pooling", None) != POOLING:
        raise ModelUnavailable(
            f"{folder} is a classifier with {config.num_labels} labels, not a reward model.",
            "Choose a reward model trained here, or a sequence classifier with one label.",
        )
    refuse_nan(classifier, str(folder))
    _require_scalar_head(classifier, str(folder))
    if "score.weight" in loaded["missing_keys"]:
        raise ModelUnavailable(
            f"{folder} holds no weights for the head of a reward model: its rewards would be random.",
            "Choose a reward model that was trained; a policy is none.",
        )
    refuse_missing(loaded["missing_keys"], str(folder))
    classifier = classifier.requires_grad_(False).to(device()).eval()
    classifier.score.float()  # rewards are compared to more digits than bf16 has
    offsets, gains = getattr(config, "reward_offsets", None), getattr(config, "reward_gains", None)
    return RewardModel(classifier, offsets, gains), load_tokenizer(str(folder))
