"""Sample responses: each prompt is read once for its k samples, and each sample is reproducible from its seed."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from app.errors import InvalidInput
from app.rows import PromptRow
from trainer.batching.chat import ChatEncoder, TokenSequence, stop_ids
from trainer.batching.data import by_length, describe_left_out, length_batches
from trainer.sampling.generation import Sample, Sampling, Tick, best_ways, generate, no_tick

Requests = Sequence[tuple[PromptRow, Sequence[int]]]
"""Prompts, each with the indices of the samples to draw."""


class Response(NamedTuple):
    """A sample with its text. `sample_index` counts the samples of one prompt.

    `text` is the whole response without the stop token; other control tokens appear in it by name.
    """

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
    """Samples responses to prompts from a model, at one temperature, with seeds derived from the run's seed.

    `purpose` says what the samples are for, such as `evaluate` or `ppo`: two purposes never share a sample's seed.

    The constructor first tests the fast methods on this model. If their log-probs differ from a plain forward pass, the
    plain method is used and the log says so.
    """

    def __init__(
        self,
        model: Any,
        encoder: ChatEncoder,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        purpose: str,
        tick: Tick = no_tick,
    ) -> None:
        self.model, self.encoder, self.tick = model, encoder, tick
        self.seed, self.purpose = seed, purpose
        stops = stop_ids(model, encoder.tokenizer)
        self.sampling = Sampling(max_new_tokens, temperature, frozenset(stops))
        self.room = prompt_room(encoder, max_new_tokens)
        self.ways = best_ways(model)

    def respond(
        self,
        wanted: Sequence[tuple[PromptRow, Sequence[int]]],
        batch_size: int,
        order: torch.Generator | None = None,
    ) -> Iterator[list[Response]]:
        """Yield the samples with the wanted indices of each prompt; a prompt's samples come together when all are done.

        At most `batch_size` sequences are generated together, but the samples of one prompt always are. Prompts of
        similar length are batched together, in random order by the generator `order`, or shortest first without it. The
        weights must not change before the last sample is yielded.
        """
        prompts = [self.encoder.prompt_within(row.messages, self.room)[0] for row, _ in wanted]
        lengths = [len(prompt) for prompt in prompts]
        at_once = max(1, batch_size // max((len(indices) for _, indices in wanted), default=1))
        queue = (
            by_length(lengths)
            if order is None
            else [i for batch in length_batches(lengths, at_once, order) for i in batch]
        )
        seeds = [[sample_seed(self.seed, self.purpose, wanted[i][0].id, k) for k in wanted[i][1]] for i in queue]
        for done in generate(
            self.model,
            [prompts[i] for i in queue],
            seeds,
            self.sampling,
            self.encoder.tokenizer.pad_token_id,
            batch_size,
            self.tick,
            self.ways,
        ):
            yield [
                Response(wanted[i][0], k, seed, list(prompts[i]), sample, self._text(sample))
                for place, samples in done
                for i in [queue[place]]
                for k, seed, sample in zip(wanted[i][1], seeds[place], samples, strict=True)
            ]

    def _text(self, sample: Sample) -> str:
        # Keep control tokens: the policy is trained on them, so the people who judge must see them. Keep spaces too:
        # cleaning up would remove those before punctuation.
        return self.encoder.tokenizer.decode(sample.body, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def prompt_room(encoder: ChatEncoder, max_new_tokens: int) -> int:
    """Return how many tokens a prompt may have so that `max_new_tokens` more stay within `max_length`.

    Raises:
        InvalidInput: no room is left for a prompt.
    """
    if encoder.max_length <= max_new_tokens:
        raise InvalidInput(
            f"{max_new_tokens} new tokens leave no room for a prompt within {encoder.max_length} tokens.",
            "Ask for fewer new tokens.",
        )
    return encoder.max_length - max_new_tokens


def cut_prompts(rows: Iterable[PromptRow], encoder: ChatEncoder, max_new_tokens: int) -> tuple[str, ...]:
    """Return a sentence about the prompts that have to be cut. All prompts are rendered, so that none fails later.

    Raises:
        InvalidInput: the chat template refuses a prompt, or the new tokens leave no room for prompts.
    """
    room = prompt_room(encoder, max_new_tokens)
    cut = sorted(row.id for row in rows if encoder.prompt_within(row.messages, room)[1])
    reason = f"lost a part, to stay within {encoder.max_length} tokens with {max_new_tokens} new ones"
    return describe_left_out({reason: cut} if cut else {}, "prompts")


def sample_seed(seed: int, purpose: str, prompt_id: int, index: int) -> int:
    """Return the seed (63 bits) of one sample of one prompt in a run, the same wherever and whenever it is sampled.

    The hash includes the purpose, so that PPO does not draw the answers that people have labeled, even if two runs have
    the same seed.
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}/{prompt_id}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
