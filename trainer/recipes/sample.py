"""Sample k responses per prompt from each model, and hand each batch on as soon as it is done."""

import gc
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import gather_object

from app.artifacts import ArtifactStore
from app.errors import InvalidInput
from app.rows import PromptRow
from app.settings import Settings
from app.specs import Generation, ModelRef, SampleSpec, Server
from trainer.batching.chat import ChatEncoder
from trainer.batching.data import read_prompts
from trainer.evaluation.figures import require_numbers, reward_heads
from trainer.models.loading import load_causal_lm, load_tokenizer, notes_on, resolve, sampling_dtype
from trainer.models.sizes import sizes_for
from trainer.processes import accelerator
from trainer.reporting import Reporter
from trainer.sampling.responses import Requests, Response, Sampler, Tick, cut_prompts
from trainer.sampling.serving import Answer, ServedModel
from trainer.speed.memory import PeakMemory
from trainer.speed.precision import name_of


class Completion(NamedTuple):
    """One sampled response, as it is stored.

    Attributes:
        sample_index: index among the prompt's samples: m * k + j for sample j of model m.
        finish_reason: `eos` if the model ended its turn, `length` if the response was cut.
        n_tokens: number of sampled tokens, including the end-of-turn token.
        seed: reproduces this response, given the model, the prompt and `sampling`.
        sampling: temperature and max_new_tokens. If the spec names reward models, also `reward`: their locations
            (`models`) and the output of each of their heads (`heads`).
    """

    prompt_id: int
    sample_index: int
    text: str
    finish_reason: Literal["eos", "length"]
    n_tokens: int
    seed: int
    sampling: dict[str, Any]

    @classmethod
    def of(cls, response: Response, generation: Generation) -> "Completion":
        return cls(
            response.row.id,
            response.sample_index,
            response.text,
            "eos" if response.sample.finished else "length",
            len(response.sample.tokens),
            response.seed,
            _sampling(generation),
        )

    @classmethod
    def of_server(cls, answer: Answer, generation: Generation) -> "Completion":
        return cls(
            answer.row.id,
            answer.sample_index,
            answer.text,
            "eos" if answer.finished else "length",
            answer.n_tokens,
            answer.seed,
            _sampling(generation),
        )


def _sampling(generation: Generation) -> dict[str, Any]:
    return {"temperature": generation.temperature, "max_new_tokens": generation.max_new_tokens}


AddScores = Callable[[Sequence[Response] | Sequence[Answer], list[Completion]], list[Completion]]


def _unscored(_responses: Sequence[Response] | Sequence[Answer], completions: list[Completion]) -> list[Completion]:
    return completions


def _scorer(spec: SampleSpec, store: ArtifactStore, tick: Tick) -> AddScores:
    """Return a function that adds the reward models' outputs to completions.

    The reward models stay in memory beside the model that is sampled.
    """
    if not spec.reward_models:
        return _unscored
    heads = reward_heads([store.resolve(location) for location in spec.reward_models], spec.max_length, tick)

    def score(responses: Sequence[Response] | Sequence[Answer], completions: list[Completion]) -> list[Completion]:
        rewards = heads(responses)
        require_numbers(responses, rewards.sum(1))
        said = [{"models": list(spec.reward_models), "heads": row} for row in rewards.tolist()]
        return [
            completion._replace(sampling=completion.sampling | {"reward": reward})
            for completion, reward in zip(completions, said, strict=True)
        ]

    return score


OnCompletions = Callable[[Sequence[Completion]], None]


class SampleResult(NamedTuple):
    """Counts of responses, finished responses and tokens sampled in this run, without those of earlier attempts."""

    samples: int
    finished: int
    tokens: int
    seconds: float
    precision: tuple[str, ...]
    """The precision of each model that was sampled here. To repeat the run, put it into the spec instead of `auto`."""
    sizes: dict[str, int]
    """`batch_size` (sequences generated together); empty if only servers sampled. See `RewardResult`."""
    peak_memory: int
    """As in `RewardResult`."""
    notes: tuple[str, ...] = ()
    """Sentences that help to interpret the samples, without repetitions."""


def sample(
    spec: SampleSpec,
    store: ArtifactStore,
    reporter: Reporter,
    on_completions: OnCompletions,
    done: Collection[tuple[int, int]] = (),
) -> SampleResult:
    """Sample responses and call `on_completions` with each batch as soon as it is done; the first batches are small.

    Models are sampled in turn, with one model in memory at a time. Sample j of model m has the index m * k + j. A
    sample depends only on the model, the prompt and the seed, so an interrupted run ends with the same samples. With
    several processes, each answers its share of the prompts, and the main process hands on all samples, its own first.

    Args:
        done: (prompt id, sample index) of responses to skip.

    Raises:
        InvalidInput: the prompts file is invalid or empty, there are more servers than models, or a server rejects a
            prompt.
        ModelUnavailable: a model does not load, or its server does not have it.
        Unavailable: a server does not answer.
        RunCancelled: completions that were handed on stay.
    """
    started, memory = time.monotonic(), PeakMemory()
    if len(spec.servers) > len(spec.models):
        raise InvalidInput(
            f"There are {len(spec.servers)} servers for {len(spec.models)} models.",
            "Name at most one server per model.",
        )
    rows, k = read_prompts(store.resolve(spec.prompts)), spec.generation.samples_per_prompt
    asked = [rows_for(spec, m, rows) for m in range(len(spec.models))]
    plan = [missing(asked[m], range(m * k, (m + 1) * k), done) for m in range(len(spec.models))]
    total = sum(len(each) for each in asked) * k
    before = total - sum(len(indices) for wanted in plan for _, indices in wanted)
    samples, finished, tokens = 0, 0, 0

    def tick() -> None:
        reporter.progress(before + samples, total, "sampling")

    def hand_on(completions: Sequence[Completion]) -> None:
        nonlocal samples, finished, tokens
        on_completions(completions)
        samples += len(completions)
        finished += sum(completion.finish_reason == "eos" for completion in completions)
        new = sum(completion.n_tokens for completion in completions)
        tokens += new
        reporter.worked(new)

    tick()
    key = Settings().sampling_key
    sources = [
        (_served(server, key) if server else _Local(resolve(store, model), spec.generation, rows), wanted)
        for model, server, wanted in zip_longest(spec.models, spec.servers, plan)
        if wanted or not server  # also load finished models, so that a resumed run reports all precisions and notes
    ]
    local = [source for source, _ in sources if isinstance(source, _Local)]
    sizes = {"batch_size": batch_size_for(spec.generation, local)} if local else {}
    dealer = accelerator()
    score = _scorer(spec, store, tick) if any(plan) else _unscored
    for source, wanted in sources:
        if isinstance(source, ServedModel):
            batches = _from_server(source, wanted if dealer.is_main_process else [], spec, score, tick)
        else:
            share = wanted[dealer.process_index :: dealer.num_processes]
            batches = _from_model(source, share, sizes["batch_size"], spec, score, tick)
        of_others: list[Completion] = []
        for completions in batches:
            if dealer.is_main_process:
                hand_on(completions)
            else:
                of_others += completions
            tick()
        for completions in gather_object([of_others])[1:]:
            if dealer.is_main_process:
                hand_on(completions)
    seconds = time.monotonic() - started
    if samples:
        reporter.metrics(
            0, {"samples": samples, "share_finished": finished / samples, "tokens_per_second": tokens / seconds}
        )
    notes = dict.fromkeys(note for source in local for note in source.notes) | dict.fromkeys(memory.notes)
    precisions = tuple(name_of(source.dtype) for source in local)
    return SampleResult(samples, finished, tokens, seconds, precisions, sizes, memory.peak(), tuple(notes))


def rows_for(spec: SampleSpec, number: int, rows: Sequence[PromptRow]) -> Sequence[PromptRow]:
    """Return the prompts that model `number` of the spec answers: all prompts, or only held-out ones."""
    if number < len(spec.models) - spec.heldout_models:
        return rows
    return [row for row in rows if row.slices.get("split") == "heldout"]


def missing(rows: Sequence[PromptRow], indices: Sequence[int], done: Collection[tuple[int, int]]) -> Requests:
    """Return each prompt with its sample indices that are not in `done`, without prompts that are complete."""
    known = set(done)
    wanted = [(row, [index for index in indices if (row.id, index) not in known]) for row in rows]
    return [(row, left) for row, left in wanted if left]


class _Local:
    """A model that is sampled here. It checks tokenizer and prompts when created, so that errors show before sampling.

    Attributes:
        dtype: dtype of its matrix products.
        notes: sentences that help to interpret its samples.
    """

    def __init__(self, ref: ModelRef, generation: Generation, rows: Sequence[PromptRow]) -> None:
        tokenizer = load_tokenizer(ref)
        self.ref, self.encoder = ref, ChatEncoder(tokenizer)
        cut = cut_prompts(rows, self.encoder, generation.max_new_tokens)
        self.dtype = sampling_dtype(generation.precision, ref)
        self.notes = (*notes_on(tokenizer), *cut)


def batch_size_for(generation: Generation, models: Sequence[_Local]) -> int:
    """Return the number of sequences to generate together. It is the same for all models, because the spec has one."""
    return generation.batch_size or min(sizes_for(model.ref, model.dtype).batch_size for model in models)


def _served(server: Server, key: str | None) -> ServedModel:
    served = ServedModel(server, key)
    served.check()
    return served


def _from_model(
    local: _Local, wanted: Requests, batch_size: int, spec: SampleSpec, score: AddScores, tick: Tick
) -> Iterator[list[Completion]]:
    """Sample from a local model; it is in memory only while this iterator runs. Load nothing if `wanted` is empty."""
    if not wanted:
        return
    model = load_causal_lm(local.ref, dtype=local.dtype)
    generation = spec.generation
    sampler = Sampler(
        model, local.encoder, generation.max_new_tokens, generation.temperature, spec.seed, spec.kind, tick
    )
    order = torch.Generator().manual_seed(spec.seed)  # random, not by length: the first samples show all kinds
    for responses in sampler.respond(wanted, batch_size, order):
        yield score(responses, [Completion.of(response, generation) for response in responses])
    del model, sampler
    gc.collect()  # modules form reference cycles; loading the next model needs the memory


def _from_server(
    server: ServedModel, wanted: Requests, spec: SampleSpec, score: AddScores, tick: Tick
) -> Iterator[list[Completion]]:
    order = torch.Generator().manual_seed(spec.seed)
    for answers in server.respond(wanted, spec.generation, spec.seed, order, tick):
        yield score(answers, [Completion.of_server(answer, spec.generation) for answer in answers])


def write_completions(path: Path) -> OnCompletions:
    """Return a callback that appends completions to a JSONL file."""

    def append(completions: Sequence[Completion]) -> None:
        with path.open("a", encoding="utf-8") as handle:
            handle.writelines(json.dumps(completion._asdict()) + "\n" for completion in completions)

    return append


def train(spec: SampleSpec, store: ArtifactStore, reporter: Reporter, folder: Path) -> SampleResult:
    """Run `sample` with the signature that all recipes share. Write completions to `completions.jsonl` in `folder`."""
    return sample(spec, store, reporter, write_completions(folder / "completions.jsonl"))
