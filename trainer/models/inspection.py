"""Check a model's files before a run spends time on it: pickles, adapters of another base, NaN weights.

An adapter fits only the weights it was trained on. `base.json` stores their fingerprint next to the adapter: folders
may move, but another model of the same shape is refused.
"""

import hashlib
import json
import logging
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from torch import nn
from transformers.utils import cached_file

from app.errors import ModelUnavailable
from trainer.speed.precision import computes_in

log = logging.getLogger(__name__)

ADAPTER_WEIGHTS, ADAPTER_CONFIG, BASE_RECORD = "adapter_model.safetensors", "adapter_config.json", "base.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SAMPLE = 4096  # bytes of each tensor in a fingerprint: few enough to be fast for a model of any size


def local_folder(name: str, file: str) -> Path:
    """Return the folder of a model: `name` itself, or the hub cache's folder that holds `file`.

    Raises:
        OSError: neither exists.
    """
    return Path(name) if Path(name).is_dir() else Path(cached_file(name, file)).parent


def refuse_pickles(name: str) -> None:
    """Raise ModelUnavailable if a folder's weights are pickles only: unpickling runs any code that they contain."""
    folder = Path(name)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelUnavailable(
            f"The weights of {name} are a pickle ({pickles[0]}), which can run code when it is loaded; "
            "only safetensors are accepted.",
            "If you trust it, load it with transformers (for an adapter: peft) elsewhere and call save_pretrained on "
            "it: that writes safetensors.",
        )


def refuse_missing(missing: Collection[str], name: str) -> None:
    """Raise ModelUnavailable if the files lack some of the model's weights: transformers would fill in random ones."""
    if missing:
        first, *others = sorted(missing)
        more = f" and {len(others)} more" if others else ""
        raise ModelUnavailable(
            f"The files of {name} lack the weights {first}{more}; they would be random numbers.",
            "Fetch it again, or choose a model of the kind that is wanted: a language model, or a reward model.",
        )


@torch.no_grad()
def require_causal(trunk: Any, name: str) -> None:
    """Raise ModelUnavailable if hidden states depend on later tokens, which are the ones the model has to predict.

    The test runs two sequences that differ only in their last token.
    """
    vocabulary = trunk.config.get_text_config().vocab_size
    ids = torch.arange(3, 11, device=next(trunk.parameters()).device).repeat(2, 1) % vocabulary
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    one, other = trunk(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].float()
    tolerance = 1e-4 if computes_in(trunk) == torch.float32 else 1e-2
    if bool((one - other).abs().max() > tolerance * one.abs().max()):
        raise ModelUnavailable(
            f"{name} ({trunk.config.model_type}) reads a text in both directions, so it cannot go on with one.",
            "Choose a decoder-only language model.",
        )


def refuse_nan(model: nn.Module, name: str) -> None:
    """Raise ModelUnavailable if a weight is NaN or infinite.

    The check reads the weights once and copies one boolean per tensor to the CPU.
    """
    named = list(model.named_parameters())
    sums = torch.stack([p.detach().sum(dtype=torch.float32) for _, p in named]).isfinite().cpu()
    if not sums.all():
        broken = named[int((~sums).nonzero()[0])][0]
        raise ModelUnavailable(
            f"The weights of {name} hold NaN or infinite numbers, first in {broken}.",
            "Fetch or train it again; nothing can be trained from them.",
        )


# ---- adapters --------------------------------------------------------------------------------------------------------


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file, described by the file's header; its data is not read yet."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int


def stored_tensors(folder: Path, pattern: str = "*.safetensors") -> Iterator[StoredTensor]:
    """Yield the tensors of a folder's safetensors files from their headers. Raises ValueError if one is damaged."""
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as handle:
            try:
                (size,) = struct.unpack("<Q", handle.read(8))
                header = json.loads(handle.read(size))
            except (struct.error, OverflowError, MemoryError, ValueError) as error:
                raise ValueError(f"{path.name} is damaged: its header cannot be read") from error
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in entry["data_offsets"])
                yield StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, start, end)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 in hex over names, shapes, dtypes and first 4 KiB of all tensors, independent of sharding."""
    sha = hashlib.sha256()
    for tensor in sorted(stored_tensors(folder)):
        with tensor.path.open("rb") as handle:
            handle.seek(tensor.start)
            sample = handle.read(min(_SAMPLE, tensor.end - tensor.start))
        sha.update(f"{tensor.name}\0{tensor.dtype}\0{tensor.shape}\0".encode() + sample)
    return sha.hexdigest()


def record_base(folder: Path, base: str, location: str) -> None:
    """Write an adapter's base next to it: the weights' fingerprint, and their location for people to read."""
    record = {"location": location, "fingerprint": fingerprint(local_folder(base, "config.json"))}
    (folder / BASE_RECORD).write_text(json.dumps(record, indent=2) + "\n")


_OTHER_BASE = "Choose the base that it was trained on, or another folder."


def check_base(folder: Path, base: str) -> None:
    """Raise ModelUnavailable if the adapter or reward model in a folder was made for other weights than the base's."""
    record = json.loads((folder / BASE_RECORD).read_text())
    if record["fingerprint"] != fingerprint(local_folder(base, "config.json")):
        raise ModelUnavailable(
            f"{folder} was made for other weights ({record['location']}) than {base} holds.", _OTHER_BASE
        )


def check_adapter(folder: Path, base: str, model: nn.Module) -> None:
    """Check that an adapter was made for this base: by fingerprint if it has one, and by shapes.

    Raises:
        ModelUnavailable: it has no safetensors, puts tokens before texts, or was made for another base.
        ValueError, OSError: a file is damaged.
    """
    refuse_pickles(str(folder))
    if not (folder / ADAPTER_WEIGHTS).exists():
        raise ModelUnavailable(
            f"The adapter {folder} holds no {ADAPTER_WEIGHTS}.", "Choose the folder of a trained adapter."
        )
    config = PeftConfig.from_pretrained(folder)
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise ModelUnavailable(
            f"The adapter {folder} is of the kind {config.peft_type.value}, which puts tokens before every text.",
            "Choose one that changes the model's layers, such as LoRA.",
        )
    if (folder / BASE_RECORD).exists():
        check_base(folder, base)
    else:
        recorded = str(config.base_model_name_or_path or "")
        if Path(recorded).name != Path(base).name:
            log.warning("The adapter %s says it was made for %s; it is put on %s.", folder, recorded, base)
    shapes = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tuple(p.shape)
        for name, p in model.named_parameters()
    }
    for tensor in stored_tensors(folder, ADAPTER_WEIGHTS):
        wrong = _misfit(tensor, shapes)
        if wrong:
            raise ModelUnavailable(f"{folder} was made for another base than {base}: {wrong}.", _OTHER_BASE)


def _misfit(tensor: StoredTensor, shapes: dict[str, tuple[int, ...]]) -> str:
    """Describe how a tensor of a LoRA adapter does not fit weights (out, in) of these shapes; '' if it fits."""
    module, found, part = tensor.name.removeprefix("base_model.model.").partition(".lora_")
    if not found or part not in ("A.weight", "B.weight"):
        return ""  # another kind of adapter, which only peft checks
    module = module.replace(".base_layer", "")
    weight = shapes.get(f"{module}.weight")
    if weight is None and not any(name.startswith(f"{module}.") for name in shapes):
        return f"there is no {module}"
    if weight is None or len(weight) != 2:  # weights of experts have other names and three dimensions
        return ""
    side, size, expected = (
        ("inputs", tensor.shape[1], weight[1]) if part == "A.weight" else ("outputs", tensor.shape[0], weight[0])
    )
    # Some layers (GPT-2's) store their weights as (in, out).
    return "" if size in weight else f"{module} has {expected} {side}, the adapter {size}"


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def require_tokens_fit(tokenizer: Any, config: Any, name: str) -> None:
    """Raise ModelUnavailable if the tokenizer has tokens for which the model has no embedding."""
    rows, last = config.get_text_config().vocab_size, max(tokenizer.get_vocab().values(), default=-1)
    if last >= rows:
        raise ModelUnavailable(
            f"The tokenizer of {name} has token ids up to {last}, the model embeddings for {rows} tokens only.",
            "Use the tokenizer that belongs to the model, or resize the model's embeddings and save it anew.",
        )
