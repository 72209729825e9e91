"""Models that cannot be used are refused early, with a reason and advice."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers import dynamic_module_utils as remote_code

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from trainer.models.loading import load_causal_lm, load_policy_and_reference, load_tokenizer, require_one_vocabulary
from trainer.models.saving import save_policy
from trainer.reward.model import load_reward_model


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny model that only this test uses, so that it can damage it."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def save_adapter(base: Path, folder: Path) -> ModelRef:
    ref = ModelRef(base=str(base))
    save_policy(load_causal_lm(ref, Lora(rank=2), trainable=True), load_tokenizer(ref), folder)
    return ModelRef(base=str(base), adapter=str(folder))


def weights_changed(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def assert_refused(folder: Path, message: str, advice: str) -> None:
    """Assert that the folder is refused, as a policy and as a reward model."""
    for load in (lambda: load_causal_lm(ModelRef(base=str(folder))), lambda: load_reward_model(folder)):
        with pytest.raises(ModelUnavailable, match=message) as refused:
            load()
        assert advice in refused.value.advice
        assert folder.name in refused.value.message


def test_unknown_models(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "cannot be loaded: Unrecognized model", "Check its name or folder")
    for load in (load_tokenizer, lambda name: load_causal_lm(ModelRef(base=name)), load_reward_model):
        with pytest.raises(ModelUnavailable, match=r"The model nobody/no-such-model cannot be loaded"):
            load("nobody/no-such-model")
        with pytest.raises(ModelUnavailable, match="empty cannot be loaded"):
            load(str(tmp_path / "empty"))


def test_weights_that_are_not_all_there(model: Path) -> None:
    """transformers would fill them with random numbers."""
    weights_changed(model / "model.safetensors", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    weights_changed(model / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelUnavailable, match=r"lack the weights model\.layers\.1\.mlp\.up_proj\.weight and 1 more"):
        load_causal_lm(ModelRef(base=str(model)))


def test_a_model_that_reads_in_both_directions(tiny_model: Path, tmp_path: Path) -> None:
    """It would see the answers that it should learn: the loss would be 0, and it would not be a language model."""
    config = BertConfig(
        vocab_size=260, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"\(bert\) reads a text in both directions"):
        load_causal_lm(ModelRef(base=str(tmp_path)))


def test_a_configuration_that_is_no_json(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama", ')
    assert_refused(model, "cannot be loaded: .*JSON", "Check its name or folder")


def test_weights_cut_short(model: Path) -> None:
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    assert_refused(model, "cannot be loaded", "Check its name or folder")
    os.truncate(file, 4)
    assert_refused(model, "cannot be loaded", "Check its name or folder")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(model: Path, tmp_path: Path, number: float) -> None:
    adapter = save_adapter(model, tmp_path / "adapter")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        next(t for name, t in sorted(tensors.items()) if "layers.1.mlp" in name).view(-1)[7] = number

    weights_changed(tmp_path / "adapter/adapter_model.safetensors", spoil)
    for lora in (None, Lora(rank=2)):
        with pytest.raises(ModelUnavailable, match=r"adapter hold NaN or infinite .*layers\.1\.mlp"):
            load_causal_lm(adapter, lora, trainable=True)
    with pytest.raises(ModelUnavailable, match=r"adapter hold NaN or infinite"):
        load_policy_and_reference(ModelRef(base=str(model)), adapter, Lora(rank=2))
    weights_changed(model / "model.safetensors", spoil)
    config = json.loads((model / "config.json").read_text()) | {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    (model / "config.json").write_text(json.dumps(config))
    assert_refused(model, r"hold NaN or infinite numbers, first in model\.layers\.1\.mlp", "Fetch or train it again")


# ---- pickles, and other people's code --------------------------------------------------------------------------------


def test_pickles_are_never_read(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(model, tmp_path / "adapter")
    for folder, weights, pickle in (
        (model, "model.safetensors", "pytorch_model.bin"),
        (tmp_path / "adapter", "adapter_model.safetensors", "adapter_model.bin"),
    ):
        torch.save(load_file(folder / weights), folder / pickle)
        (folder / weights).rename(tmp_path / weights)
    assert_refused(model, r"pickle \(pytorch_model\.bin\).*only safetensors", "call save_pretrained")
    with pytest.raises(ModelUnavailable, match=r"pickle \(pytorch_model\.bin\)"):
        load_tokenizer(str(model))  # what a recipe loads first
    (tmp_path / "model.safetensors").rename(model / "model.safetensors")
    with pytest.raises(ModelUnavailable, match=r"pickle \(adapter_model\.bin\).*only safetensors"):
        load_causal_lm(adapter)


def test_a_models_own_code_runs_only_where_the_operator_allows_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_code, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    (model / "configuration_own.py").write_text(
        f"from pathlib import Path\nfrom transformers import LlamaConfig\nPath({str(ran)!r}).touch()\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
    )
    (model / "modeling_own.py").write_text(
        "from transformers import LlamaForCausalLM\nfrom .configuration_own import OwnConfig\n\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((model / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (model / "config.json").write_text(json.dumps(config))
    assert_refused(model, "brings Python code of its own, which is not run", "PREFLOOP_TRUST_REMOTE_CODE=true")
    assert not ran.exists()
    monkeypatch.setenv("PREFLOOP_TRUST_REMOTE_CODE", "true")
    assert type(load_causal_lm(ModelRef(base=str(model)))).__name__ == "OwnForCausalLM"
    assert ran.exists()


# ---- adapters of another base ----------------------------------------------------------------------------------------


def test_an_adapter_in_the_place_of_its_base(model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(model, tmp_path / "adapter").adapter
    assert adapter is not None
    for load in (load_tokenizer, lambda name: load_causal_lm(ModelRef(base=name))):
        with pytest.raises(ModelUnavailable, match="adapter is an adapter, not a model"):
            load(adapter)


def test_an_adapter_that_is_no_change_of_layers(model: Path, tmp_path: Path) -> None:
    """Its virtual tokens would be left out silently, because only the model's own layers are run."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(LlamaForCausalLM.from_pretrained(model), config).save_pretrained(tmp_path / "prompt")
    adapter = ModelRef(base=str(model), adapter=str(tmp_path / "prompt"))
    for lora in (None, Lora(rank=2)):
        with pytest.raises(ModelUnavailable, match="of the kind PROMPT_TUNING, which puts tokens before every text"):
            load_causal_lm(adapter, lora, trainable=True)


def other_shape(tiny_model: Path, folder: Path, vocabulary: int = 260, layers: int = 2, hidden: int = 64) -> Path:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def test_an_adapter_of_other_weights(
    model: Path, other_tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shapes are equal, so only the fingerprint differs. An adapter without a fingerprint is used with a note."""
    adapter = save_adapter(model, tmp_path / "adapter").adapter
    assert adapter is not None
    moved = model.rename(tmp_path / "renamed")
    load_causal_lm(ModelRef(base=str(moved), adapter=adapter))

    wrong = ModelRef(base=str(other_tiny_model), adapter=adapter)
    policy = ModelRef(base=wrong.base)
    for load in (
        lambda: load_causal_lm(wrong),
        lambda: load_causal_lm(wrong, Lora(rank=2), trainable=True),
        lambda: load_policy_and_reference(policy, wrong, Lora(rank=2)),
    ):
        with pytest.raises(ModelUnavailable, match="was made for other weights") as refused:
            load()
        assert "the base that it was trained on" in refused.value.advice

    (tmp_path / "adapter/base.json").unlink()
    assert not caplog.records
    load_causal_lm(wrong)
    assert f"says it was made for {model}" in caplog.text


def test_an_adapter_of_another_shape(model: Path, tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(model, tmp_path / "adapter").adapter
    (tmp_path / "adapter/base.json").unlink()
    narrow = other_shape(tiny_model, tmp_path / "narrow")
    with pytest.raises(
        ModelUnavailable, match=r"made for another base than .*narrow: .*down_proj has 96 inputs, the adapter 192"
    ):
        load_causal_lm(ModelRef(base=str(narrow), adapter=adapter))
    shallow = other_shape(tiny_model, tmp_path / "shallow", layers=1, hidden=96)
    with pytest.raises(ModelUnavailable, match=r"shallow: (there is no model\.layers\.1|model\.layers\.0\.mlp)"):
        load_causal_lm(ModelRef(base=str(shallow), adapter=adapter))
    with pytest.raises(ModelUnavailable, match=r"holds no adapter_model\.safetensors"):
        load_causal_lm(ModelRef(base=str(model), adapter=str(model)))


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def test_models_that_do_not_share_a_vocabulary(model: Path, tiny_model: Path, tmp_path: Path) -> None:
    wide = other_shape(tiny_model, tmp_path / "wide", vocabulary=300)
    with pytest.raises(ModelUnavailable, match=r"do not share a vocabulary \(260 and 300 tokens\)"):
        load_policy_and_reference(ModelRef(base=str(model)), ModelRef(base=str(wide)), Lora())

    # The number of tokens is equal, but their order differs.
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelUnavailable, match="do not share a vocabulary"):
        require_one_vocabulary(str(tiny_model), str(model))
    require_one_vocabulary(str(tiny_model), str(tiny_model))


def test_a_tokenizer_with_more_tokens_than_the_model(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelUnavailable, match="token ids up to 260, the model embeddings for 260 tokens only"):
        load_tokenizer(str(model))


def test_a_tokenizer_without_an_end_of_sequence(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelUnavailable, match="no end-of-sequence token"):
        load_tokenizer(str(model))
