"""Reward models: a policy's trunk with scalar heads, made, run, saved, loaded.

With adapters one trunk serves several members: each has an adapter and heads of its own. A folder then holds these only
and says what its base is; with full weights it is a folder of plain transformers.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from trainer import adapters
from trainer.chat import end_of_turn_id
from trainer.checks import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    check_adapter,
    record_base,
    refuse_missing,
    refuse_nan,
    refuse_pickles,
)
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
from trainer.precision import computes_in, set_compute_dtype
from trainer.saving import write_adapter_config
from trainer.training import accelerator

POOLING = "last_valid_token"
REWARD = "reward"  # the head, or the prefix of the heads, whose score is the reward; others are aspects
SETTINGS = "reward.json"  # beside a reward model's adapters: what plain peft has no place for
BELOW = "policy"  # the adapter of the policy that a reward model was trained on
ADDED = "added"  # the adapter of a critic that goes on from a reward model


class Settings(NamedTuple):
    """What `reward.json` holds.

    Attributes:
        heads: names of the heads of each member, as classes of the classifier are numbered.
        offsets: subtracted from what the heads say, a list a member.
        gains: what the heads were multiplied by after training, a list a member.
        end_of_turn_id: the token that is read behind each response.
        pad_token_id: what plain transformers may pad with; None: with nothing, texts are read one by one.
    """

    heads: list[str]
    offsets: list[list[float]]
    gains: list[list[float]]
    end_of_turn_id: int
    pad_token_id: int | None
    pooling: str = POOLING


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

    Pooling by padding id, as transformers does, reads the wrong place when padding and EOS are one token; here ids
    never decide. For plain transformers the saved folder has a padding token that no response ends with, so both agree.

    Attributes:
        members: how many members there are, each with an adapter and heads of its own; 1 with full weights.
        own_heads: the names of a member's heads: `reward`, or `reward/0` ... of an ensemble, then aspects.
        heads: the names of the C columns of rewards, those of each member after another; `reward/2` is member 2's.
        offsets: (C,) subtracted from the heads' outputs.
        gains: (C,) what the heads were multiplied by after training: rewards / gains are on Bradley-Terry's scale.
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
    ):
        super().__init__()
        self.classifier, self.members = classifier, members
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
        adapters.put_on(self.classifier, lora_config(lora, "SEQ_CLS"), ADDED)
        self.always = (*self.always, ADDED)

    def forward(self, packed: Packed, member: int | None = None) -> Tensor:
        """Rewards in fp32: (S, H) of one member, (S, C) of all of them."""
        if member is None:
            return torch.cat([self.forward(packed, each) for each in range(self.members)], -1)
        adapters.activate(self.classifier, (*self.always, str(member)))
        pooled = hidden_states(trunk_of(self.classifier), packed).index_select(0, packed.ends)
        head = self.scores[member]
        return head(pooled.to(head.weight.dtype)).float() - self.offsets[self.columns(member)]

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


def new_reward_model(
    backbone: ModelRef,
    lora: Lora | None,
    heads: Sequence[str] = (REWARD,),
    dtype: torch.dtype | None = None,
    members: int = 1,
) -> RewardModel:
    """A reward model on a policy's trunk. With `lora` each member trains an adapter, else all weights are trained.

    A policy's adapter stays below the members', frozen, and is stored as part of theirs.
    Each head is N(0, 1 / (hidden + 1)) in variance (Stiennon et al. 2020), without a bias, in fp32, trained in full.

    Raises:
        ModelUnavailable: it does not load, has no scalar head, or the policy's adapter cannot be part of another.
    """
    assert lora is not None or members == 1, "members share a trunk, so each needs an adapter"
    _require_architecture(backbone.base)
    if lora is None:
        classifier = _classifier(load_causal_lm(backbone, trainable=True, dtype=dtype), backbone.base, heads)
    else:
        classifier = _on_base(backbone.base, heads, dtype)
    hidden_size = classifier.score.in_features  # not always the layers'
    model = RewardModel(classifier, members=members).eval()
    for head in model.scores:
        nn.init.normal_(head.weight, std=(hidden_size + 1) ** -0.5)
    if lora is None:
        return model
    if backbone.adapter is not None:
        with loading(backbone.adapter):
            check_adapter(Path(backbone.adapter), backbone.base, classifier)
            below = PeftConfig.from_pretrained(backbone.adapter)
        adapters.require_sum(below, backbone.adapter)
        with loading(backbone.adapter):
            adapters.put_on(classifier, below, BELOW)
            adapters.read(classifier, BELOW, Path(backbone.adapter))
        refuse_nan(classifier, backbone.adapter)
        for parameter in adapters.parameters_of(classifier, BELOW).values():
            parameter.requires_grad_(False)
        model.always = (BELOW,)
    for member in range(members):
        adapters.put_on(classifier, lora_config(lora, "SEQ_CLS"), str(member))
    return model.eval()


def _on_base(base: str, heads: Sequence[str], dtype: torch.dtype | None) -> Any:
    """A classifier on a frozen language model."""
    return _classifier(load_causal_lm(ModelRef(base=base), dtype=dtype), base, heads)


def _require_architecture(base: str) -> None:
    """Raises ModelUnavailable where transformers has no sequence classifier for a model; its weights are not read."""
    known = load_config(base)
    kinds = type(known), type(known.get_text_config())
    # A model's own code, where it is trusted, says itself what classifier it has.
    if not trusts_remote_code() and not any(kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING for kind in kinds):
        raise _no_scalar_head(known, base)


def _classifier(causal: Any, name: str, heads: Sequence[str]) -> Any:
    """A sequence classifier with new heads, trainable and in fp32, on the trunk of a plain language model."""
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
        adapters.activate(model.classifier, (*model.always, "0"))
        model.classifier.float()  # bf16 would round the adapters' small changes away
        set_compute_dtype(trunk_of(model.classifier), torch.float32)
        model.always = ()
    for name, layer in layers.items():
        while isinstance(layer, BaseTunerLayer):
            layer.merge()
            layer = layer.base_layer
        model.classifier.set_submodule(name, layer)


# ---- folders ---------------------------------------------------------------------------------------------------------


def save_reward_model(model: RewardModel, tokenizer: Any, folder: Path, base: str | None = None) -> None:
    """Writes a folder with its tokenizer: of adapters where there are any, else one of plain transformers.

    The heads of decoder classifiers have no bias, so offsets stay in a config: plain transformers scores are ours
    plus the offsets, the same shift for every response. Of several processes only the main one writes.

    Args:
        base: where a folder of adapters says that its base is: a store location, so that stores can move (None: where
            it was loaded from).
    """
    if not accelerator().is_main_process:
        return
    if adapters.parameters_of(model.classifier, "0"):
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
        tensors, config = adapters.joined(model.classifier, (str(member), *model.always))
        config.modules_to_save, config.inference_mode = ["score"], True
        tensors[SCORE] = model.scores[member].weight.detach().cpu().contiguous()
        save_file(dict(sorted(tensors.items())), where / ADAPTER_WEIGHTS, {"format": "pt"})
        config.save_pretrained(where)
        write_adapter_config(where / ADAPTER_CONFIG, base)
    record_base(folder, loaded_from, base)

    offsets, gains = (values.view(model.members, -1).tolist() for values in (model.offsets, model.gains))
    settings = Settings(list(model.own_heads), offsets, gains, end_of_turn_id(tokenizer), pad_id)
    (folder / SETTINGS).write_text(json.dumps(settings._asdict(), indent=2) + "\n")


SCORE = f"{adapters.PREFIX}score.weight"


def member_folder(folder: Path, member: int) -> Path:
    """Where a member's adapter lies: the first at the top, where peft looks for one."""
    return folder / "members" / str(member) if member else folder


def _spare_padding(tokenizer: Any) -> int | None:
    """A token to pad with that no response ends with; None where there is none."""
    ends = {tokenizer.eos_token_id, end_of_turn_id(tokenizer)}
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    return next((token for token in known if token not in (None, *ends)), None)


def _padding_that_ends_no_response(tokenizer: Any, classifier: Any) -> int:
    """Makes the tokenizer pad with a token other than the end of a turn, and returns its id."""
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
    """A frozen reward model with all its members and its tokenizer.

    Members in adapters share one base in memory. A single one is merged into it in fp32.

    Args:
        dtype: of the trunk's weights; None: as `working_dtype` measures. Adapters and heads are fp32.
        member: load this one alone.

    Raises:
        ModelUnavailable: nothing loads from there, or it is no reward model of ours.
    """
    refuse_pickles(str(folder))
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
    classifier.score.float()  # rewards are compared to more digits than bf16 has
    offsets, gains = getattr(config, "reward_offsets", None), getattr(config, "reward_gains", None)
    return RewardModel(classifier, offsets, gains), load_tokenizer(str(folder))


def _no_head(folder: str | Path) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder} holds no weights for the head of a reward model: its rewards would be random.",
        "Choose a reward model that was trained; a policy is none.",
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
    for place, number in enumerate(chosen):
        where = member_folder(folder, number)
        with loading(str(where)):
            check_adapter(where, base, classifier)
            config = LoraConfig.from_pretrained(where)
            config.modules_to_save = None  # heads are ours to choose, not peft's
            adapters.put_on(classifier, config, str(place))
            others = adapters.read(classifier, str(place), where, [SCORE.removeprefix(adapters.PREFIX)])
        if not others:
            raise _no_head(where)
        with torch.no_grad():
            model.scores[place].weight.copy_(others[SCORE.removeprefix(adapters.PREFIX)])
    model = model.requires_grad_(False).eval()
    refuse_nan(model, str(folder))
    if model.members == 1 and computes_in(trunk_of(classifier)) == torch.float32:
        merge_adapters(model)
    return model, tokenizer


def base_of(folder: Path) -> str:
    """The folder, or the name on the hub, of the base that a folder of adapters was trained on.

    A location relative to the store is looked for in the folders above, so that stores can move.

    Raises:
        ModelUnavailable: its record is damaged, or the base is not there.
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
    """Writes a folder of plain transformers for each member, its adapter merged in fp32; returns these folders.

    A single member is `out` itself, several are `out/0`, `out/1`...: the score is the mean over all of them.

    Raises:
        ModelUnavailable: the folder holds no reward model.
    """
    members = len(json.loads((folder / SETTINGS).read_text())["offsets"]) if (folder / SETTINGS).exists() else 1
    written = [out / str(member) if members > 1 else out for member in range(members)]
    for member, where in enumerate(written):
        model, tokenizer = load_reward_model(folder, torch.float32, member)
        save_reward_model(model, tokenizer, where)
    return written
