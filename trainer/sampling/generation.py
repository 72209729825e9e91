"""Generation: each prompt is read once for all its samples, and finished rows are reused for waiting prompts.

Tokens are drawn from softmax(logits / temperature) over the whole vocabulary, without top-k or top-p, because training
assumes samples from the policy itself.
"""

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.errors import ModelUnavailable
from trainer.algorithms.logprobs import token_logps
from trainer.batching.data import left_padded
from trainer.models.policy import FAILURES, trunk_of, vocabulary_logits
from trainer.reporting import TrainingDiverged
from trainer.sampling.decoding import PackedLinears, draw, is_roomy, new_cache
from trainer.speed.memory import is_out_of_memory
from trainer.speed.precision import autocast, computes_in

log = logging.getLogger(__name__)

COMPACT_AT = 0.75  # without waiting prompts, drop finished rows once at most this share of the rows still runs
REFILL_AT = 0.125  # reuse free rows once they are this share of the batch: reading few prompts at a time is slow
TICK_TOKENS = 8  # tokens between two heartbeats
TOLERANCE = 1e-3  # nats per token in fp32; a different order of summation makes a difference of 1e-5
UNRELATED = 0.2  # nats per token: more than rounding can explain, apart from the rounding of the logits themselves

Tick = Callable[[], None]
"""A heartbeat, called about once a second during long work. If the run was cancelled, it raises an exception."""


def no_tick() -> None:
    """Do nothing: the default heartbeat."""


class Sampling(NamedTuple):
    """How tokens are drawn. A row ends when it draws one of `stop_ids`, or by length."""

    max_new_tokens: int
    temperature: float
    stop_ids: frozenset[int]


class Sample(NamedTuple):
    """One sampled response.

    Attributes:
        tokens: token ids in order, including the stop token if there is one.
        logps: log-prob of each token under the distribution it was drawn from (logits / temperature).
        finished: whether it ended with a stop token; False if it was cut by length.
    """

    tokens: list[int]
    logps: list[float]
    finished: bool

    @property
    def body(self) -> list[int]:
        """The tokens without the stop token."""
        return self.tokens[:-1] if self.finished else self.tokens


class Ways(NamedTuple):
    """The shortcuts that generation may use.

    Attributes:
        refill: finished rows are reused for waiting prompts while other rows continue.
        packed: matrix products use packed copies of the weights.
        together: prompts are read in one batch, padded on the left. Recurrent layers may process the padding as text.
    """

    refill: bool = False
    packed: bool = False
    together: bool = True


PLAINEST = Ways(together=False)


def best_ways(model: Any) -> Ways:
    """Return the fastest ways in which this model still gives the log-probs of a plain forward pass.

    They are tested on a few short prompts, and failures are logged.

    Raises:
        ModelUnavailable: the model does not continue its prompts correctly in any of these ways.
    """
    tolerance = TOLERANCE
    if computes_in(trunk_of(model)) is not torch.float32:
        tolerance = max(TOLERANCE, 3 * _plainest_error(model))  # rounding alone can exceed TOLERANCE
    for ways in (Ways(refill=True, packed=True), Ways(refill=True), Ways()):
        try:
            error = _largest_error(model, ways)
        except FAILURES as failure:  # for example an operator that this build of torch lacks
            if is_out_of_memory(failure):  # not caused by the shortcut
                raise
            log.warning("Generation with %s fails (%s); it goes on without.", ways, failure)
            continue
        if error <= tolerance:
            return ways
        log.warning(
            "Log-probs with %s differ by up to %.2g from a plain pass; generation goes on without.", ways, error
        )
    _plainest_error(model)
    return PLAINEST


def _plainest_error(model: Any) -> float:
    """Return `_largest_error` without shortcuts, which is due to rounding; raise ModelUnavailable if it is larger."""
    reason: Any = None
    try:
        error = _largest_error(model, PLAINEST)
        if error > UNRELATED + _rounding(model):
            reason = f"log-probs differ by up to {error:.2g} from a plain pass"
    except FAILURES as failure:
        if is_out_of_memory(failure):
            raise
        reason = repr(failure)
    if reason is not None:
        raise ModelUnavailable(
            f"A model of the architecture {trunk_of(model).config.model_type} cannot be sampled here: it does not go "
            f"on with what it has read ({reason}).",
            "Choose another model, or sample it through a server (PREFLOOP_SAMPLING_URL).",
        )
    return error


def _largest_error(model: Any, ways: Ways) -> float:
    """Return the largest difference between log-probs from sampling and from a forward pass without a cache."""
    vocabulary = model.config.get_text_config().vocab_size
    prompts = [[(7 * i + 3) % vocabulary for i in range(length)] for length in (9, 4, 6, 11)]
    seeds = [[2 * i, 2 * i + 1] for i in range(len(prompts))]
    sampling = Sampling(6, 1.0, frozenset(range(0, vocabulary, 2)))  # rows end early, so that rows are reused
    errors = [torch.zeros(1)]
    for done in generate(model, prompts, seeds, sampling, 0, 4, ways=ways):
        for prompt, sample in ((prompts[number], sample) for number, samples in done for sample in samples):
            errors.append((torch.tensor(sample.logps) - plain_logps(model, prompt, sample.tokens)).abs())
    return float(torch.cat(errors).nan_to_num(nan=torch.inf).max())


def _rounding(model: Any) -> float:
    """Return how far two passes may differ because each rounds its logits: two rounding steps at the logits' size.

    In bf16 this is more than one nat for GPT-2, whose logits are about -100.
    """
    largest = _plain_logits(model, [0] * 8).amax(-1).abs().max()  # only likely tokens: masked ones may be -inf
    return 2 * torch.finfo(computes_in(trunk_of(model))).eps * float(largest)


@torch.no_grad()
def plain_logps(model: Any, prompt: Sequence[int], tokens: Sequence[int], temperature: float = 1.0) -> Tensor:
    """Return log-probs of tokens after a prompt from one forward pass without cache, mask or padding, on the CPU."""
    logits = _plain_logits(model, [*prompt, *tokens])[len(prompt) - 1 : -1]
    return token_logps(logits, torch.tensor(tokens, device=logits.device), temperature).cpu()


@torch.no_grad()
def _plain_logits(model: Any, ids: list[int]) -> Tensor:
    """Return the logits (T, V) of a sequence."""
    trunk, device = trunk_of(model), next(model.parameters()).device
    with autocast(trunk):
        output = trunk(input_ids=torch.tensor([ids], device=device), use_cache=False)
    return vocabulary_logits(model, output.last_hidden_state[0])


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[Sequence[int]],
    sampling: Sampling,
    pad_id: int,
    rows: int,
    tick: Tick = no_tick,
    ways: Ways = Ways(),
) -> Iterator[list[tuple[int, list[Sample]]]]:
    """Sample `len(seeds[i])` responses to prompt i, about `rows` at once; yield (i, its samples) when they are done.

    The samples of one prompt are generated together, even if they are more than `rows`. The weights must not change
    before the last sample is yielded.

    A sample depends only on its prompt, its seed and the model, up to float rounding. It does not depend on padding or
    on other sequences in the batch. Token t is the inverse of the cumulative distribution at the t-th uniform number of
    the row's own generator.

    Raises:
        TrainingDiverged: the model predicts NaN.
    """
    batch = RunningBatch(model, sampling, pad_id, ways)
    waiting = deque((i, prompts[i], seeds[i]) for i in range(len(prompts)) if seeds[i])
    step = 0
    while waiting or batch.running:
        # 1. Fill free rows with waiting prompts.
        free = batch.free_rows(rows)
        admitted: list[tuple[int, Sequence[int], Sequence[int]]] = []
        while waiting and (len(waiting[0][2]) <= free or not (admitted or batch.running)):
            admitted.append(waiting.popleft())
            free -= len(admitted[-1][2]) if ways.together else free
        if admitted:
            batch.admit(admitted)

        # 2. If no prompt can take finished rows, drop them once there are enough to be worth the copy.
        if not (waiting and batch.refills):
            batch.compact()

        # 3. Draw one more token for each row.
        if batch.running:
            batch.advance()
        step += 1
        if step % TICK_TOKENS == 0 or not batch.running:
            tick()
            if batch.done:
                yield batch.done
                batch.done = []


class RunningBatch:
    """Rows that are decoded together, one token per step, each at its own position in its own sequence.

    All rows end at the cache's last column; the columns before a row's own start are masked. A finished row keeps
    reading its last token until it is reused or dropped. Its values stay finite and are ignored.

    Attributes:
        done: prompts whose samples are all finished, with the samples in the order of their seeds.
    """

    def __init__(self, model: Any, sampling: Sampling, pad_id: int, ways: Ways) -> None:
        self.done: list[tuple[int, list[Sample]]] = []
        self._model, self._trunk, self._sampling, self._pad_id = model, trunk_of(model), sampling, pad_id
        self._device = next(model.parameters()).device
        self._refill, self._linears = ways.refill, PackedLinears(model) if ways.packed else contextlib.nullcontext()
        self._samples: dict[int, list[Sample | None]] = {}  # by prompt, for prompts that are not done
        self._drafts: list[_Draft | None] = []  # the unfinished sample of each row; None for a finished row
        self._cache: Any = None
        empty = torch.empty(0, dtype=torch.long, device=self._device)
        # Each row's next token and its position, the mask of the cache's columns (B, C), and the uniform numbers for
        # the row's draws (B, max_new_tokens).
        self._token, self._position, self._valid_mask, self._uniforms = empty, empty, empty, empty

    @property
    def running(self) -> bool:
        return any(draft is not None for draft in self._drafts)

    @property
    def refills(self) -> bool:
        """Whether finished rows can be reused while others run."""
        return self._refill and self._cache is not None and is_roomy(self._cache)

    def free_rows(self, rows: int) -> int:
        """Return how many rows are available for new samples now, if the batch may have `rows` rows."""
        if not self.running:
            return rows
        free = self._drafts.count(None)
        return free if self.refills and free >= REFILL_AT * len(self._drafts) else 0

    def admit(self, prompts: Sequence[tuple[int, Sequence[int], Sequence[int]]]) -> None:
        """Read prompts, given as (number, tokens, seeds), once each, and draw the first token of each sample."""
        padded = left_padded([tokens for _, tokens, _ in prompts], self._pad_id)
        input_ids, valid_mask, position_ids = (tensor.to(self._device) for tensor in padded)
        cache = new_cache(self._trunk)
        hidden = self._read(cache, input_ids, valid_mask, position_ids)

        # Each sample has its own row; the prompt's keys and values are copied, not computed again.
        drafts = [_Draft(number, place) for number, _, seeds in prompts for place in range(len(seeds))]
        owners = torch.tensor([i for i, (_, _, seeds) in enumerate(prompts) for _ in seeds], device=self._device)
        uniforms = torch.stack([self._uniforms_of(seed) for _, _, seeds in prompts for seed in seeds])
        self._samples |= {number: [None] * len(seeds) for number, _, seeds in prompts}
        position, valid_mask = position_ids[owners, -1:] + 1, valid_mask[owners]
        if self.running:
            rows = [row for row, draft in enumerate(self._drafts) if draft is None][: len(drafts)]
            self._take_over(rows, drafts, cache, owners, position, valid_mask, uniforms)
        else:
            rows = list(range(len(drafts)))
            cache.reorder_cache(owners)
            self._cache, self._drafts, self._token = cache, list(drafts), torch.zeros_like(position)
            self._position, self._valid_mask, self._uniforms = position, valid_mask, uniforms
        with self._linears:
            logits = vocabulary_logits(self._model, hidden)
        self._draw(logits[owners], rows)

    def advance(self) -> None:
        """Read the last token of each row and draw the next one."""
        rows = [row for row, draft in enumerate(self._drafts) if draft is not None]
        index = torch.tensor(rows, device=self._device)
        self._drop_columns(index)
        self._valid_mask = torch.nn.functional.pad(self._valid_mask, (0, 1), value=True)
        hidden = self._read(self._cache, self._token, self._valid_mask, self._position)
        if len(rows) < len(self._drafts):
            hidden = hidden[index]
        self._position[index] += 1  # only for running rows: positions of the others would exceed the model's range
        with self._linears:
            logits = vocabulary_logits(self._model, hidden)
        self._draw(logits, rows)

    def compact(self) -> None:
        """Drop the finished rows if there are enough of them."""
        keep = [row for row, draft in enumerate(self._drafts) if draft is not None]
        if not keep or len(keep) > COMPACT_AT * len(self._drafts):
            return
        index = torch.tensor(keep, device=self._device)
        self._cache.reorder_cache(index)
        self._drafts = [self._drafts[row] for row in keep]
        self._token, self._position = self._token[index], self._position[index]
        self._valid_mask, self._uniforms = self._valid_mask[index], self._uniforms[index]

    def _read(self, cache: Any, input_ids: Tensor, valid_mask: Tensor, positions: Tensor) -> Tensor:
        """Read input_ids (B, T) after the tokens in the cache, and return the last hidden states (B, H)."""
        padded = not bool(valid_mask.all())  # without padding, attention needs no mask and uses its fastest kernel
        with self._linears, autocast(self._trunk):
            output = self._trunk(
                input_ids=input_ids,
                attention_mask=valid_mask.long() if padded else None,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        return output.last_hidden_state[:, -1]

    def _draw(self, logits: Tensor, rows: Sequence[int]) -> None:
        """Draw the next token of these rows from logits (len(rows), V)."""
        index = torch.tensor(rows, device=self._device)
        drafts = [draft for row in rows if (draft := self._drafts[row]) is not None]
        steps = torch.tensor([len(draft.tokens) for draft in drafts], device=self._device)
        tokens, logps = draw(logits, self._uniforms[index, steps], self._sampling.temperature)
        self._token[index, 0] = tokens
        for row, draft, token, logp in zip(rows, drafts, tokens.tolist(), logps.tolist(), strict=True):
            if math.isnan(logp):
                raise TrainingDiverged(
                    "The model that is sampled predicts NaN, no number, for the next token.",
                    "Train it again with a lower learning rate; if it was sampled in bfloat16, try float32.",
                )
            draft.tokens.append(token)
            draft.logps.append(logp)
            finished = token in self._sampling.stop_ids
            if finished or len(draft.tokens) == self._sampling.max_new_tokens:
                self._drafts[row] = None
                self._end(draft, finished)

    def _end(self, draft: "_Draft", finished: bool) -> None:
        samples = self._samples[draft.prompt]
        samples[draft.place] = Sample(draft.tokens, draft.logps, finished)
        ended = [sample for sample in samples if sample is not None]
        if len(ended) == len(samples):
            self.done.append((draft.prompt, ended))
            del self._samples[draft.prompt]

    def _take_over(
        self,
        rows: Sequence[int],
        drafts: Sequence["_Draft"],
        cache: Any,
        owners: Tensor,
        position: Tensor,
        valid_mask: Tensor,
        uniforms: Tensor,
    ) -> None:
        """Reuse finished rows for new samples."""
        index = torch.tensor(rows, device=self._device)
        missing = valid_mask.shape[-1] - self._valid_mask.shape[-1]
        if missing > 0:
            self._valid_mask = torch.nn.functional.pad(self._valid_mask, (missing, 0), value=False)
            for layer in self._cache.layers:
                layer.add_columns(missing)
        for layer, read in zip(self._cache.layers, cache.layers, strict=True):
            layer.take_over(index, read, owners)
        for row, draft in zip(rows, drafts, strict=True):
            self._drafts[row] = draft
        self._valid_mask[index] = torch.nn.functional.pad(
            valid_mask, (self._valid_mask.shape[-1] - valid_mask.shape[-1], 0), value=False
        )
        self._position[index], self._uniforms[index] = position, uniforms

    def _drop_columns(self, running: Tensor) -> None:
        """Drop the columns that come before the start of every running row."""
        if self.refills and (count := int(self._valid_mask[running].any(0).int().argmax())):
            self._valid_mask = self._valid_mask[:, count:]
            for layer in self._cache.layers:
                layer.drop_columns(count)

    def _uniforms_of(self, seed: int) -> Tensor:
        """Return uniform numbers (max_new_tokens,) in [0, 1) that depend only on the seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self._sampling.max_new_tokens, generator=generator, dtype=torch.float64).to(self._device)


class _Draft:
    """An unfinished sample: number `place` of its prompt."""

    def __init__(self, prompt: int, place: int) -> None:
        self.prompt, self.place = prompt, place
        self.tokens: list[int] = []
        self.logps: list[float] = []
