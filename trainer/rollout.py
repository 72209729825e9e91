"""Sampling responses: each prompt is read once for its k samples, rows that end stop costing, every sample repeatable.

The loop is visible on purpose: prefill, expand the cache to k rows a prompt, then token by token. Tokens are drawn from
softmax(logits / temperature) over the whole vocabulary, no top-k or top-p: training assumes the policy's own samples.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from app.errors import InvalidInput
from app.specs import PromptRow
from trainer.algorithms.logprobs import token_logps
from trainer.data import ChatEncoder, TokenSequence, by_length, chunks, collate, length_batches
from trainer.modeling import trunk_of, vocabulary_logits

COMPACT_AT = 0.75  # rows are dropped from the batch once at most this share of them still runs
CACHE_BLOCK = 64  # positions the cache grows by
TICK_TOKENS = 8  # tokens between two heartbeats


Tick = Callable[[], None]
"""Called every second or so in long work: a heartbeat, and the place where a cancelled run ends by an exception."""


def no_tick() -> None:
    """For work that nobody watches."""


class Sampling(NamedTuple):
    """How tokens are drawn. A row ends when it draws one of `stop_ids`, or by length."""

    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]


class Sample(NamedTuple):
    """One sampled response.

    Attributes:
        tokens: ids in order, the stop token included where there is one.
        logps: log-prob of each token under the distribution it was drawn from (logits / temperature).
        finished: whether it ended by a stop token; False when it was cut by length.
    """

    tokens: list[int]
    logps: list[float]
    finished: bool

    @property
    def body(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.finished else self.tokens


class Response(NamedTuple):
    """A sample as a person reads it: `sample_index` counts those of one prompt; `text` is without the stop token."""

    row: PromptRow
    sample_index: int
    seed: int
    prompt: list[int]
    sample: Sample
    text: str

    @property
    def sequence(self) -> TokenSequence:
        return TokenSequence(self.prompt, self.sample.tokens)


class Sampler:
    """Samples responses to prompts from a model, at one temperature, from seeds derived from the run's."""

    def __init__(
        self,
        model: Any,
        encoder: ChatEncoder,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        tick: Tick = no_tick,
    ) -> None:
        self.model, self.encoder, self.seed, self.tick = model, encoder, seed, tick
        stops = frozenset({encoder.end_id, encoder.tokenizer.eos_token_id})
        self.sampling = Sampling(max_new_tokens, temperature, stops)
        if encoder.max_length <= max_new_tokens:
            raise InvalidInput(
                f"{max_new_tokens} new tokens leave no room for a prompt within {encoder.max_length} tokens.",
                "Ask for fewer new tokens.",
            )

    def respond(
        self,
        wanted: Sequence[tuple[PromptRow, Sequence[int]]],
        batch_size: int,
        order: torch.Generator | None = None,
        ramp: bool = False,
    ) -> Iterator[list[Response]]:
        """The samples with the wanted indices of each prompt, in batches of at most `batch_size` sequences.

        Prompts of similar length go together, in an order that `order` decides; without it the shortest go first. With
        `ramp` the first batch is cut in four, so that somebody who waits for the first responses waits seconds.
        """
        room = self.encoder.max_length - self.sampling.max_new_tokens  # a longer prompt loses its beginning
        prompts = [self.encoder.prompt(row.messages)[-room:] for row, _ in wanted]
        most = max((len(indices) for _, indices in wanted), default=1)
        for members in _batches([len(prompt) for prompt in prompts], max(1, batch_size // most), order, ramp):
            seeds = [[sample_seed(self.seed, wanted[i][0].id, k) for k in wanted[i][1]] for i in members]
            pad_id = self.encoder.tokenizer.pad_token_id
            samples = generate(self.model, [prompts[i] for i in members], seeds, self.sampling, pad_id, self.tick)
            yield [
                Response(wanted[i][0], k, seed, list(prompts[i]), sample, self._text(sample))
                for i, row_seeds, row_samples in zip(members, seeds, samples, strict=True)
                for k, seed, sample in zip(wanted[i][1], row_seeds, row_samples, strict=True)
            ]

    def _text(self, sample: Sample) -> str:
        return self.encoder.tokenizer.decode(sample.body, skip_special_tokens=True)


def sample_seed(seed: int, prompt_id: int, index: int) -> int:
    """A seed (63 bits) for one sample of one prompt in a run: the same wherever and whenever it is sampled."""
    digest = hashlib.blake2b(f"{seed}/{prompt_id}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _batches(lengths: Sequence[int], size: int, order: torch.Generator | None, ramp: bool) -> Iterator[Sequence[int]]:
    batches: list[Sequence[int]] = list(
        chunks(by_length(lengths), size) if order is None else length_batches(lengths, size, order)
    )
    if ramp and batches:
        yield from chunks(batches[0], -(-len(batches[0]) // 4))
        batches = batches[1:]
    yield from batches


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    pad_id: int,
    tick: Tick = no_tick,
) -> list[list[Sample]]:
    """Samples `len(seeds[i])` responses to prompt i. One batch: the caller keeps it within memory.

    A sample depends on its prompt, its seed and the model only, up to float rounding: not on what else is in the batch,
    nor on padding. Token t is the inverse of the cumulative distribution at the t-th uniform number of the row's own
    generator.
    """
    # 1. Read every prompt once; left padding, so that all rows go on at the same column.
    batch = collate([TokenSequence(prompt) for prompt in prompts], pad_id, side="left")
    trunk, device = trunk_of(model), next(model.parameters()).device
    cache = _cache_of(trunk)
    valid_mask = batch.valid_mask.to(device)
    positions = batch.position_ids.to(device)
    padded = not bool(valid_mask.all())  # without padding, attention needs no mask and takes its fastest kernel
    hidden = _advance(trunk, cache, batch.input_ids.to(device), valid_mask if padded else None, positions)

    # 2. One row for each sample: the prompt's keys and values are copied, not computed again.
    owners = [i for i, row_seeds in enumerate(seeds) for _ in row_seeds]
    owner_index = torch.tensor(owners, device=device)
    cache.batch_select_indices(owner_index)
    logits = vocabulary_logits(model, hidden)[owner_index]
    valid_mask, position = valid_mask[owner_index], positions[owner_index, -1:]
    uniforms = torch.stack([_uniforms(seed, sampling.max_new_tokens) for row in seeds for seed in row]).to(device)
    stops = torch.tensor(sorted(sampling.stop_ids), device=device)

    rows = torch.arange(len(owners), device=device)  # the sample that each row of the running batch belongs to
    running = torch.ones(len(owners), dtype=torch.bool, device=device)
    tokens: list[list[int]] = [[] for _ in owners]
    logps: list[list[float]] = [[] for _ in owners]
    finished = [False] * len(owners)

    for t in range(sampling.max_new_tokens):
        if t % TICK_TOKENS == 0:
            tick()

        # 3. Draw a token for each row.
        drawn = _inverse_cdf(logits / sampling.temperature, uniforms[rows, t])
        drawn_logps = token_logps(logits, drawn, sampling.temperature)
        ends = torch.isin(drawn, stops)
        for row, token, logp, end, was_running in zip(
            *(x.tolist() for x in (rows, drawn, drawn_logps, ends, running)), strict=True
        ):
            if was_running:
                tokens[row].append(token)
                logps[row].append(logp)
                finished[row] = end
        running &= ~ends

        # 4. Drop rows that have ended, once there are enough of them to pay for the copy.
        alive = int(running.sum())
        if alive == 0 or t + 1 == sampling.max_new_tokens:
            break
        if alive <= COMPACT_AT * len(rows):
            keep = running.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, running, drawn, valid_mask, position = (x[keep] for x in (rows, running, drawn, valid_mask, position))

        # 5. One position further.
        position = position + 1
        valid_mask = torch.nn.functional.pad(valid_mask, (0, 1), value=True)
        hidden = _advance(trunk, cache, drawn[:, None], valid_mask if padded else None, position)
        logits = vocabulary_logits(model, hidden)

    samples = iter(Sample(*fields) for fields in zip(tokens, logps, finished, strict=True))
    return [[next(samples) for _ in row_seeds] for row_seeds in seeds]


def _advance(trunk: Any, cache: Any, input_ids: Tensor, valid_mask: Tensor | None, positions: Tensor) -> Tensor:
    """Last hidden states (B, H) after reading input_ids (B, T) behind what the cache holds."""
    output = trunk(
        input_ids=input_ids,
        attention_mask=None if valid_mask is None else valid_mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]


def _uniforms(seed: int, count: int) -> Tensor:
    """Uniform numbers (count,) in [0, 1) that depend on the seed alone."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _inverse_cdf(scaled_logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens (B,) of logits (B, V): the first whose cumulative probability exceeds the uniform number (B,)."""
    weights = torch.exp(scaled_logits.float() - scaled_logits.amax(-1, keepdim=True))
    # fp64: over a vocabulary of 100,000 the tail of an fp32 sum would lose tokens of probability below 6e-8.
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    threshold = uniforms * cumulative[:, -1]
    drawn = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0]
    return drawn.clamp(max=scaled_logits.shape[-1] - 1)


def _cache_of(trunk: Any) -> Any:
    """The model's own kind of cache, with room to append in where it holds the whole sequence."""
    cache = DynamicCache(config=trunk.config)
    cache.layers = [AppendingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = AppendingLayer
    return cache


class AppendingLayer(DynamicLayer):
    """A cache layer that writes new positions into spare room instead of copying all old ones at every token.

    `keys` and `values` are views (B, heads, T, D) of the part that is filled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        filled = self.get_seq_length()
        end = filled + key_states.shape[-2]
        if self._rooms is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._rooms = key_states.new_empty(0), value_states.new_empty(0)
        if filled == 0 or end > self._rooms[0].shape[-2]:
            self._rooms = _grown(self._rooms[0], key_states, filled), _grown(self._rooms[1], value_states, filled)
        self._rooms[0][:, :, filled:end], self._rooms[1][:, :, filled:end] = key_states, value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._rooms is not None:
            filled = self.get_seq_length()
            self._rooms = self._rooms[0][indices], self._rooms[1][indices]
            self._show(filled)

    def _show(self, filled: int) -> None:
        assert self._rooms is not None
        self.keys, self.values = self._rooms[0][:, :, :filled], self._rooms[1][:, :, :filled]


def _grown(room: Tensor, new: Tensor, filled: int) -> Tensor:
    """A room (B, heads, filled + new + spare, D) for states like `new`, holding what was filled of the old one."""
    grown = new.new_empty(*new.shape[:2], filled + new.shape[-2] + CACHE_BLOCK, new.shape[-1])
    if filled:
        grown[:, :, :filled] = room[:, :, :filled]
    return grown
