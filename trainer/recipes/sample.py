"""Samples k responses to each prompt, and hands them on as they are done."""

import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from app.artifacts import ArtifactStore
from app.specs import Generation, PromptRow, SampleSpec
from trainer.data import ChatEncoder, read_prompts
from trainer.modeling import load_causal_lm, load_tokenizer, resolve
from trainer.reporting import Reporter
from trainer.rollout import Response, Sampler


class Completion(NamedTuple):
    """One sampled response, as it is stored.

    Attributes:
        sample_index: which of the prompt's samples this is, from 0.
        finish_reason: `eos` when the model ended its turn, `length` when it was cut.
        n_tokens: tokens sampled, the end-of-turn token included.
        seed: with the model, the prompt and `sampling` it makes this response again.
        sampling: temperature and max_new_tokens.
    """

    prompt_id: int
    sample_index: int
    text: str
    finish_reason: Literal["eos", "length"]
    n_tokens: int
    seed: int
    sampling: dict[str, float]

    @classmethod
    def of(cls, response: Response, generation: Generation) -> "Completion":
        return cls(
            response.row.id,
            response.sample_index,
            response.text,
            "eos" if response.sample.finished else "length",
            len(response.sample.tokens),
            response.seed,
            {"temperature": generation.temperature, "max_new_tokens": generation.max_new_tokens},
        )


OnCompletions = Callable[[Sequence[Completion]], None]


class SampleResult(NamedTuple):
    """How many responses were sampled (those done before not counted), of how many tokens, in how long."""

    samples: int
    finished: int
    tokens: int
    seconds: float


def sample(
    spec: SampleSpec,
    store: ArtifactStore,
    reporter: Reporter,
    on_completions: OnCompletions,
    done: Collection[tuple[int, int]] = (),
) -> SampleResult:
    """Calls `on_completions` with each batch as it is done, small ones first; skips `done`: (prompt id, sample index).

    A sample depends on the model, its prompt and its seed, so a run that was interrupted ends with the same samples.

    Raises:
        InvalidInput: the prompts file is wrong or empty.
        ModelUnavailable: the model does not load.
        RunCancelled: what was handed on stays.
    """
    started = time.monotonic()
    rows, generation = read_prompts(store.resolve(spec.prompts)), spec.generation
    wanted = missing(rows, generation.samples_per_prompt, done)
    total = len(rows) * generation.samples_per_prompt
    left = sum(len(indices) for _, indices in wanted)
    reporter.progress(total - left, total, "sampling")
    if not wanted:
        return SampleResult(0, 0, 0, time.monotonic() - started)

    ref = resolve(store, spec.model)
    tokenizer, model = load_tokenizer(ref), load_causal_lm(ref)
    encoder = ChatEncoder(tokenizer, context_length(model))
    samples, finished, tokens = 0, 0, 0

    def tick() -> None:
        reporter.progress(total - left + samples, total, "sampling")

    sampler = Sampler(model, encoder, generation.max_new_tokens, generation.temperature, spec.seed, tick)
    order = torch.Generator().manual_seed(spec.seed)  # not by length: whoever labels the first ones sees all kinds
    for responses in sampler.respond(wanted, generation.batch_size, order, ramp=True):
        on_completions([Completion.of(response, generation) for response in responses])
        samples += len(responses)
        finished += sum(response.sample.finished for response in responses)
        tokens += sum(len(response.sample.tokens) for response in responses)
        tick()
    seconds = time.monotonic() - started
    reporter.metrics(
        0, {"samples": samples, "share_finished": finished / samples, "tokens_per_second": tokens / seconds}
    )
    return SampleResult(samples, finished, tokens, seconds)


def missing(
    rows: Sequence[PromptRow], samples_per_prompt: int, done: Collection[tuple[int, int]]
) -> list[tuple[PromptRow, list[int]]]:
    """The sample indices of each prompt that are not in `done`; prompts with none left are left out."""
    known = set(done)
    wanted = [(row, [k for k in range(samples_per_prompt) if (row.id, k) not in known]) for row in rows]
    return [(row, indices) for row, indices in wanted if indices]


def context_length(model: Any) -> int:
    """The most tokens a model reads, as its config says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", 4096)


def write_completions(path: Path) -> OnCompletions:
    """A callback that appends completions to a JSONL file."""

    def append(completions: Sequence[Completion]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(completion._asdict()) + "\n" for completion in completions)

    return append


def train(spec: SampleSpec, store: ArtifactStore, reporter: Reporter, folder: Path) -> SampleResult:
    """`sample` into `completions.jsonl` of a folder: the signature all recipes share."""
    return sample(spec, store, reporter, write_completions(folder / "completions.jsonl"))
