"""A policy's own answers with scores of reward models, sampled in parts that are stored for resumed runs."""

import gc
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from app.artifacts import ArtifactStore
from app.specs import ModelRef
from trainer.algorithms.kl import k1, k3
from trainer.batching.chat import ChatEncoder, TokenSequence
from trainer.batching.data import chunks
from trainer.evaluation.figures import Heads, Looked, RewardHeads, require_numbers, response_logps
from trainer.models.loading import load_causal_lm, load_tokenizer, sampling_dtype
from trainer.processes import accelerator, the_main_processes
from trainer.sampling.generation import Tick
from trainer.sampling.responses import Requests, Sampler

PART = 256  # answers to sample, score and store together


class Answer(NamedTuple):
    """A sampled answer.

    Attributes:
        prompt_id: id of the prompt's row in the prompts file.
        prompt, tokens: token ids of the prompt and of the answer, including the end-of-turn token if there is one.
        logps: log-prob of each token under the policy that sampled it.
        finished: False if the answer was cut by length.
        plain: False if the answer contains a control token: encoding its text again would give other tokens.
        heads: the output of each scoring head of each member of the reward models.
        beyond, ceiling: see `trainer.evaluation.figures.Looked`; None if no reward model can tell.
    """

    prompt_id: int
    text: str
    prompt: list[int]
    tokens: list[int]
    logps: list[float]
    finished: bool
    plain: bool
    heads: list[float]
    beyond: float | None = None
    ceiling: float | None = None

    @property
    def choosable(self) -> bool:
        """Whether it may be used for training: it is finished and not empty, and its text encodes to its tokens."""
        return self.finished and self.plain and bool(self.text.strip())


class Answers(NamedTuple):
    """N answers; the answers to one prompt are adjacent.

    Attributes:
        kl, kl_k3: (N,) nats per response from the sampling policy to the starting policy, by the two estimators.
    """

    items: list[Answer]
    kl: Tensor
    kl_k3: Tensor

    @property
    def heads(self) -> Tensor:
        """(N, H)."""
        return torch.tensor([answer.heads for answer in self.items])

    @property
    def looked(self) -> Looked:
        """Figures from the reward models for all N answers: uncertainty and ceiling."""
        pairs = [(answer.beyond, answer.ceiling) for answer in self.items]
        columns = torch.tensor([[math.nan if value is None else value for value in pair] for pair in pairs])
        return Looked(self.heads, *columns.T)

    @property
    def finished(self) -> Tensor:
        """(N,) bool."""
        return torch.tensor([answer.finished for answer in self.items])

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens."""
        return torch.tensor([float(len(answer.tokens)) for answer in self.items])

    @property
    def by_prompt(self) -> dict[int, list[int]]:
        """Indices of each prompt's answers, by prompt id."""
        places: dict[int, list[int]] = {}
        for i, answer in enumerate(self.items):
            places.setdefault(answer.prompt_id, []).append(i)
        return places


def answers_of(
    policy: ModelRef,
    start: ModelRef,
    wanted: Requests,
    heads: Callable[[], Heads],
    store: ArtifactStore,
    name: str,
    *,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
    max_length: int,
    seed: int,
    purpose: str,
    tick: Callable[[int], None],
    on_stored: Callable[[], None] = lambda: None,
) -> Answers:
    """Sample answers of a policy, score them and measure the policy's KL to `start`. Locations must be resolved.

    Parts that `store` already holds under `name` are read instead of sampled. Every process does its share; all
    processes get all answers in the same order. The sampling policy and the reward models are freed before `start` is
    loaded.

    Args:
        heads: loads the reward models; called only if answers have to be scored.
        tick: called with the number of answers so far.
        on_stored: called when a part is stored; a killed run resumes after the stored parts.

    Raises:
        TrainingDiverged: a score is NaN or infinite.
        RunCancelled: raised by the tick; stored parts stay.
    """
    largest = max(len(indices) for _, indices in wanted)
    parts = list(chunks(wanted, max(1, PART // largest)))
    items: list[Answer] = []
    sampler: Sampler | None = None
    scorer: Heads | None = None

    def say() -> None:
        tick(len(items))

    for number, part in enumerate(parts):
        location = f"{name}/{number:05d}.json"
        stored = the_main_processes(lambda location=location: _read(store, location))  # type: ignore[misc]
        if stored is None:
            if sampler is None or scorer is None:
                sampler = _sampler(policy, max_new_tokens, temperature, max_length, seed, purpose, say)
                scorer = heads()
            found = _sampled(sampler, scorer, part, batch_size)
            if accelerator().is_main_process:
                with store.file(location) as path:
                    path.write_text(json.dumps(found))
            on_stored()
        else:
            found = [Answer(*fields) for fields in stored]
        items += found
        say()
    del sampler, scorer
    gc.collect()  # modules form reference cycles; loading the starting policy needs the memory
    if policy == start:
        return Answers(items, torch.zeros(len(items)), torch.zeros(len(items)))
    location = f"{name}/kl.json"
    kl = the_main_processes(lambda: _read(store, location))
    if kl is None:
        kl = _kl(items, start, temperature, say)
        if accelerator().is_main_process:
            with store.file(location) as path:
                path.write_text(json.dumps(kl))
    return Answers(items, *torch.tensor(kl).T)


def _read(store: ArtifactStore, location: str) -> Any:
    return json.loads(store.resolve(location).read_text()) if store.exists(location) else None


def _sampler(
    policy: ModelRef, max_new_tokens: int, temperature: float, max_length: int, seed: int, purpose: str, tick: Tick
) -> Sampler:
    model = load_causal_lm(policy, dtype=sampling_dtype("auto", policy))
    encoder = ChatEncoder(load_tokenizer(policy), max_length)
    return Sampler(model, encoder, max_new_tokens, temperature, seed, purpose, tick)


def _sampled(sampler: Sampler, heads: Heads, part: Requests, batch_size: int) -> list[Answer]:
    """Return the answers to the prompts of `part`, in its order."""
    dealer = accelerator()
    mine = part[dealer.process_index :: dealer.num_processes]
    responses = [response for batch in sampler.respond(mine, batch_size) for response in batch]
    looked = Looked.unknown(torch.zeros(0, 1))
    if responses:
        looked = heads.look(responses) if isinstance(heads, RewardHeads) else Looked.unknown(heads(responses))
    require_numbers(responses, looked.heads.sum(1))
    control = set(sampler.encoder.tokenizer.all_special_ids)
    found = {
        (response.row.id, response.sample_index): Answer(
            response.row.id,
            response.text,
            list(response.prompt),
            list(response.sample.tokens),
            list(response.sample.logps),
            response.sample.finished,
            control.isdisjoint(response.sample.body),
            said,
            *(None if math.isnan(value) else value for value in (beyond, ceiling)),
        )
        for response, said, beyond, ceiling in zip(responses, *(column.tolist() for column in looked), strict=True)
    }
    everyones = {key: answer for share in gather_object([found]) for key, answer in share.items()}
    return [everyones[row.id, index] for row, indices in part for index in indices]


def _kl(items: Sequence[Answer], start: ModelRef, temperature: float, tick: Tick) -> list[tuple[float, float]]:
    """Return k1 and k3 of each answer, summed over its tokens: nats per response."""
    dealer = accelerator()
    mine = items[dealer.process_index :: dealer.num_processes]
    model = load_causal_lm(start, dtype=sampling_dtype("auto", start))
    sequences = [TokenSequence(answer.prompt, answer.tokens) for answer in mine]
    pad_id = load_tokenizer(start).pad_token_id
    references = response_logps(model, sequences, temperature, pad_id, tick)
    pairs = [(torch.tensor(answer.logps), base) for answer, base in zip(mine, references, strict=True)]
    found = [(float(k1(logps, base).sum()), float(k3(logps, base).sum())) for logps, base in pairs]
    shares = gather_object([found])
    return [shares[i % len(shares)][i // len(shares)] for i in range(len(items))]
