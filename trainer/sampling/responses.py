"""Sampling responses: every prompt is read once for its k samples, and every sample can be made again from its seed."""

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
    """A sample as a person reads it: `sample_index` counts those of one prompt.

    `text` is all that was said but the stop token: a control token in it stands there by its name.
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
    """Samples responses to prompts from a model, at one temperature, from seeds derived from the run's.

    `purpose` says what the samples are for, such as `evaluate` or `ppo`: two purposes never share a sample's seed.

    What makes it fast is tried on this model first: where the log-probs are not those of a plain forward pass, the
    plain way is taken and the log says so.
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
        """The samples with the wanted indices of each prompt; a prompt's come together, as soon as all are done.

        At most `batch_size` sequences are generated together (those of one prompt always are). Prompts of similar
        length go together, in an order that `order` decides; without it the shortest go first. The weights must not
        change before the last sample has come.
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
        # As the model said it, control tokens too: the policy is trained on them, so whoever judges must see them.
        # Cleaning up would take the spaces before punctuation away.
        return self.encoder.tokenizer.decode(sample.body, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def prompt_room(encoder: ChatEncoder, max_new_tokens: int) -> int:
    """How many tokens of a prompt are read, so that `max_new_tokens` more stay within `max_length`.

    Raises:
        InvalidInput: none.
    """
    if encoder.max_length <= max_new_tokens:
        raise InvalidInput(
            f"{max_new_tokens} new tokens leave no room for a prompt within {encoder.max_length} tokens.",
            "Ask for fewer new tokens.",
        )
    return encoder.max_length - max_new_tokens


def cut_prompts(rows: Iterable[PromptRow], encoder: ChatEncoder, max_new_tokens: int) -> tuple[str, ...]:
    """A sentence on the prompts that are too long to be read whole. All are rendered: none fails later.

    Raises:
        InvalidInput: the chat template refuses one, or new tokens leave no room for any.
    """
    room = prompt_room(encoder, max_new_tokens)
    cut = sorted(row.id for row in rows if encoder.prompt_within(row.messages, room)[1])
    reason = f"lost a part, to stay within {encoder.max_length} tokens with {max_new_tokens} new ones"
    return describe_left_out({reason: cut} if cut else {}, "prompts")


def sample_seed(seed: int, purpose: str, prompt_id: int, index: int) -> int:
    """Return the seed (63 bits) of one sample of one prompt in a run, the same wherever and whenever it is sampled.

    The purpose is hashed too: PPO must not draw again the answers that people labeled, whatever seeds the runs have.
    """
    digest = hashlib.blake2b(f"{purpose}/{seed}/{prompt_id}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
