"""Create reward models on a policy's trunk, save, load and export them.

Several members share one trunk. Each has its own heads, and its own adapter if the trunk is trained. The folder then
holds only heads and adapters, and names its base. With full weights, it is an ordinary transformers folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

from app.errors import InvalidInput, ModelUnavailable
from app.specs import Lora, ModelRef
from trainer.batching.chat import end_of_turn_id
from trainer.models import member_adapters
from trainer.models.inspection import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    check_adapter,
    check_base,
    record_base,
    refuse_missing,
    refuse_nan,
    refuse_pickles,
)
from trainer.models.loading import (
    load_causal_lm,
    load_config,
    load_tokenizer,
    loading,
    lora_config,
    trusts_remote_code,
    working_dtype,
)
from trainer.models.policy import trunk_of
from trainer.models.saving import write_adapter_config
from trainer.processes import accelerator, device
from trainer.reward.doubt import Doubt
from trainer.reward.network import REWARD, RewardModel, merge_adapters
from trainer.speed.precision import computes_in

POOLING, FROZEN_POOLING = "last_valid_token", "mean_and_last_token_of_layers"
FROZEN_LAYERS = 8  # number of layers that heads on a frozen trunk read, spread evenly over the trunk
HEADS = "heads.safetensors"  # heads on a frozen trunk: (members, heads, features)
SETTINGS = "reward.json"  # settings that peft's configuration has no field for
BELOW = "policy"  # name of the adapter of the policy that a reward model is trained on


class Settings(NamedTuple):
    """Contents of `reward.json`.

    Attributes:
        heads: names of a member's heads, in the order of the classifier's classes.
        offsets: subtracted from the heads' outputs, one list per member.
        gains: factors that the heads were multiplied by after training, one list per member.
        end_of_turn_id: the token appended to each response before scoring.
        pad_token_id: the padding token for plain transformers; None means that texts must be scored one at a time.
        layers: layers of a frozen trunk that the heads read, counted from 1.
        ceiling: the score that 1% of the compared responses exceed; None for models older than this figure.
    """

    heads: list[str]
    offsets: list[list[float]]
    gains: list[list[float]]
    end_of_turn_id: int
    pad_token_id: int | None
    pooling: str = POOLING
    layers: Sequence[int] = ()
    ceiling: float | None = None


def new_reward_model(
    backbone: ModelRef,
    lora: Lora | None,
    heads: Sequence[str] = (REWARD,),
    dtype: torch.dtype | None = None,
    members: int = 1,
) -> RewardModel:
    """Create a reward model on a policy's trunk: with `lora` each member trains an adapter, else all weights train.

    A policy's adapter stays active and frozen below the members' adapters, and is stored as part of theirs.
    Heads are initialised from a normal distribution with variance 1 / (hidden + 1) (Stiennon et al. 2020). They have no
    bias, are fp32 and are trained in full.

    Raises:
        ModelUnavailable: the model does not load or has no scalar head, or the policy's adapter cannot be merged into
            another adapter.
    """
    assert lora is not None or members == 1, "members share a trunk, so each needs an adapter"
    _require_architecture(backbone.base)
    if lora is None:
        classifier = _classifier(load_causal_lm(backbone, trainable=True, dtype=dtype), backbone.base, heads)
    else:
        classifier = _on_base(backbone.base, heads, dtype)
    hidden_size = classifier.score.in_features  # can differ from the layers' hidden size
    model = RewardModel(classifier, members=members).eval()
    for head in model.scores:
        nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5)
    if lora is None:
        return model
    if backbone.adapter is not None:
        with loading(backbone.adapter):
            check_adapter(Path(backbone.adapter), backbone.base, classifier)
            below = PeftConfig.from_pretrained(backbone.adapter)
        member_adapters.require_sum(below, backbone.adapter)
        with loading(backbone.adapter):
            member_adapters.put_on(classifier, below, BELOW)
            member_adapters.read(classifier, BELOW, Path(backbone.adapter))
        refuse_nan(classifier, backbone.adapter)
        for parameter in member_adapters.parameters_of(classifier, BELOW).values():
            parameter.requires_grad_(False)
        model.always = (BELOW,)
    for member in range(members):
        member_adapters.put_on(classifier, lora_config(lora, "SEQ_CLS"), str(member))
    return model.eval()


def frozen_reward_model(
    base: str, heads: Sequence[str] = (REWARD,), dtype: torch.dtype | None = None, members: int = 1
) -> RewardModel:
    """Create a reward model whose members are heads, initially 0, on the layers of a frozen language model.

    Raises:
        ModelUnavailable: the model does not load, or transformers has no sequence classifier for it.
    """
    _require_architecture(base)
    classifier = _on_base(base, heads, dtype)
    count = classifier.config.get_text_config().num_hidden_layers
    layers = sorted({round(count * i / FROZEN_LAYERS) for i in range(1, FROZEN_LAYERS + 1)} - {0})
    return _with_layers(classifier, layers, members)


def _with_layers(
    classifier: Any,
    layers: Sequence[int],
    members: int,
    offsets: Sequence[float] | None = None,
    gains: Sequence[float] | None = None,
) -> RewardModel:
    """Return a reward model on a frozen classifier, with heads, initially 0, that read these layers."""
    classifier.requires_grad_(False)
    old = classifier.score
    classifier.score = nn.Linear(2 * len(layers) * old.in_features, old.out_features, bias=False).to(old.weight.device)
    nn.init.zeros_(classifier.score.weight)
    return RewardModel(classifier, offsets, gains, members, layers).eval()


def _on_base(base: str, heads: Sequence[str], dtype: torch.dtype | None) -> Any:
    """Return a classifier on a frozen language model."""
    return _classifier(load_causal_lm(ModelRef(base=base), dtype=dtype), base, heads)


def _require_architecture(base: str) -> None:
    """Raise ModelUnavailable if transformers has no sequence classifier for a model; its weights are not read."""
    known = load_config(base)
    kinds = type(known), type(known.get_text_config())
    # If remote code is trusted, the model's own code may define a classifier.
    if not trusts_remote_code() and not any(kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING for kind in kinds):
        raise _no_scalar_head(known, base)


def _classifier(causal: Any, name: str, heads: Sequence[str]) -> Any:
    """Return a sequence classifier with new trainable fp32 heads on the trunk of a plain language model."""
    config = type(causal.config).from_dict(causal.config.to_dict())
    config.num_labels = len(heads)
    config.id2label, config.label2id = dict(enumerate(heads)), {name: i for i, name in enumerate(heads)}
    with torch.device("meta"), loading(name):
        classifier = AutoModelForSequenceClassification.from_config(config, trust_remote_code=trusts_remote_code())
    _require_scalar_head(classifier, name)
    setattr(classifier, classifier.base_model_prefix, causal.base_model)
    classifier.score = nn.Linear(classifier.score.in_features, len(heads), bias=False).to(device())
    return classifier


def _require_scalar_head(classifier: Any, name: str) -> None:
    if not isinstance(getattr(classifier, "score", None), nn.Linear):
        raise _no_scalar_head(classifier.config, name)


def _no_scalar_head(config: Any, name: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"The architecture of {name} ({config.model_type}) has no scalar head that reads the last token.",
        "Choose a decoder-only model that transformers has a sequence classifier for, such as Llama or Qwen.",
    )


# ---- folders ---------------------------------------------------------------------------------------------------------


def save_reward_model(model: RewardModel, tokenizer: Any, folder: Path, base: str | None = None) -> None:
    """Write a reward model and its tokenizer: heads or adapters for a shared base, else a transformers folder.

    Heads of decoder classifiers have no bias, so the offsets are in a config. Scores of plain transformers are ours
    plus the offsets, which is the same shift for every response. Only the main process writes.

    Args:
        base: the base's location to write into the folder, a location in the store, so that stores can move. None means
            where it was loaded from.
    """
    if not accelerator().is_main_process:
        return
    if model.layers:
        _save_heads(model, tokenizer, folder, base)
    elif member_adapters.parameters_of(model.classifier, "0"):
        _save_members(model, tokenizer, folder, base)
    else:
        _save_whole(model, tokenizer, folder)
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)


def _save_whole(model: RewardModel, tokenizer: Any, folder: Path) -> None:
    classifier = model.classifier
    pad_id = _padding_that_ends_no_response(tokenizer, classifier)
    classifier.config.pad_token_id = pad_id
    classifier.config.get_text_config().pad_token_id = pad_id
    classifier.config.reward_offsets = model.offsets.tolist()
    classifier.config.reward_gains = model.gains.tolist()
    classifier.config.reward_ceiling = model.ceiling
    classifier.config.reward_pooling = POOLING
    classifier.config.reward_end_of_turn_id = end_of_turn_id(tokenizer)
    classifier.save_pretrained(folder)


def _save_members(model: RewardModel, tokenizer: Any, folder: Path, base: str | None) -> None:
    loaded_from = model.classifier.config.name_or_path
    base = base or loaded_from
    pad_id = _spare_padding(tokenizer)
    if pad_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)
    for member in range(model.members):
        where = member_folder(folder, member)
        where.mkdir(parents=True, exist_ok=True)
        tensors, config = member_adapters.joined(model.classifier, (str(member), *model.always))
        config.modules_to_save, config.inference_mode = ["score"], True
        tensors[SCORE] = model.scores[member].weight.detach().cpu().contiguous()
        save_file(dict(sorted(tensors.items())), where / ADAPTER_WEIGHTS, {"format": "pt"})
        config.save_pretrained(where)
        write_adapter_config(where / ADAPTER_CONFIG, base)
    record_base(folder, loaded_from, base)
    _save_settings(model, folder, end_of_turn_id(tokenizer), pad_id)


def _save_heads(model: RewardModel, tokenizer: Any, folder: Path, base: str | None) -> None:
    loaded_from = model.classifier.config.name_or_path
    heads = torch.stack([head.weight.detach().cpu() for head in model.scores])
    doubt = {} if model.doubt is None else {f"{DOUBT}{name}": value for name, value in model.doubt._asdict().items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in ({"heads": heads} | doubt).items()}
    save_file(tensors, folder / HEADS, {"format": "pt"})
    record_base(folder, loaded_from, base or loaded_from)
    _save_settings(model, folder, end_of_turn_id(tokenizer), None, pooling=FROZEN_POOLING, layers=model.layers)


def _save_settings(model: RewardModel, folder: Path, end_id: int, pad_id: int | None, **others: Any) -> None:
    offsets, gains = (values.view(model.members, -1).tolist() for values in (model.offsets, model.gains))
    settings = Settings(list(model.own_heads), offsets, gains, end_id, pad_id, **others, ceiling=model.ceiling)
    (folder / SETTINGS).write_text(json.dumps(settings._asdict(), indent=2) + "\n")


DOUBT = "doubt."  # prefix of the names of the doubt's tensors in the file of heads
SCORE = f"{member_adapters.PREFIX}score.weight"


def member_folder(folder: Path, member: int) -> Path:
    """Return the folder of a member's adapter; the first is at the top, where peft looks for it."""
    return folder / "members" / str(member) if member else folder


def _spare_padding(tokenizer: Any) -> int | None:
    """Return a token for padding that no response ends with; None if there is no such token."""
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((token for token in known if token not in (None, *ends)), None)


def _padding_that_ends_no_response(tokenizer: Any, classifier: Any) -> int:
    """Make the tokenizer pad with a token other than the end of a turn, and return its id."""
    spare = _spare_padding(tokenizer)
    if spare is None:
        tokenizer.add_special_tokens({"pad_token": "<|reward_pad|>"})
        if len(tokenizer) > classifier.get_input_embeddings().num_embeddings:
            classifier.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    elif spare != tokenizer.pad_token_id:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(spare)
    return tokenizer.pad_token_id


def load_reward_model(
    folder: str | Path, dtype: torch.dtype | None = None, member: int | None = None
) -> tuple[RewardModel, Any]:
    """Load a frozen reward model with all its members, and its tokenizer.

    Members with adapters share one base in memory. If there is a single member and weights are fp32, it is merged.

    Args:
        dtype: dtype of the trunk's weights; None: see `working_dtype`. Adapters and heads are fp32.
        member: load only this member.

    Raises:
        ModelUnavailable: the folder does not load, or does not hold a reward model in Prefloop's format.
    """
    refuse_pickles(str(folder))
    if Path(folder, HEADS).exists():
        return _load_heads(Path(folder), dtype, member)
    if Path(folder, ADAPTER_CONFIG).exists():
        return _load_members(Path(folder), dtype, member)
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
        raise _no_head(folder)
    refuse_missing(loaded["missing_keys"], str(folder))
    classifier = classifier.requires_grad_(False).to(device()).eval()
    classifier.score.float()  # comparing rewards needs more digits than bf16 has
    offsets, gains = getattr(config, "reward_offsets", None), getattr(config, "reward_gains", None)
    model = RewardModel(classifier, offsets, gains)
    model.ceiling = getattr(config, "reward_ceiling", None)
    return model, load_tokenizer(str(folder))


def _no_head(folder: str | Path) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder} holds no weights for the head of a reward model: its rewards would be random.",
        "Choose a trained reward model; a policy is not a reward model.",
    )


def _load_members(folder: Path, dtype: torch.dtype | None, only: int | None) -> tuple[RewardModel, Any]:
    if not (folder / SETTINGS).exists():
        raise _no_head(folder)
    base = base_of(folder)
    _require_architecture(base)
    with loading(str(folder)):
        settings = Settings(**json.loads((folder / SETTINGS).read_text()))
    chosen = range(len(settings.offsets)) if only is None else [only]
    tokenizer = load_tokenizer(ModelRef(base=base, adapter=str(folder)))
    classifier = _on_base(base, settings.heads, dtype)
    offsets, gains = ([x for i in chosen for x in values[i]] for values in (settings.offsets, settings.gains))
    model = RewardModel(classifier, offsets, gains, len(chosen))
    model.ceiling = settings.ceiling
    for place, number in enumerate(chosen):
        where = member_folder(folder, number)
        with loading(str(where)):
            check_adapter(where, base, classifier)
            config = LoraConfig.from_pretrained(where)
            config.modules_to_save = None  # RewardModel switches heads, not peft
            member_adapters.put_on(classifier, config, str(place))
            others = member_adapters.read(classifier, str(place), where, [SCORE.removeprefix(member_adapters.PREFIX)])
        if not others:
            raise _no_head(where)
        with torch.no_grad():
            model.scores[place].weight.copy_(others[SCORE.removeprefix(member_adapters.PREFIX)])
    model = model.requires_grad_(False).eval()
    refuse_nan(model, str(folder))
    if model.members == 1 and computes_in(trunk_of(classifier)) == torch.float32:
        merge_adapters(model)
    return model, tokenizer


def _load_heads(folder: Path, dtype: torch.dtype | None, only: int | None) -> tuple[RewardModel, Any]:
    base = base_of(folder)
    _require_architecture(base)
    with loading(str(folder)):
        check_base(folder, base)
        settings = Settings(**json.loads((folder / SETTINGS).read_text()))
        tensors = load_file(folder / HEADS)
        heads = tensors.pop("heads")
        doubt = Doubt(**{name.removeprefix(DOUBT): value for name, value in tensors.items()}) if tensors else None
    chosen = list(range(len(settings.offsets))) if only is None else [only]
    offsets, gains = ([x for i in chosen for x in values[i]] for values in (settings.offsets, settings.gains))
    classifier = _on_base(base, settings.heads, dtype)
    model = _with_layers(classifier, settings.layers, len(chosen), offsets, gains).requires_grad_(False)
    with loading(str(folder)):  # copying fails if the number of features differs
        for head, number in zip(model.scores, chosen, strict=True):
            head.weight.copy_(heads[number])
    refuse_nan(model, str(folder))
    model.ceiling = settings.ceiling
    if doubt is not None:
        model.doubt = Doubt._make(value.to(model.offsets.device) for value in doubt)
    return model, load_tokenizer(ModelRef(base=base, adapter=str(folder)))


def base_of(folder: Path) -> str:
    """Return the folder or hub name of the base of a folder of adapters or heads.

    A location relative to the store is searched in the parent folders, so that stores can move.

    Raises:
        ModelUnavailable: the record of the base is damaged, or the base does not exist.
    """
    with loading(str(folder)):
        location = json.loads((folder / BASE_RECORD).read_text())["location"]
    for place in (*folder.absolute().parents, Path()):
        if (place / location).is_dir():
            return str(place / location)
    if location.count("/") > 1 or location.startswith(("models/", "/", ".")):
        raise ModelUnavailable(
            f"The base {location} of the reward model {folder} does not exist.",
            "Bring it back, or keep the reward model in the store that holds its base.",
        )
    return location


def export_reward_model(folder: Path, out: Path) -> list[Path]:
    """Write a plain transformers folder for each member, its adapter merged in fp32; return these folders.

    A single member is written to `out` itself, several to `out/0`, `out/1`...; the score is the mean over all of them.

    Raises:
        ModelUnavailable: the folder holds no reward model.
        InvalidInput: the folder holds heads on a frozen trunk, which cannot be merged into the trunk.
    """
    if (folder / HEADS).exists():
        raise InvalidInput(
            f"{folder} holds heads on the layers of {base_of(folder)}, which plain transformers cannot load.",
            "Follow its README.md to score with transformers, or train a reward model with `trunk` trained.",
        )
    members = len(json.loads((folder / SETTINGS).read_text())["offsets"]) if (folder / SETTINGS).exists() else 1
    written = [out / str(member) if members > 1 else out for member in range(members)]
    for member, where in enumerate(written):
        model, tokenizer = load_reward_model(folder, torch.float32, member)
        save_reward_model(model, tokenizer, where)
    return written
