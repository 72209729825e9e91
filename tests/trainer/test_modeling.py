from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from app.artifacts import ArtifactStore, digest_folder
from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from tests.trainer.conftest import user
from trainer.algorithms.logprobs import sequence_logps, token_logps
from trainer.data import Batch, ChatEncoder, TokenSequence, collate
from trainer.modeling import (
    completion_logits,
    last_valid,
    load_causal_lm,
    load_policy_and_reference,
    load_tokenizer,
    resolve,
    save_policy,
    seed_everything,
    trainable_parameters,
    trunk_of,
    vocabulary_logits,
)
from trainer.reward_model import load_reward_model

TEXTS = {"Say hi": "Hi", "Name a colour, please": "Green is one of them", "Why?": ""}


def sequences(tokenizer: object) -> list[TokenSequence]:
    encoder = ChatEncoder(tokenizer, max_length=256)
    return [TokenSequence(encoder.prompt(user(q)), encoder.completion(a)) for q, a in TEXTS.items()]


def batch_of(ref: ModelRef, side: str = "right") -> Batch:
    tokenizer = load_tokenizer(ref)
    return collate(sequences(tokenizer), tokenizer.pad_token_id, side)


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Moves trainable parameters to where training might have taken them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits_of(model: object, ref: ModelRef) -> torch.Tensor:
    with torch.no_grad():
        return completion_logits(model, batch_of(ref))[0]


# ---- log-probs -------------------------------------------------------------------------------------------------------


def test_completion_logps_equal_the_models_own_loss(tiny_ref: ModelRef) -> None:
    """Independent reference: transformers' cross-entropy over labels, one unpadded sequence at a time."""
    model = load_causal_lm(tiny_ref)
    batch = batch_of(tiny_ref)
    logits, tokens = completion_logits(model, batch)
    ours = sequence_logps(token_logps(logits, tokens), batch.completion_mask)
    for mine, (prompt, completion) in zip(ours, sequences(load_tokenizer(tiny_ref)), strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        labels = torch.tensor([[-100] * len(prompt) + list(completion)])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        assert mine.item() == pytest.approx(-loss.item() * len(completion), abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_results_do_not_depend_on_padding(tiny_ref: ModelRef, side: str) -> None:
    model = load_causal_lm(tiny_ref)
    tokenizer = load_tokenizer(tiny_ref)
    together = completion_logits(model, collate(sequences(tokenizer), tokenizer.pad_token_id, side))[0]
    alone = [completion_logits(model, collate([s], tokenizer.pad_token_id))[0] for s in sequences(tokenizer)]
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    other_id = completion_logits(model, collate(sequences(tokenizer), 7, side))[0]
    torch.testing.assert_close(together, other_id, atol=2e-5, rtol=1e-5)


def test_capped_and_scaled_logits_equal_the_architectures_own() -> None:
    from transformers import CohereConfig, CohereForCausalLM, Gemma2Config, Gemma2ForCausalLM

    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1} | {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    shape.pop("head_dim")
    ids = torch.arange(3, 11)[None]
    for model in (
        Gemma2ForCausalLM(Gemma2Config(**shape, head_dim=16, final_logit_softcapping=0.5)),
        CohereForCausalLM(CohereConfig(**shape, logit_scale=0.25)),
    ):
        hidden = trunk_of(model.eval())(input_ids=ids).last_hidden_state
        torch.testing.assert_close(vocabulary_logits(model, hidden), model(input_ids=ids).logits)


# ---- policy and reference --------------------------------------------------------------------------------------------


def test_the_reference_is_the_base_while_the_adapter_trains(tiny_ref: ModelRef) -> None:
    base = logits_of(load_causal_lm(tiny_ref), tiny_ref)
    model, reference = load_policy_and_reference(tiny_ref, tiny_ref, Lora())
    torch.testing.assert_close(logits_of(model, tiny_ref), base)  # a new adapter is the identity
    perturb(model)
    with reference() as reference_model:
        torch.testing.assert_close(logits_of(reference_model, tiny_ref), base)
    assert (logits_of(model, tiny_ref) - base).abs().max() > 0.01
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.fixture
def adapter(tiny_ref: ModelRef, tmp_path: Path) -> ModelRef:
    """A policy that carries a trained adapter."""
    model = load_causal_lm(tiny_ref, Lora(rank=4), trainable=True)
    perturb(model)
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "policy")
    return ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "policy"))


def test_a_second_adapter_is_the_reference_and_stays_frozen(tiny_ref: ModelRef, adapter: ModelRef) -> None:
    expected = logits_of(load_causal_lm(adapter), tiny_ref)
    model, reference = load_policy_and_reference(adapter, adapter, Lora())
    before = [p.detach().clone() for p in trainable_parameters(model)]
    with reference() as reference_model:
        assert not trainable_parameters(reference_model)
        torch.testing.assert_close(logits_of(reference_model, tiny_ref), expected, atol=1e-4, rtol=1e-4)
    assert [p.shape for p in trainable_parameters(model)] == [p.shape for p in before]
    perturb(model, seed=1)
    with reference() as reference_model:
        torch.testing.assert_close(logits_of(reference_model, tiny_ref), expected, atol=1e-4, rtol=1e-4)
    assert (logits_of(model, tiny_ref) - expected).abs().max() > 0.01


def test_another_base_is_a_second_model(tiny_ref: ModelRef, other_tiny_model: Path) -> None:
    other = ModelRef(base=str(other_tiny_model))
    _, reference = load_policy_and_reference(tiny_ref, other, Lora())
    with reference() as reference_model:
        torch.testing.assert_close(logits_of(reference_model, tiny_ref), logits_of(load_causal_lm(other), tiny_ref))


def test_full_weights_train_from_the_merged_adapter(tiny_ref: ModelRef, adapter: ModelRef) -> None:
    model, reference = load_policy_and_reference(adapter, tiny_ref, None)
    assert not isinstance(model, PeftModel)
    assert len(trainable_parameters(model)) == len(list(model.parameters()))
    torch.testing.assert_close(logits_of(model, tiny_ref), logits_of(load_causal_lm(adapter), tiny_ref))
    with reference() as reference_model:
        torch.testing.assert_close(logits_of(reference_model, tiny_ref), logits_of(load_causal_lm(tiny_ref), tiny_ref))


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_a_saved_policy_loads_in_plain_transformers(tiny_ref: ModelRef, tmp_path: Path, lora: Lora | None) -> None:
    model = load_causal_lm(tiny_ref, lora, trainable=True)
    perturb(model)
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    for sequence in sequences(load_tokenizer(tiny_ref)):
        ids = torch.tensor([[*sequence.prompt, *sequence.completion]])
        with torch.no_grad():
            torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == load_tokenizer(tiny_ref).chat_template


def test_a_policy_with_an_adapter_goes_on_training_it(tiny_ref: ModelRef, adapter: ModelRef, tmp_path: Path) -> None:
    model, _ = load_policy_and_reference(adapter, tiny_ref, Lora(rank=16))
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "again")
    assert adapter.adapter is not None
    before = load_file(Path(adapter.adapter) / "adapter_model.safetensors")
    after = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert digest_folder(Path(adapter.adapter)) == digest_folder(tmp_path / "again")


# ---- what cannot be loaded -------------------------------------------------------------------------------------------


def test_models_that_do_not_load_are_named(tmp_path: Path, tiny_ref: ModelRef) -> None:
    (tmp_path / "empty").mkdir()
    for load in (load_tokenizer, load_causal_lm, load_reward_model):
        target = str(tmp_path / "empty") if load is not load_causal_lm else ModelRef(base=str(tmp_path / "empty"))
        with pytest.raises(ModelUnavailable, match="empty cannot be loaded"):
            load(target)  # type: ignore[arg-type]
    with pytest.raises(ModelUnavailable, match=r"adapter_model\.safetensors"):
        load_causal_lm(ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "empty")))


def test_pickled_weights_are_refused(tiny_ref: ModelRef, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_ref.base).config.save_pretrained(tmp_path)
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_ref.base).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        load_causal_lm(ModelRef(base=str(tmp_path)))


def test_locations_resolve_in_the_store_and_names_stay_names(store: ArtifactStore) -> None:
    with store.folder("models/base") as staging:
        (staging / "config.json").write_text("{}")
    resolved = resolve(store, ModelRef(base="models/base", adapter="models/base"))
    assert resolved.base == resolved.adapter == str(store.root / "models/base")
    assert resolve(store, ModelRef(base="someone/some-model")).base == "someone/some-model"
    with pytest.raises(ModelUnavailable, match="models/run-9"):
        resolve(store, ModelRef(base="models/base", adapter="models/run-9"))


def test_a_tokenizer_without_template_or_padding_is_completed(tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    completed = load_tokenizer(str(tmp_path))
    assert completed.pad_token == completed.eos_token
    rendered = completed.apply_chat_template(list(user("Hi")), add_generation_prompt=True, tokenize=False)
    assert rendered == "User:\nHi<|im_end|>\nAssistant:\n"
    completed.eos_token = None
    completed.save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="no end-of-sequence token"):
        load_tokenizer(str(tmp_path))
