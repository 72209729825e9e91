"""Find and load language models, with their adapters. See `trainer.reward.model` for reward models and `saving`.

All functions load safetensors only, and run code that comes with a model only if the operator's setting allows it.
Models stay in `eval()` mode even in training, because with dropout two forward passes would give different log-probs.
"""

import contextlib
import logging
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from app.artifacts import ArtifactStore
from app.errors import ModelUnavailable, NotFound
from app.settings import Settings
from app.specs import Lora, ModelRef, Precision
from trainer.checkpoints import Checkpoints
from trainer.models.adapters import continue_adapter
from trainer.models.inspection import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    check_adapter,
    refuse_missing,
    refuse_nan,
    refuse_pickles,
    require_causal,
    require_tokens_fit,
)
from trainer.models.policy import check_logits, trunk_of
from trainer.processes import device, the_main_processes
from trainer.speed.memory import is_out_of_memory
from trainer.speed.precision import choose, name_of, set_compute_dtype

log = logging.getLogger(__name__)

transformers_logging.disable_progress_bar()

# For base models without a chat template: plain, and easy to read in a sample.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
# For models whose tokenizer starts every text with BOS (Gemma, Llama): without BOS they predict far worse.
PLAIN_CHAT_TEMPLATE_AFTER_BOS = "{{ bos_token }}" + PLAIN_CHAT_TEMPLATE

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)

POLICY, REFERENCE = "default", "reference"  # adapter names; peft saves the adapter "default" at the folder's root

Reference = Callable[[], AbstractContextManager[Any]]


def working_dtype(precision: Precision, name: ModelRef | str, checkpoints: Checkpoints | None = None) -> torch.dtype:
    """Return the dtype of a model's frozen weights and matrix products (see `trainer.speed.precision`).

    If the choice is measured, the main process's result applies to all processes of a run, and a resumed run reuses it.

    Raises:
        ModelUnavailable: the model has no configuration.
    """
    name = name if isinstance(name, str) else name.base
    hidden_size = load_config(name).get_text_config().hidden_size

    def decide() -> str:
        return name_of(choose(precision, hidden_size, device()))

    decided = the_main_processes(lambda: checkpoints.remembered("precision", decide) if checkpoints else decide())
    return getattr(torch, decided)


def sampling_dtype(precision: Precision, name: ModelRef | str) -> torch.dtype:
    """Return the `working_dtype` for sampling, except that `auto` means fp32 on CPUs even if bf16 is faster.

    bf16 rounds so much that the same sample can come out differently in another batch.

    Raises:
        ModelUnavailable: the model has no configuration.
    """
    return torch.float32 if precision == "auto" and device().type == "cpu" else working_dtype(precision, name)


def seed_everything(seed: int) -> None:
    """Seed the random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ---- finding and loading ---------------------------------------------------------------------------------------------


def resolve(store: ArtifactStore, ref: ModelRef) -> ModelRef:
    """Return the reference with locations replaced by folders; a name that is not in the store is taken for a hub name.

    An adapter from the hub is downloaded with its tokenizer and template, because it was trained with them.

    Raises:
        ModelUnavailable: an absolute path or a location that cannot be a hub name does not exist, or the hub does not
            have the adapter.
    """

    def find(location: str) -> str:
        try:
            return str(store.resolve(location))
        except NotFound as error:
            if HUB_NAME.fullmatch(location) and not location.startswith("models/") and not _shadowed(store, location):
                return location
            raise ModelUnavailable(f"The model {location} does not exist.", error.advice) from error

    # `find` keeps locations outside the store and URLs away from the libraries, which would accept more than we do.
    adapter = find(ref.adapter) if ref.adapter else None
    if adapter is not None and not Path(adapter).exists():
        with loading(adapter):
            adapter = snapshot_download(
                adapter, allow_patterns=["*.json", "*.jinja", "*.model", "*.txt", ADAPTER_WEIGHTS]
            )
    return ModelRef(base=find(ref.base), adapter=adapter)


def _shadowed(store: ArtifactStore, name: str) -> bool:
    """Return whether libraries would take a hub name for a folder in the service's working directory."""
    return store.outside is not None and Path(name).exists()


def trusts_remote_code() -> bool:
    """Return whether the operator lets models run the Python code that comes with them."""
    return Settings().trust_remote_code


_UNLOADABLE = (
    *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
    *(ArithmeticError, AssertionError, SafetensorError, StrictDataclassError),
)


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    try:
        yield
    except _UNLOADABLE as error:
        if is_out_of_memory(error):  # a RuntimeError that is not the model's fault
            raise
        if "trust_remote_code" in str(error):
            raise ModelUnavailable(
                f"The model {name} brings Python code of its own, which is not run.",
                "Read that code; if you trust it, the operator sets PREFLOOP_TRUST_REMOTE_CODE=true.",
            ) from error
        first, *more = str(error).strip().splitlines() or [type(error).__name__]
        reason = f"{first} {more[0].strip()}" if more and first.endswith(":") else first
        raise ModelUnavailable(
            f"The model {name} cannot be loaded: {reason}",
            "Check its name or folder, and that its weights are stored as safetensors.",
        ) from error


def load_config(name: str) -> Any:
    """Load a language model's configuration. Raises ModelUnavailable."""
    if Path(name, ADAPTER_CONFIG).exists() and not Path(name, "config.json").exists():
        raise ModelUnavailable(
            f"{name} is an adapter, not a model.",
            "Name it as the adapter, and as the base the model it was trained on.",
        )
    with loading(name):
        config = AutoConfig.from_pretrained(name, trust_remote_code=trusts_remote_code())
        text = config.get_text_config()
    if not (hasattr(text, "vocab_size") and hasattr(text, "hidden_size")):
        raise ModelUnavailable(f"{name} ({config.model_type}) is not a language model.", "Choose a language model.")
    return config


def load_tokenizer(ref: ModelRef | str) -> Any:
    """Load a model's tokenizer with a chat template, an EOS and a padding token, and the model's maximum length.

    If an adapter comes with a tokenizer, it was trained with it, so that one is loaded. A tokenizer without a template
    takes the base's template, or a plain one if the base has none (`notes_on` reports this). Without a padding token,
    EOS is used for padding; masks mark valid tokens, so the id does not matter.

    Raises:
        ModelUnavailable: there is no model or tokenizer, or the tokenizer has no end-of-sequence token or more tokens
            than the model.
    """
    ref = ModelRef(base=ref) if isinstance(ref, str) else ref
    refuse_pickles(ref.base)
    config = load_config(ref.base)
    name = ref.adapter if ref.adapter is not None and _holds_tokenizer(ref.adapter) else ref.base
    with loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trusts_remote_code())
    require_tokens_fit(tokenizer, config, name)
    if tokenizer.eos_token_id is None:
        raise ModelUnavailable(
            f"The tokenizer of {name} has no end-of-sequence token.",
            "Choose a model whose tokenizer defines eos_token.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None and name != ref.base:
        with contextlib.suppress(ModelUnavailable):  # a base may have no tokenizer
            tokenizer.chat_template = load_tokenizer(ref.base).chat_template
    if tokenizer.chat_template is None:
        begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE_AFTER_BOS if begins else PLAIN_CHAT_TEMPLATE
        log.warning("%s has no chat template; a plain one is used.", name)
    if (positions := _positions(config)) is not None:
        tokenizer.model_max_length = positions  # a tokenizer's own value often comes from another model
    return tokenizer


def read_by_all(max_length: int, *models: str) -> int:
    """Return the maximum length for all of these models: `max_length`, or less if a model has fewer positions."""
    return min([max_length, *(n for n in (_positions(load_config(model)) for model in models) if n is not None)])


def _positions(config: Any) -> int | None:
    found = getattr(config.get_text_config(), "max_position_embeddings", None) or 0
    return found if found > 0 else None


def _holds_tokenizer(folder: str) -> bool:
    return all(Path(folder, file).exists() for file in ("tokenizer.json", "tokenizer_config.json"))


def notes_on(tokenizer: Any) -> tuple[str, ...]:
    """Return notes about the tokenizer for readers of a run's result."""
    if tokenizer.chat_template in (PLAIN_CHAT_TEMPLATE, PLAIN_CHAT_TEMPLATE_AFTER_BOS):
        return ("The base model has no chat template: chats are written with a plain one, saved with the tokenizer.",)
    return ()


def require_one_vocabulary(first: str, second: str) -> None:
    """Raise ModelUnavailable unless two models have the same tokens, token ids and number of logits."""
    sizes = [load_config(name).get_text_config().vocab_size for name in (first, second)]
    same = sizes[0] == sizes[1] and load_tokenizer(first).get_vocab() == load_tokenizer(second).get_vocab()
    if not same:
        raise ModelUnavailable(
            f"{first} and {second} do not share a vocabulary ({sizes[0]} and {sizes[1]} tokens).",
            "Choose two models with the same tokenizer.",
        )


def _load_base(name: str, dtype: torch.dtype) -> Any:
    refuse_pickles(name)
    with loading(name):
        model, found = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=trusts_remote_code(), output_loading_info=True
        )
    refuse_missing(found["missing_keys"], name)
    refuse_nan(model, name)
    model = model.to(device()).eval()
    with loading(name):
        require_causal(trunk_of(model), name)
    return model


def _with_adapter(model: Any, ref: ModelRef, lora: Lora | None) -> PeftModel:
    """Load an adapter onto the model: frozen, or to continue training with the settings of `lora` if given."""
    assert ref.adapter is not None
    with loading(ref.adapter):
        check_adapter(Path(ref.adapter), ref.base, model)
        if lora is None:
            adapted = PeftModel.from_pretrained(model, ref.adapter, adapter_name=POLICY)
        else:
            adapted = continue_adapter(model, Path(ref.adapter), lora, POLICY)
    refuse_nan(adapted, ref.adapter)
    return adapted.eval()


def lora_config(lora: Lora, task_type: str = "CAUSAL_LM") -> LoraConfig:
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type=task_type
    )


def load_causal_lm(
    ref: ModelRef, lora: Lora | None = None, trainable: bool = False, dtype: torch.dtype | None = None
) -> Any:
    """Load a language model in `eval()` mode on `device()`.

    The model is frozen by default. An adapter is merged if weights are fp32. If they are bf16, it stays separate and
    fp32: most of its changes are smaller than half a bf16 rounding step, so merging would erase them.

    With `trainable` and `lora`, the result is a peft model in which only the adapter has gradients: a new adapter,
    which starts as the identity, or the adapter of `ref`, widened to the rank of `lora`. With `trainable` and no
    `lora`, all weights are trained, with an adapter merged into them.

    Args:
        dtype: dtype of frozen weights and matrix products; None: see `working_dtype`. Trained weights are fp32.

    Raises:
        ModelUnavailable: the model does not load or holds NaN, or the adapter was made for another base.
        InvalidInput: the adapter cannot continue training with the settings of `lora`: see `trainer.models.adapters`.
    """
    dtype = working_dtype("auto", ref) if dtype is None else dtype
    if trainable and lora is not None:
        model = _load_base(ref.base, dtype)
        if ref.adapter:
            model = _with_adapter(model, ref, lora)
        else:
            model = get_peft_model(model, lora_config(lora), adapter_name=POLICY).eval()
    else:
        held = torch.float32 if trainable else dtype
        model = _load_base(ref.base, held)
        if ref.adapter:
            model = _with_adapter(model, ref, None)
            if held == torch.float32:
                model = model.merge_and_unload()
        model = model.requires_grad_(trainable).eval()
    set_compute_dtype(trunk_of(model), dtype)
    with loading(ref.adapter or ref.base):
        check_logits(model)
    return model


def load_policy_and_reference(
    policy: ModelRef, reference: ModelRef, lora: Lora | None, dtype: torch.dtype | None = None
) -> tuple[Any, Reference]:
    """Load the model to train and a `reference`; use `with reference() as model:` for the reference without gradients.

    The reference shares the policy's weights if possible. If it is the policy's base itself, adapters are disabled; if
    it is another adapter on that base, it is a second frozen adapter. Otherwise it is a second model.

    Raises:
        ModelUnavailable: a model does not load, or the vocabularies differ.
    """
    if reference.base != policy.base:
        require_one_vocabulary(policy.base, reference.base)
    dtype = working_dtype("auto", policy) if dtype is None else dtype
    model = load_causal_lm(policy, lora, trainable=True, dtype=dtype)
    if lora is None or reference.base != policy.base:
        frozen = load_causal_lm(reference, dtype=dtype)
        return model, lambda: _no_grad(frozen)
    if reference.adapter is None:
        return model, lambda: _adapters_disabled(model)
    with loading(reference.adapter):
        check_adapter(Path(reference.adapter), reference.base, model)
        model.load_adapter(reference.adapter, adapter_name=REFERENCE, is_trainable=False)
    refuse_nan(model, reference.adapter)
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
