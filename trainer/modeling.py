"""Models: loaded, given adapters, run on completions only, scored, saved.

Everything here loads safetensors only and never runs code that comes with a model. Models stay in `eval()` mode, also
while they are trained: dropout would make the log-probs of one model differ between two passes.
"""

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from app.artifacts import ArtifactStore
from app.errors import ModelUnavailable, NotFound
from app.specs import Lora, ModelRef
from trainer.data import Batch, end_of_turn_id

transformers_logging.disable_progress_bar()

# For base models that carry no template of their own: plain, and readable in a sample.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)

POLICY, REFERENCE = "default", "reference"  # adapter names; peft saves the one called default at the folder's root

Reference = Callable[[], AbstractContextManager[Any]]


def device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def weights_dtype(trainable_weights: bool = False) -> torch.dtype:
    """bf16 on CUDA for weights that stay frozen; fp32 for training them, and on CPUs, where bf16 is slower."""
    return torch.bfloat16 if device().type == "cuda" and not trainable_weights else torch.float32


def seed_everything(seed: int) -> torch.Generator:
    """Seeds every library's generator and returns one of our own, for the order of the rows."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


# ---- finding and loading ---------------------------------------------------------------------------------------------


def resolve(store: ArtifactStore, ref: ModelRef) -> ModelRef:
    """The reference with locations turned into folders; what the store does not hold is taken for a hub name.

    Raises:
        ModelUnavailable: a location that can only be one of the store's, or an absolute path, does not exist.
    """

    def find(location: str) -> str:
        try:
            return str(store.resolve(location))
        except NotFound as error:
            if location.count("/") <= 1 and not location.startswith(("models/", "/", ".")):
                return location
            raise ModelUnavailable(f"The model {location} does not exist.", error.advice) from error

    return ModelRef(base=find(ref.base), adapter=find(ref.adapter) if ref.adapter else None)


@contextlib.contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelUnavailable(
            f"The model {name} cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Check its name or folder, and that its weights are stored as safetensors.",
        ) from error


def load_tokenizer(ref: ModelRef | str) -> Any:
    """The tokenizer of a model, with a chat template, an EOS and a padding token.

    A model without a template gets a plain one; without a padding token EOS pads (masks decide what is valid, not ids).

    Raises:
        ModelUnavailable: there is no tokenizer, or it has no end-of-sequence token.
    """
    name = ref if isinstance(ref, str) else ref.base
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ModelUnavailable(
            f"The tokenizer of {name} has no end-of-sequence token.",
            "Choose a model whose tokenizer defines eos_token.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    return tokenizer


def _load_base(name: str, dtype: torch.dtype) -> Any:
    with _loading(name):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    return model.to(device()).eval()


def _check_adapter(folder: str) -> None:
    if Path(folder).is_dir() and not (Path(folder) / "adapter_model.safetensors").exists():
        raise ModelUnavailable(f"The adapter {folder} holds no adapter_model.safetensors.")


def _with_adapter(model: Any, folder: str, trainable: bool) -> PeftModel:
    _check_adapter(folder)
    with _loading(folder):
        return PeftModel.from_pretrained(model, folder, adapter_name=POLICY, is_trainable=trainable).eval()


def _lora_config(lora: Lora, task_type: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type=task_type
    )


def load_causal_lm(ref: ModelRef, lora: Lora | None = None, trainable: bool = False) -> Any:
    """A language model in `eval()` mode on `device()`.

    Frozen by default: the base with its adapter merged. With `trainable` and `lora`: a peft model whose adapter (the
    one `ref` carries, else a new one, which starts as the identity) is the only part with gradients. With `trainable`
    and no `lora`: full weights, an adapter merged into them.
    """
    if trainable and lora is not None:
        base = _load_base(ref.base, weights_dtype())
        if ref.adapter:
            return _with_adapter(base, ref.adapter, trainable=True)
        return get_peft_model(base, _lora_config(lora), adapter_name=POLICY).eval()
    # Merging adds small numbers to large ones: in fp32, rounded once afterwards.
    model = _load_base(ref.base, torch.float32 if ref.adapter else weights_dtype(trainable))
    if ref.adapter:
        model = _with_adapter(model, ref.adapter, trainable=False).merge_and_unload().to(weights_dtype(trainable))
    return model.requires_grad_(trainable).eval()


def load_policy_and_reference(policy: ModelRef, reference: ModelRef, lora: Lora | None) -> tuple[Any, Reference]:
    """The model to train, and `with reference() as model:` for one that computes the reference, without gradients.

    The reference shares the policy's weights where it can: adapters disabled when it is the bare base, a second frozen
    adapter when it is another adapter on that base. Otherwise it is a second model.

    Raises:
        ModelUnavailable: one does not load, or their vocabularies differ.
    """
    model = load_causal_lm(policy, lora, trainable=True)
    if lora is None or reference.base != policy.base:
        frozen = load_causal_lm(reference)
        if frozen.config.get_text_config().vocab_size != model.config.get_text_config().vocab_size:
            raise ModelUnavailable(
                f"The reference {reference.base} and the policy {policy.base} do not share a vocabulary.",
                "Choose a reference with the policy's tokenizer.",
            )
        return model, lambda: _no_grad(frozen)
    if reference.adapter is None:
        return model, lambda: _adapters_disabled(model)
    _check_adapter(reference.adapter)
    with _loading(reference.adapter):
        model.load_adapter(reference.adapter, adapter_name=REFERENCE, is_trainable=False)
    model.set_adapter(POLICY)
    return model.eval(), lambda: _second_adapter(model)


@contextlib.contextmanager
def _no_grad(model: Any) -> Iterator[Any]:
    with torch.no_grad():
        yield model


@contextlib.contextmanager
def _adapters_disabled(model: PeftModel) -> Iterator[Any]:
    with torch.no_grad(), model.disable_adapter():
        yield model


@contextlib.contextmanager
def _second_adapter(model: PeftModel) -> Iterator[Any]:
    model.set_adapter(REFERENCE, inference_mode=True)
    try:
        with torch.no_grad():
            yield model
    finally:
        model.set_adapter(POLICY)


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ---- running ---------------------------------------------------------------------------------------------------------


def trunk_of(model: Any) -> Any:
    """The decoder without its head (adapters inside it included), of a plain or peft causal LM or classifier."""
    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model


def hidden_states(trunk: Any, batch: Batch) -> Tensor:
    """Last hidden states (B, T, H), after the final norm; meaningless at padding."""
    if bool(batch.valid_mask[:, 0].all()):
        # Padding on the right only: causal attention never reaches it, positions are 0, 1, 2..., and attention without
        # a mask takes the faster kernels.
        return trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return trunk(
        input_ids=batch.input_ids,
        attention_mask=batch.valid_mask.long(),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state


def vocabulary_logits(model: Any, hidden: Tensor) -> Tensor:
    """fp32 logits (..., V) of hidden states (..., H), with the scaling and capping some architectures put on top."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    config = causal.config.get_text_config()
    logits = causal.get_output_embeddings()(hidden).float()
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):  # Granite
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        logits = cap * torch.tanh(logits / cap)
    return logits


def completion_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (N, V) that predict the N completion tokens of a batch, and those tokens (N,), in row order.

    The vocabulary projection is run on these positions only: on a small model it is a fifth of all work.
    """
    predicts = batch.completion_mask[:, 1:]  # position t predicts token t + 1
    hidden = hidden_states(trunk_of(model), batch)[:, :-1][predicts]
    return vocabulary_logits(model, hidden), batch.input_ids[:, 1:][predicts]


# ---- the policy on disk ----------------------------------------------------------------------------------------------


def save_policy(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a peft folder for a LoRA policy, a transformers folder for full weights; the tokenizer goes with it.

    Both load with `AutoModelForCausalLM.from_pretrained(folder)`, the first as long as its base stays where it was.
    """
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, selected_adapters=[POLICY])
        _sort_sets(folder / "adapter_config.json")
    else:
        model.generation_config.eos_token_id = end_of_turn_id(tokenizer)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _sort_sets(path: Path) -> None:
    # peft writes sets in hash order, which differs between processes; equal adapters shall have equal digests.
    config = json.loads(path.read_text())
    for key in ("target_modules", "modules_to_save"):
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


# ---- reward models ---------------------------------------------------------------------------------------------------


class RewardModel(nn.Module):
    """A sequence classifier with one label, pooled at the LAST VALID token by mask, minus `offset`.

    Pooling by padding id, as transformers does, reads the wrong place when padding and EOS are one token; here ids
    never decide. For plain transformers the saved folder has a padding token that no response ends with, so both agree.
    """

    def __init__(self, classifier: Any, offset: float = 0.0) -> None:
        super().__init__()
        self.classifier = classifier
        self.offset = offset

    def forward(self, batch: Batch) -> Tensor:
        """Rewards (B,) in fp32."""
        hidden = hidden_states(trunk_of(self.classifier), batch)
        pooled = hidden[torch.arange(len(hidden), device=hidden.device), last_valid(batch.valid_mask)]
        return self.classifier.score(pooled.to(self.classifier.score.weight.dtype)).squeeze(-1).float() - self.offset


def last_valid(valid_mask: Tensor) -> Tensor:
    """Index (B,) of each row's last valid token, on whatever side the padding is."""
    positions = torch.arange(valid_mask.shape[-1], device=valid_mask.device)
    return (positions * valid_mask).argmax(-1)


def new_reward_model(backbone: ModelRef, lora: Lora | None) -> tuple[RewardModel, Callable[[], None]]:
    """A reward model on a policy's trunk, and a function that merges its adapters once training is over.

    The head is N(0, 1 / (H + 1)) in variance (Stiennon et al. 2020), without a bias, in fp32, always trained in full.
    """
    causal = load_causal_lm(backbone, trainable=lora is None)
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels, config.id2label, config.label2id = 1, {0: "reward"}, {"reward": 0}
    with torch.device("meta"), _loading(backbone.base):
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
    adapted = get_peft_model(trunk, _lora_config(lora, "FEATURE_EXTRACTION"))  # swaps the trunk's layers in place

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
    with _loading(str(folder)):
        classifier = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=weights_dtype(), use_safetensors=True, trust_remote_code=False
        )
    if classifier.config.num_labels != 1:
        raise ModelUnavailable(f"{folder} has {classifier.config.num_labels} labels; a reward model has one.")
    classifier = classifier.requires_grad_(False).to(device()).eval()
    return RewardModel(classifier, getattr(classifier.config, "reward_offset", 0.0)), load_tokenizer(str(folder))
