import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GraniteConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedConfig,
)

from app.errors import ModelUnavailable
from app.specs import Lora, ModelRef
from tests.trainer.conftest import byte_tokenizer, trainable_parameters, user
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.packing import Packed, pack
from trainer.models.loading import load_tokenizer, seed_everything
from trainer.models.policy import trunk_of
from trainer.reward.model import load_reward_model, new_reward_model, save_reward_model
from trainer.reward.network import head_names, merge_adapters, shares_of

TEXTS = {"Say hi": "Hi", "Name a colour, please": "Green is one of them", "Why?": ""}


def sequences(tokenizer: object) -> list[TokenSequence]:
    encoder = ChatEncoder(tokenizer, max_length=256)
    return [TokenSequence(encoder.prompt(user(q)), encoder.completion(a)) for q, a in TEXTS.items()]


def packed_texts(ref: ModelRef, share: bool = True) -> Packed:
    tokenizer = load_tokenizer(ref)
    return pack(sequences(tokenizer), tokenizer.pad_token_id, share)


def perturb(model: torch.nn.Module, seed: int = 0) -> None:
    """Change trainable parameters, as training might."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_rewards_are_read_at_the_last_valid_token_where_padding_is_eos(tiny_ref: ModelRef, lora: Lora | None) -> None:
    tokenizer = load_tokenizer(tiny_ref)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    seed_everything(0)
    model = new_reward_model(tiny_ref, lora, ("reward", "style"))
    perturb(model)
    with torch.no_grad():
        expected = []
        for prompt, completion in sequences(tokenizer):
            hidden = trunk_of(model.classifier)(input_ids=torch.tensor([[*prompt, *completion]])).last_hidden_state
            expected.append(hidden[0, -1] @ model.classifier.score.weight.T)
        for share in (False, True):
            rewards = model(packed_texts(tiny_ref, share))
            torch.testing.assert_close(rewards, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_each_new_head_has_the_variance_and_the_seed_asked_for(tiny_ref: ModelRef) -> None:
    drawn = []
    for seed in (1, 1, 2):
        seed_everything(seed)
        drawn.append(new_reward_model(tiny_ref, None, head_names(16, ())).classifier.score.weight.detach())
    assert torch.equal(drawn[0], drawn[1])
    weights = torch.cat(drawn[1:], -1)
    # Within 5 standard errors of a variance, sqrt(2 / n): 0.026 for all 3072 weights, 0.1 for the 192 of one head.
    assert weights.var().item() == pytest.approx(1 / 97, rel=0.13)
    assert weights.var(-1).tolist() == pytest.approx([1 / 97] * 16, rel=0.5)
    assert torch.corrcoef(weights).fill_diagonal_(0).abs().max() < 0.5


def test_heads_are_named_after_what_they_score(tiny_ref: ModelRef) -> None:
    assert head_names(1, ()) == ("reward",)
    names = head_names(2, ("factuality", "style"))
    assert names == ("reward/0", "reward/1", "factuality", "style")
    model = new_reward_model(tiny_ref, None, names)
    assert model.heads == names
    assert model.score_heads == [0, 1]
    assert model.score(torch.tensor([[1.0, 3.0, 50.0, 70.0]])).tolist() == [2.0]


def test_a_score_is_the_mean_of_normalised_members_on_the_scale_before(tiny_ref: ModelRef) -> None:
    """One member spreads its rewards eight times as far as the other, so it alone would decide their plain mean."""
    model = new_reward_model(tiny_ref, None, head_names(2, ("style",)))
    factors = shares_of(torch.tensor([4.0, 0.5, 9.0], dtype=torch.double), model.heads)
    d = torch.tensor([3.0, -1.0, 50.0])
    normalised = (3 / 4 - 1 / 0.5) / 2  # the deployed score prefers the other response
    mean_gain = (1 / 4 + 1 / 0.5) / 2
    assert model.score(d) > 0
    assert model.score(d * factors).item() == pytest.approx(normalised / mean_gain)
    alone = new_reward_model(tiny_ref, None, head_names(1, ("style",)))
    assert shares_of(torch.tensor([0.3, 9.0]), alone.heads).tolist()[0] == 1


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
@pytest.mark.parametrize("heads", [("reward",), ("reward/0", "reward/1", "style")])
def test_a_saved_reward_model_scores_alike_in_plain_transformers(
    tiny_ref: ModelRef, tmp_path: Path, lora: Lora | None, heads: tuple[str, ...]
) -> None:
    tokenizer = load_tokenizer(tiny_ref)
    model = new_reward_model(tiny_ref, lora, heads)
    perturb(model)
    with torch.no_grad():
        raw = model(packed_texts(tiny_ref))
        model.normalise(torch.full((len(heads),), 0.75), torch.full((len(heads),), 2.0))
        before = model(packed_texts(tiny_ref))
        torch.testing.assert_close(before, (raw - 0.75) / 2)
        merge_adapters(model)
        save_reward_model(model, tokenizer, tmp_path)
        loaded, saved_tokenizer = load_reward_model(tmp_path)
        assert loaded.heads == heads
        assert loaded.gains.tolist() == [0.5] * len(heads)
        torch.testing.assert_close(loaded(packed_texts(tiny_ref)), before, atol=1e-4, rtol=1e-4)

        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
        assert plain.config.num_labels == len(heads)
        assert tuple(plain.config.id2label[i] for i in range(len(heads))) == heads
        assert saved_tokenizer.pad_token_id != saved_tokenizer.eos_token_id
        offsets = torch.tensor(plain.config.reward_offsets)
        assert offsets.tolist() == [0.375] * len(heads)
        texts = [saved_tokenizer.decode([*s.prompt, *s.completion]) for s in sequences(tokenizer)]
        padded = saved_tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
        scores = plain(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
        torch.testing.assert_close(scores - offsets, before, atol=1e-4, rtol=1e-4)
        for text, rewards in zip(texts, before, strict=True):  # unpadded, one at a time
            alone = saved_tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            torch.testing.assert_close(plain(input_ids=alone).logits[0] - offsets, rewards, atol=1e-4, rtol=1e-4)


SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 260}


@pytest.mark.parametrize(
    "config",
    [
        # Two weights of all experts at once: one adapter is nested in the other.
        MixtralConfig(**SIZES, intermediate_size=16, num_key_value_heads=1, num_local_experts=2),
        # States that are narrower than the layers.
        OPTConfig(**SIZES, word_embed_proj_dim=16, ffn_dim=32, do_layer_norm_before=False, max_position_embeddings=512),
    ],
    ids=["mixtral", "opt"],
)
def test_other_architectures_are_trained_saved_and_read_alike(config: PreTrainedConfig, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    ref = ModelRef(base=str(tmp_path / "base"))
    model = new_reward_model(ref, Lora(rank=4))
    perturb(model)
    with torch.no_grad():
        packed = packed_texts(ref)
        before = model(packed)
        assert before.std() > 1e-2
        save_reward_model(model, load_tokenizer(ref), tmp_path / "adapter")
        merge_adapters(model)
        save_reward_model(model, load_tokenizer(ref), tmp_path / "merged")
        for name in ("adapter", "merged"):
            loaded, _ = load_reward_model(tmp_path / name)
            torch.testing.assert_close(loaded(packed), before, atol=1e-4, rtol=1e-4)


def test_a_tokenizer_with_one_special_token_gets_a_padding_token_of_its_own(tiny_ref: ModelRef, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_ref)
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    model = new_reward_model(tiny_ref, None)
    merge_adapters(model)
    save_reward_model(model, tokenizer, tmp_path)
    loaded, saved = load_reward_model(tmp_path)
    assert saved.pad_token == "<|reward_pad|>"
    assert loaded.classifier.config.pad_token_id == saved.pad_token_id == loaded.classifier.config.vocab_size - 1


def test_a_classifier_of_something_else_is_no_reward_model(tiny_ref: ModelRef, tmp_path: Path) -> None:
    model = new_reward_model(tiny_ref, None, ("negative", "positive"))
    model.classifier.save_pretrained(tmp_path)
    load_tokenizer(tiny_ref).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="2 labels, not a reward model"):
        load_reward_model(tmp_path)


def test_a_policy_with_one_label_is_no_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    """transformers would create a random head with a warning, so every policy would seem to have a score."""
    folder = shutil.copytree(tiny_model, tmp_path / "policy")
    config = json.loads((folder / "config.json").read_text()) | {"num_labels": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelUnavailable, match="policy holds no weights for the head"):
        load_reward_model(folder)


def test_weights_that_are_not_all_there(reward_folder: Path, tmp_path: Path) -> None:
    """transformers fills them with random numbers and a warning."""
    folder = shutil.copytree(reward_folder, tmp_path / "torn")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"torn lack the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        load_reward_model(folder)


def test_a_classifier_that_does_not_read_the_last_token_is_no_reward_model(tiny_ref: ModelRef, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    load_tokenizer(tiny_ref).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=r"\(bert\) has no scalar head that reads the last token"):
        load_reward_model(tmp_path)


def test_an_architecture_without_a_classifier_is_named_before_its_weights_are_read(tmp_path: Path) -> None:
    GraniteConfig(vocab_size=260, hidden_size=32).save_pretrained(tmp_path)  # without weights
    with pytest.raises(ModelUnavailable, match=r"\(granite\) has no scalar head") as caught:
        new_reward_model(ModelRef(base=str(tmp_path)), None)
    assert "sequence classifier" in caught.value.advice
