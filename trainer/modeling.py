"""Language models: loaded, given adapters, run on completions only, saved. Reward models are in `reward_model`.

Everything here loads safetensors only and never runs code that comes with a model. Models stay in `eval()` mode, also
while they are trained: dropout would make the log-probs of one model differ between two passes.
"""

import contextlib
import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from app.artifacts import ArtifactStore
from app.errors import ModelUnavailable, NotFound
from app.specs import Lora, ModelRef
from trainer.algorithms.logprobs import entropy, token_logps
from trainer.data import TokenSequence, end_of_turn_id
from trainer.packing import Packed, pack

log = logging.getLogger(__name__)

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
def loading(name: str) -> Iterator[None]:
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
    with loading(name):
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
    with loading(name):
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    return model.to(device()).eval()


def _check_adapter(folder: str) -> None:
    if Path(folder).is_dir() and not (Path(folder) / "adapter_model.safetensors").exists():
        raise ModelUnavailable(f"The adapter {folder} holds no adapter_model.safetensors.")


def _with_adapter(model: Any, folder: str, trainable: bool) -> PeftModel:
    _check_adapter(folder)
    with loading(folder):
        return PeftModel.from_pretrained(model, folder, adapter_name=POLICY, is_trainable=trainable).eval()


def lora_config(lora: Lora, task_type: str = "CAUSAL_LM") -> LoraConfig:
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
        return get_peft_model(base, lora_config(lora), adapter_name=POLICY).eval()
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
    with loading(reference.adapter):
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


def hidden_states(trunk: Any, packed: Packed) -> Tensor:
    """Last hidden states (R * T, H) by flat place, after the final norm; meaningless at padding."""
    places = {}
    if packed.attention_mask is not None:
        places = {"attention_mask": packed.attention_mask, "position_ids": packed.position_ids}
    # Without a mask padding is on the right only: causal attention never reaches it, positions are 0, 1, 2..., and
    # attention without a mask takes the faster kernels.
    return trunk(input_ids=packed.input_ids, use_cache=False, **places).last_hidden_state.flatten(0, 1)


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


class TokenOutputs(NamedTuple):
    """Of the N completion tokens of a packed batch: log-probs, entropies in nats, hidden states (N, H) before them."""

    logps: Tensor
    entropy: Tensor | None
    hidden: Tensor


def completion_outputs(model: Any, packed: Packed, temperature: float = 1.0, entropies: bool = False) -> TokenOutputs:
    """One forward pass. The vocabulary projection, a fifth of a small model's work, is run where it is needed only."""
    hidden = hidden_states(trunk_of(model), packed)[packed.predictors]
    logits = vocabulary_logits(model, hidden)
    logps = token_logps(logits, packed.targets, temperature)
    return TokenOutputs(logps, entropy(logits.detach(), temperature) if entropies else None, hidden)


class Policy(nn.Module):
    """A causal LM to be trained, run through `forward` only, as processes and shards need it.

    Attributes:
        causal: the language model, peft or plain.
        critic: from hidden states (N, H) to values (N,), where a recipe needs values.
        share: whether prompts may be shared in a row (see `can_share`).
    """

    def __init__(self, causal: Any, critic: nn.Module | None = None) -> None:
        super().__init__()
        self.causal, self.critic, self.share = causal, critic, can_share(trunk_of(causal))

    def forward(self, packed: Packed, temperature: float = 1.0, entropies: bool = False) -> TokenOutputs:
        return completion_outputs(self.causal, packed, temperature, entropies)


@torch.no_grad()
def can_share(trunk: Any) -> bool:
    """Whether a trunk reads packed rows right: completions after one shared prompt, groups side by side in a row.

    Tried on the model itself. Attention that takes no such mask, recurrent layers and positions of another kind show;
    attention windows shorter than the test would not, so a model with a window reads every sequence alone.
    """
    config = trunk.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    ids = torch.randint(0, config.vocab_size, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    a, b = ids[:7], ids[7:10]
    sequences = [TokenSequence(a, ids[10:13]), TokenSequence(a, ids[13:18]), TokenSequence(b, ids[18:20])]
    sequences += [TokenSequence(b, ids[20:24])]
    where = next(trunk.parameters()).device
    try:
        states = []
        for share in (False, True):
            packed = pack(sequences, 0, share).to(where)
            states.append(hidden_states(trunk, packed)[packed.predictors].float())
    except (RuntimeError, ValueError, TypeError, IndexError):
        shared = False
    else:
        alone, together = states
        tolerance = 1e-4 if next(trunk.parameters()).dtype == torch.float32 else 5e-2
        shared = bool((alone - together).abs().max() <= tolerance * alone.abs().max())
    if not shared:
        log.warning("%s does not read shared prompts right; every response is read with its own.", config.model_type)
    return shared


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
