import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EncodecConfig,
    MixtralConfig,
    MixtralForCausalLM,
    MusicgenConfig,
    MusicgenDecoderConfig,
    PreTrainedConfig,
    T5Config,
    ViTConfig,
)

from app.artifacts import ArtifactStore, digest_folder
from app.errors import InvalidInput, ModelUnavailable
from app.specs import Lora, ModelRef
from tests.trainer.conftest import trainable_parameters, user
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.packing import Packed, pack
from trainer.models.loading import (
    load_causal_lm,
    load_policy_and_reference,
    load_tokenizer,
    notes_on,
    resolve,
    working_dtype,
)
from trainer.models.policy import completion_outputs, trunk_of, vocabulary_logits
from trainer.models.saving import save_policy
from trainer.sampling.responses import Sampler

TEXTS = {"Say hi": "Hi", "Name a colour, please": "Green is one of them", "Why?": ""}


def sequences(tokenizer: object) -> list[TokenSequence]:
    encoder = ChatEncoder(tokenizer, max_length=256)
    return [TokenSequence(encoder.prompt(user(q)), encoder.completion(a)) for q, a in TEXTS.items()]


def packed_of(ref: ModelRef) -> Packed:
    tokenizer = load_tokenizer(ref)
    return pack(sequences(tokenizer), tokenizer.pad_token_id, share=False)


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Change trainable parameters, as training might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logps_of(model: object, ref: ModelRef) -> torch.Tensor:
    with torch.no_grad():
        return completion_outputs(model, packed_of(ref)).logps


# ---- log-probs -------------------------------------------------------------------------------------------------------


def test_completion_logps_equal_the_models_own_loss(tiny_ref: ModelRef) -> None:
    """The reference is transformers' own cross-entropy over labels, one sequence at a time without padding."""
    model = load_causal_lm(tiny_ref)
    ours = packed_of(tiny_ref).per_sequence(logps_of(model, tiny_ref))
    for mine, (prompt, completion) in zip(ours, sequences(load_tokenizer(tiny_ref)), strict=True):
        ids = torch.tensor([[*prompt, *completion]])
        labels = torch.tensor([[-100] * len(prompt) + list(completion)])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        assert mine.item() == pytest.approx(-loss.item() * len(completion), abs=1e-4)


def test_a_token_is_correct_where_the_model_would_have_chosen_it(tiny_ref: ModelRef) -> None:
    model = load_causal_lm(tiny_ref)
    prompt = sequences(load_tokenizer(tiny_ref))[0].prompt
    chosen = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)[
        0, len(prompt) :
    ]
    wrong = (int(chosen[-1]) + 1) % 260
    packed = pack([TokenSequence(prompt, [*chosen.tolist()[:-1], wrong])], 0, share=False)
    correct = completion_outputs(model, packed, accuracy=True).correct
    assert correct is not None
    assert correct.tolist() == [True, True, True, True, False]


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
    base = logps_of(load_causal_lm(tiny_ref), tiny_ref)
    model, reference = load_policy_and_reference(tiny_ref, tiny_ref, Lora())
    torch.testing.assert_close(logps_of(model, tiny_ref), base)  # a new adapter is the identity
    perturb(model)
    with reference() as reference_model:
        torch.testing.assert_close(logps_of(reference_model, tiny_ref), base)
    assert (logps_of(model, tiny_ref) - base).abs().max() > 0.01
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


@pytest.fixture
def adapter(tiny_ref: ModelRef, tmp_path: Path) -> ModelRef:
    """A policy with a trained adapter."""
    model = load_causal_lm(tiny_ref, Lora(rank=4), trainable=True)
    perturb(model)
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "policy")
    return ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "policy"))


def test_a_second_adapter_is_the_reference_and_stays_frozen(tiny_ref: ModelRef, adapter: ModelRef) -> None:
    expected = logps_of(load_causal_lm(adapter), tiny_ref)
    model, reference = load_policy_and_reference(adapter, adapter, Lora(rank=4))
    before = [p.detach().clone() for p in trainable_parameters(model)]
    with reference() as reference_model:
        assert not trainable_parameters(reference_model)
        torch.testing.assert_close(logps_of(reference_model, tiny_ref), expected, atol=1e-4, rtol=1e-4)
    assert [p.shape for p in trainable_parameters(model)] == [p.shape for p in before]
    perturb(model, seed=1)
    with reference() as reference_model:
        torch.testing.assert_close(logps_of(reference_model, tiny_ref), expected, atol=1e-4, rtol=1e-4)
    assert (logps_of(model, tiny_ref) - expected).abs().max() > 0.01


def test_another_base_is_a_second_model(tiny_ref: ModelRef, other_tiny_model: Path) -> None:
    other = ModelRef(base=str(other_tiny_model))
    _, reference = load_policy_and_reference(tiny_ref, other, Lora())
    with reference() as reference_model:
        torch.testing.assert_close(logps_of(reference_model, tiny_ref), logps_of(load_causal_lm(other), tiny_ref))


def test_full_weights_train_from_the_merged_adapter(tiny_ref: ModelRef, adapter: ModelRef) -> None:
    model, reference = load_policy_and_reference(adapter, tiny_ref, None)
    assert not isinstance(model, PeftModel)
    assert len(trainable_parameters(model)) == len(list(model.parameters()))
    torch.testing.assert_close(logps_of(model, tiny_ref), logps_of(load_causal_lm(adapter), tiny_ref))
    with reference() as reference_model:
        torch.testing.assert_close(logps_of(reference_model, tiny_ref), logps_of(load_causal_lm(tiny_ref), tiny_ref))


def test_a_saved_adapter_is_found_wherever_its_base_has_gone(
    store: ArtifactStore, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole store moves. The adapter names its base by a location in the store, not by a path of this machine."""
    shutil.copytree(tiny_model, store.root / "models/base")
    location = ModelRef(base="models/base", adapter="models/run-1")
    model = load_causal_lm(resolve(store, ModelRef(base=location.base)), Lora(rank=4), trainable=True)
    perturb(model)
    with store.folder("models/run-1") as folder:
        save_policy(model, load_tokenizer(str(tiny_model)), folder, location.base)
    expected = logps_of(load_causal_lm(resolve(store, location)), ModelRef(base=str(tiny_model)))

    moved = ArtifactStore(tmp_path / "elsewhere")
    store.root.rename(moved.root)
    written = [path.read_bytes() for path in (moved.root / "models/run-1").iterdir()]
    assert not any(str(tmp_path).encode() in content for content in written)
    again = load_causal_lm(resolve(moved, location))
    torch.testing.assert_close(logps_of(again, ModelRef(base=str(tiny_model))), expected)
    monkeypatch.chdir(moved.root)
    plain = AutoModelForCausalLM.from_pretrained("models/run-1").eval()
    torch.testing.assert_close(logps_of(plain, ModelRef(base=str(tiny_model))), expected, atol=1e-5, rtol=1e-5)
    assert json.loads((moved.root / "models/run-1/base.json").read_text())["location"] == "models/base"


def test_a_response_ends_by_whatever_the_model_says_it_ends_by(tiny_model: Path, tmp_path: Path) -> None:
    """Llama 3 ends with any of three tokens, of which its template and its tokenizer name only one."""
    shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((tmp_path / "model/generation_config.json").read_text())
    (tmp_path / "model/generation_config.json").write_text(
        json.dumps(config | {"eos_token_id": [0, 7], "temperature": 0.6})
    )
    ref = ModelRef(base=str(tmp_path / "model"))
    for lora in (Lora(rank=2), None):
        model, tokenizer = load_causal_lm(ref, lora, trainable=True), load_tokenizer(ref)
        assert Sampler(model, ChatEncoder(tokenizer, 64), 8, 1.0, 0, "sample").sampling.stop_ids == {0, 2, 7}
    save_policy(model, tokenizer, tmp_path / "out")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (saved.eos_token_id, saved.pad_token_id) == ([0, 2, 7], 2)
    assert (
        saved.temperature == 0.6
    )  # without do_sample: many published models say so, transformers saves no such change


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
    model, _ = load_policy_and_reference(adapter, tiny_ref, Lora(rank=4))
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "again")
    assert adapter.adapter is not None
    before = load_file(Path(adapter.adapter) / "adapter_model.safetensors")
    after = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert digest_folder(Path(adapter.adapter)) == digest_folder(tmp_path / "again")


@pytest.mark.parametrize("lora", [Lora(rank=6, alpha=32), Lora(rank=8, alpha=64), Lora(rank=4, alpha=8)])
def test_an_adapter_goes_on_at_the_rank_and_alpha_that_are_asked_for(
    lora: Lora, tiny_ref: ModelRef, adapter: ModelRef, tmp_path: Path
) -> None:
    expected = logps_of(load_causal_lm(adapter), tiny_ref)
    model = load_causal_lm(adapter, lora, trainable=True)
    torch.testing.assert_close(logps_of(model, tiny_ref), expected, atol=1e-5, rtol=1e-5)
    completion_outputs(model, packed_of(tiny_ref)).logps.sum().backward()
    # The new ranks learn too: the columns of B have gradients, and those of A get gradients once B is not 0.
    assert all(p.grad.norm(dim=0).min() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    save_policy(model, load_tokenizer(tiny_ref), tmp_path / "wider")
    config = PeftConfig.from_pretrained(tmp_path / "wider")
    assert (config.r, config.lora_alpha) == (lora.rank, lora.alpha)
    again = ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "wider"))
    torch.testing.assert_close(logps_of(load_causal_lm(again), tiny_ref), expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_that_would_lose_by_it_does_not_change_its_rank(tiny_ref: ModelRef, adapter: ModelRef) -> None:
    assert adapter.adapter is not None
    with pytest.raises(InvalidInput, match="policy has rank 4; rank 2 cannot hold what it has learned"):
        load_policy_and_reference(adapter, tiny_ref, Lora(rank=2))
    config = Path(adapter.adapter) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_rslora": True}))
    with pytest.raises(InvalidInput, match="parts of their own, so its rank 4 and alpha 32 cannot become 8 and 32"):
        load_causal_lm(adapter, Lora(rank=8), trainable=True)


def test_adapters_of_experts_come_back(tiny_model: Path, tmp_path: Path) -> None:
    """Their weights have three dimensions and special names, and one adapter is nested in another."""
    config = MixtralConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "experts")
    ref = ModelRef(base=str(tmp_path / "experts"))
    model = load_causal_lm(ref, Lora(rank=2), trainable=True)
    perturb(model)
    save_policy(model, load_tokenizer(ref), tmp_path / "policy")
    assert any(
        ".experts.base_layer.lora_A" in name for name in load_file(tmp_path / "policy/adapter_model.safetensors")
    )
    policy = ModelRef(base=ref.base, adapter=str(tmp_path / "policy"))
    expected = logps_of(model, ref)
    torch.testing.assert_close(logps_of(load_causal_lm(policy), ref), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InvalidInput, match="ranks or parts of their own, so its rank 2"):
        load_causal_lm(policy, Lora(rank=3), trainable=True)
    _, reference = load_policy_and_reference(policy, policy, Lora(rank=2))
    with reference() as reference_model:
        torch.testing.assert_close(logps_of(reference_model, ref), expected)


# ---- where models are, and what they lack ----------------------------------------------------------------------------


def test_locations_resolve_in_the_store_and_names_stay_names(store: ArtifactStore) -> None:
    with store.folder("models/base") as staging:
        (staging / "config.json").write_text("{}")
    resolved = resolve(store, ModelRef(base="models/base", adapter="models/base"))
    assert resolved.base == resolved.adapter == str(store.root / "models/base")
    assert resolve(store, ModelRef(base="someone/some-model")).base == "someone/some-model"
    with pytest.raises(ModelUnavailable, match="models/run-9"):
        resolve(store, ModelRef(base="models/base", adapter="models/run-9"))


@pytest.mark.parametrize(
    "name",
    ["http://127.0.0.1:9/x", "file:x", "//host", "/etc", "../x", "x/..", "a/b/c", "beside", "beside/x", "a b", ""],
)
def test_what_is_neither_in_the_store_nor_a_name_of_the_hub_reaches_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Libraries would also read URLs, and folders that happen to be in the service's working folder."""
    (tmp_path / "beside" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    confined = ArtifactStore(tmp_path / "store", [])
    (tmp_path / "store" / "models").mkdir(parents=True)
    with pytest.raises(ModelUnavailable) as refused:
        resolve(confined, ModelRef(base=name))
    assert str(tmp_path) not in str(refused.value)


def test_an_adapter_of_the_hub_is_fetched_with_all_that_it_was_trained_with(
    store: ArtifactStore, tiny_ref: ModelRef, adapter: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adapter.adapter is not None
    on_hub = Path(adapter.adapter)
    (on_hub / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    (on_hub / "optimizer.pt").write_bytes(b"large")

    def fetch(name: str, allow_patterns: list[str]) -> str:
        if name != "someone/some-adapter":
            raise FileNotFoundError(f"{name} is not on the hub")
        cached = tmp_path / "cached"
        cached.mkdir()
        for file in on_hub.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, cached)
        return str(cached)

    monkeypatch.setattr("trainer.models.loading.snapshot_download", fetch)
    resolved = resolve(store, ModelRef(base=tiny_ref.base, adapter="someone/some-adapter"))
    assert load_tokenizer(resolved).decode(ChatEncoder(load_tokenizer(resolved)).prompt(user("Hi"))) == "[Hi]"
    torch.testing.assert_close(
        logps_of(load_causal_lm(resolved), tiny_ref), logps_of(load_causal_lm(adapter), tiny_ref)
    )
    assert not (tmp_path / "cached/optimizer.pt").exists()
    with pytest.raises(ModelUnavailable, match="someone/none cannot be loaded: someone/none is not on the hub"):
        resolve(store, ModelRef(base=tiny_ref.base, adapter="someone/none"))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (ViTConfig(), r"\(vit\) is not a language model"),
        (
            MusicgenConfig(text_encoder=T5Config(), audio_encoder=EncodecConfig(), decoder=MusicgenDecoderConfig()),
            "cannot be loaded: Multiple valid text configs",
        ),
    ],
    ids=["pictures", "music"],
)
def test_a_model_of_something_else_is_refused(
    tiny_model: Path, tmp_path: Path, config: PreTrainedConfig, says: str
) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config.save_pretrained(tmp_path)
    for load in (load_tokenizer, lambda name: working_dtype("auto", name)):
        with pytest.raises(ModelUnavailable, match=says):
            load(str(tmp_path))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hidden_size": "big"}, "'hidden_size': TypeError: Field 'hidden_size' expected int, got str"),
        ({"num_attention_heads": 7}, "hidden size .96. is not a multiple of the number of attention"),
        ({"num_attention_heads": 0}, "modulo by zero"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_configuration_that_cannot_be_is_refused_with_the_reason(
    tiny_model: Path, tmp_path: Path, wrong: dict[str, object], says: str
) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | wrong))
    with pytest.raises(ModelUnavailable, match=rf"cannot be loaded: .*{says}"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_template_or_padding_is_completed(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    completed = load_tokenizer(str(tmp_path))
    assert completed.pad_token == completed.eos_token
    rendered = completed.apply_chat_template(list(user("Hi")), add_generation_prompt=True, tokenize=False)
    assert rendered == "User:\nHi<|im_end|>\nAssistant:\n"
    assert len(notes_on(completed)) == 1


def test_the_plain_template_begins_as_the_tokenizer_begins_a_text(tiny_model: Path, tmp_path: Path) -> None:
    """Gemma predicts almost nothing without its first token, and two of them would confuse it as well."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = None
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)]
    )
    tokenizer.save_pretrained(tmp_path)
    completed = load_tokenizer(str(tmp_path))
    assert completed("Hi")["input_ids"][0] == bos
    prompt = ChatEncoder(completed).prompt(user("Hi"))
    assert completed.decode(prompt) == "<|im_start|>User:\nHi<|im_end|>\nAssistant:\n"
    assert prompt.count(bos) == 1
    assert len(notes_on(completed)) == 1


def test_the_tokenizer_knows_how_much_the_model_reads(tiny_model: Path) -> None:
    assert ChatEncoder(load_tokenizer(str(tiny_model)), 1024).max_length == 512


def test_an_adapter_brings_the_template_it_was_trained_with(
    tiny_ref: ModelRef, adapter: ModelRef, tmp_path: Path
) -> None:
    """Most chat adapters are made for base models that have no template."""
    assert adapter.adapter is not None
    (Path(adapter.adapter) / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    assert load_tokenizer(adapter).decode(ChatEncoder(load_tokenizer(adapter)).prompt(user("Hi"))) == "[Hi]"
    shutil.copytree(adapter.adapter, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    bare = load_tokenizer(ModelRef(base=tiny_ref.base, adapter=str(tmp_path / "bare")))
    assert bare.chat_template == load_tokenizer(tiny_ref).chat_template


def test_an_adapter_whose_tokenizer_has_no_template_speaks_by_its_bases(
    tiny_ref: ModelRef, adapter: ModelRef, tmp_path: Path
) -> None:
    """Most training programs save the tokenizer with the adapter, and some save it without its template."""
    assert adapter.adapter is not None
    (Path(adapter.adapter) / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(adapter.adapter).chat_template is None
    completed = load_tokenizer(adapter)
    assert completed.name_or_path == adapter.adapter
    assert completed.chat_template == load_tokenizer(tiny_ref).chat_template
    assert notes_on(completed) == ()

    # The base has no template either, or no tokenizer at all.
    for missing in ("chat_template.jinja", "tokenizer.json"):
        bare = tmp_path / f"without-{missing}"
        shutil.copytree(tiny_ref.base, bare)
        (bare / missing).unlink()
        assert notes_on(load_tokenizer(ModelRef(base=str(bare), adapter=adapter.adapter)))
