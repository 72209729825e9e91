"""Tiny real models: random weights, and a byte-level tokenizer with a chat template, built once per session."""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from app.artifacts import ArtifactStore
from app.rows import PairRow
from app.specs import ModelRef
from trainer.models.loading import load_tokenizer
from trainer.reward.model import new_reward_model, save_reward_model

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte. `<|im_end|>` is EOS and padding, as in the default model.

    It has one merge, because a GGUF file cannot contain a tokenizer without merges.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "qz"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("q", "z")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def build_model(folder: Path, seed: int = 0) -> None:
    """Save a Llama with random weights and about two hundred thousand parameters."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_short_model(folder: Path, positions: int) -> None:
    """Save a GPT-2 with the tiny model's tokens that has only `positions` positions."""
    tokenizer = byte_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=1,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model."""
    folder = tmp_path_factory.mktemp("tiny-model")
    build_model(folder)
    return folder


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model with the same shape and other weights."""
    folder = tmp_path_factory.mktemp("other-tiny-model")
    build_model(folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def windowed_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny chat model with the same tokens and a sliding window of eight tokens, which no mask changes."""
    folder, tokenizer = tmp_path_factory.mktemp("windowed-model"), byte_tokenizer()
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        sliding_window=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_ref(tiny_model: Path) -> ModelRef:
    return ModelRef(base=str(tiny_model))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def user(text: str) -> tuple[dict[str, str], ...]:
    """Return a conversation of one question."""
    return ({"role": "user", "content": text},)


def write_rows(path: Path, rows: Sequence[BaseModel]) -> Path:
    """Write rows to a JSONL file and return its path."""
    path.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    return path


def separable_pairs(count: int, heldout: int, seed: int = 0) -> list[PairRow]:
    """Return pairs that are easy to learn: the better response speaks of apples, the worse one of rocks.

    The side, the digits around it and its length are random.
    """
    generator = random.Random(seed)

    def response(noun: str) -> str:
        return f"{generator.randint(0, 99)} {noun} {generator.randint(0, 10 ** generator.randint(1, 6))}"

    rows = []
    for number in range(count):
        apple, rock = response("apples"), response("rocks")
        b_is_better = generator.random() < 0.5
        rows.append(
            PairRow(
                comparison_id=number + 1,
                prompt_id=number + 1,
                messages=user(f"Yours {number}?"),
                response_a=rock if b_is_better else apple,
                response_b=apple if b_is_better else rock,
                preference=3 if b_is_better else -3,
                p_b=0.95 if b_is_better else 0.05,
                split="heldout" if number < heldout else "train",
                slices={"domain": "fruit" if number % 2 else "stone"},
            )
        )
    return rows


@pytest.fixture(scope="session")
def separable_snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot of 160 separable pairs, 40 of them held out."""
    return write_rows(tmp_path_factory.mktemp("snapshot") / "snapshot.jsonl", separable_pairs(160, 40))


def build_reward_model(folder: Path, backbone: ModelRef, seed: int = 0, heads: Sequence[str] = ("reward",)) -> Path:
    """Save a reward model with random heads. Each head has another offset; the first is 0.25."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = new_reward_model(backbone, None, heads)
    model.offsets.copy_(0.25 * torch.arange(1, len(heads) + 1))
    folder.mkdir(parents=True)
    save_reward_model(model, load_tokenizer(backbone), folder)
    return folder


@pytest.fixture
def reward_folder(tiny_ref: ModelRef, tmp_path: Path) -> Path:
    """Folder of a reward model with one random head and the offset 0.25."""
    return build_reward_model(tmp_path / "reward", tiny_ref)


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
