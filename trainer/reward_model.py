"""Reward models: a policy's trunk with scalar heads, made, run, saved, loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from trainer.data import end_of_turn_id
from trainer.modeling import (
    can_share,
    device,
    hidden_states,
    load_causal_lm,
    load_tokenizer,
    loading,
    lora_config,
    trunk_of,
    weights_dtype,
)
from trainer.packing import Packed


class RewardModel(nn.Module):
    """A sequence classifier with one label, pooled at the LAST VALID token by mask, minus `offset`.

    Pooling by padding id, as transformers does, reads the wrong place when padding and EOS are one token; here ids
    never decide. For plain transformers the saved folder has a padding token that no response ends with, so both agree.
    """

    def __init__(self, classifier: Any, offset: float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.offset = offset
        self.share = can_share(trunk_of(classifier))

    def forward(self, packed: Packed) -> Tensor:
        """Rewards (S,) in fp32."""
        pooled = hidden_states(trunk_of(self.classifier), packed)[packed.ends]
        return self.classifier.score(pooled.to(self.classifier.score.weight.dtype)).squeeze(-1).float() - self.offset


def new_reward_model(backbone: ModelRef, lora: Lora | None) -> tuple[RewardModel, Callable[[], None]]:
    """A reward model on a policy's trunk, and a function that merges its adapters once training is over.

    The head is N(0, 1 / (H + 1)) in variance (Stiennon et al. 2020), without a bias, in fp32, always trained in full.
    """
    causal = load_causal_lm(backbone, trainable=lora is None)
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels, config.id2label, config.label2id = 1, {0: "reward"}, {"reward": 0}
    with torch.device("meta"), loading(backbone.base):
        classifier = AutoModelForSequenceClassification.from_config(config)
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise ModelUnavailable(
            f"The architecture of {backbone.base} ({config.model_type}) has no scalar head that reads the last token.",
            "Choose a decoder-only model.",
        )
    trunk = causal.base_model
    setattr(classifier, classifier.base_model_prefix, trunk)
    hidden_size = config.get_text_config().hidden_size
    classifier.score = nn.Linear(hidden_size, 1, bias=False)
    nn.init.normal_(classifier.score.weight, std=(hidden_size + 1) ** -0.5)
    classifier.score.to(device())
    model = RewardModel(classifier).eval()
    if lora is None:
        return model, lambda: None
    adapted = get_peft_model(trunk, lora_config(lora, "FEATURE_EXTRACTION"))  # swaps the trunk's layers in place

    def merge() -> None:
        classifier.float()  # bf16 would round the adapters' small changes away
        adapted.merge_and_unload()

    return model.eval(), merge


def save_reward_model(model: RewardModel, tokenizer: Any, folder: Path) -> None:
    """Writes a folder for `AutoModelForSequenceClassification.from_pretrained`, with its tokenizer. Merge first.

    The heads of decoder classifiers have no bias, so the offset stays in the config: plain transformers scores are ours
    plus `reward_offset`, the same shift for every response.
    """
    classifier = model.classifier
    pad_id = _padding_that_ends_no_response(tokenizer, classifier)
    classifier.config.pad_token_id = pad_id
    classifier.config.get_text_config().pad_token_id = pad_id
    classifier.config.reward_offset = model.offset
    classifier.config.reward_pooling = "last_valid_token"
    classifier.save_pretrained(folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(
        "# Reward model\n\n"
        "Bradley-Terry reward model: one scalar, read at the last valid token of the chat with the response and its\n"
        f"end-of-turn token. Padding is `{tokenizer.pad_token}`, a token no response ends with, so that pooling by\n"
        "padding id (plain transformers) and by mask (Prefloop) read the same place.\n\n"
        "Rewards of the training responses have standard deviation 1. They have mean 0 after `reward_offset`\n"
        f"({model.offset:.6g}, in config.json) is subtracted; Prefloop's loader does that.\n"
    )


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


def load_reward_model(folder: str | Path) -> tuple[RewardModel, Any]:
    """A frozen reward model and its tokenizer.

    Raises:
        ModelUnavailable: nothing loads from there, or it has more than one label.
    """
    with loading(str(folder)):
        classifier = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=weights_dtype(), use_safetensors=True, trust_remote_code=False
        )
    if classifier.config.num_labels != 1:
        raise ModelUnavailable(f"{folder} has {classifier.config.num_labels} labels; a reward model has one.")
    classifier = classifier.requires_grad_(False).to(device()).eval()
    return RewardModel(classifier, getattr(classifier.config, "reward_offset", 0.0)), load_tokenizer(str(folder))
