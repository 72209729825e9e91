"""From rows to token ids: snapshots and prompts are read, chats encoded, rows batched by length.

How sequences are laid out for a forward pass is `trainer.packing`; only prompts that wait for generation are padded
here, on the left. Masks are True = valid.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jinja2 import TemplateError
from pydantic import BaseModel, ValidationError
from torch import Tensor

from app.artifacts import read_content
from app.errors import InvalidInput, ModelUnavailable
from app.specs import DemonstrationRow, PairRow, PromptRow, ThumbRow

MIN_PAIRS = 20

# Some templates tell the date. A run that is repeated, or goes on, on another day must read the same tokens: for them
# it is always the same day. A macro of the clock's name hides the clock.
_DAY = date(2025, 1, 1)
_DIRECTIVES = ("%a", "%A", "%b", "%B", "%d", "%-d", "%e", "%H", "%I", "%j", "%m", "%-m", "%M", "%p", "%S", "%y", "%Y")
STOPPED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f"|replace('{directive}', '{_DAY.strftime(directive)}')" for directive in _DIRECTIVES)
    + " }}{%- endmacro %}\n"
)

Row = TypeVar("Row", bound=BaseModel)
Response = TypeVar("Response", ThumbRow, DemonstrationRow)


def _read_rows(path: Path, model: type[Row]) -> list[Row]:
    rows, number = [], 0
    try:
        for line in read_content(path).decode("utf-8-sig").split("\n"):
            number += 1
            if line.strip():
                rows.append(model.model_validate_json(line))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise InvalidInput(f"Line {number} of {path.name}: {where}: {first['msg']}.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path.name} is not UTF-8: {error}.") from error
    return rows


def read_pairs(path: Path) -> list[PairRow]:
    """Rows of a snapshot (JSONL or JSONL.gz). Raises InvalidInput naming the line that is wrong."""
    return _read_rows(path, PairRow)


def read_thumbs(path: Path) -> list[ThumbRow]:
    """Rows of a thumbs file (JSONL or JSONL.gz). Raises InvalidInput naming the line that is wrong."""
    return _read_rows(path, ThumbRow)


def read_demonstrations(path: Path) -> list[DemonstrationRow]:
    """Rows of a demonstrations file (JSONL or JSONL.gz). Raises InvalidInput naming the line that is wrong."""
    return _read_rows(path, DemonstrationRow)


def read_prompts(path: Path) -> list[PromptRow]:
    """Rows of a prompts file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is wrong, there is none, or two have one id, by which samples are drawn and kept.
    """
    rows = _read_rows(path, PromptRow)
    if not rows:
        raise InvalidInput(f"{path.name} holds no prompts.", "Choose at least one prompt.")
    id_, times = Counter(row.id for row in rows).most_common(1)[0]
    if times > 1:
        raise InvalidInput(
            f"{path.name} holds {times} prompts with the id {id_}.", "Give each prompt an id of its own."
        )
    return rows


def slice_names(slices: dict[str, str]) -> list[str]:
    """The metric slices a row belongs to: `kind=value` each."""
    return [f"{kind}={value}" for kind, value in sorted(slices.items()) if value]


class TokenSequence(NamedTuple):
    """One prompt with one completion, as token ids."""

    prompt: Sequence[int]
    completion: Sequence[int] = ()

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.completion)


class ChatEncoder:
    """Encodes chats with a tokenizer's template.

    The prompt is the rendered chat with the header of the assistant's turn; a finished completion is its text and the
    token that ends the turn, as the model itself would have generated them. A special token's name inside a message or
    a response is text: nobody must be able to end a turn, or to begin one, by writing it.

    Args:
        max_length: the most tokens of a sequence; no more than the model reads, which is also what None means.

    Attributes:
        end_id: the token that ends the assistant's turn.

    Raises:
        ModelUnavailable: the chat template cannot be rendered.
    """

    def __init__(self, tokenizer: Any, max_length: int | None = None) -> None:
        reads = tokenizer.model_max_length
        self.tokenizer, self.max_length = tokenizer, reads if max_length is None else min(max_length, reads)
        self.end_id = end_of_turn_id(tokenizer)
        template = tokenizer.get_chat_template()
        self._template = STOPPED_CLOCK + template if "strftime_now" in template else template
        names = [re.escape(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._special = re.compile("|".join(names) or "(?!)")  # which is nowhere

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the conversation up to where the assistant speaks.

        Raises:
            InvalidInput: it lacks roles or contents, ends with the assistant's turn, or the template refuses it.
        """
        if not messages or any(not {"role", "content"} <= message.keys() for message in messages):
            raise InvalidInput(
                f"{_shown(messages)} lacks a message, or a message its role or content.",
                'Write each as {"role": "user", "content": "..."}.',
            )
        if messages[-1]["role"] == "assistant":
            raise InvalidInput(
                f"{_shown(messages)} ends with the assistant's turn, so it asks for nothing.",
                "Take that turn for the response, or leave it out.",
            )
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                add_generation_prompt=True,
                return_dict=False,
                sanitize_control_tokens=any(self._special.search(text) for m in messages for text in m.values()),
            )
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            raise InvalidInput(
                f"The model's chat template does not accept a conversation: {error}. {_shown(messages)}.",
                "Check the roles and their order.",
            ) from error

    def completion(self, text: str, finished: bool = True) -> list[int]:
        """Token ids of a response, never none; with the end of the turn unless it was cut by length."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*ids, self.end_id] if finished or not ids else list(ids)

    def fit(self, prompt: list[int], completions: Sequence[Sequence[int]]) -> list[TokenSequence] | None:
        """The sequences of one prompt within `max_length`, or None where that would cut a completion.

        The prompt is cut from the left, by the same amount for all its completions, so that they stay comparable.
        """
        room = self.max_length - max(len(completion) for completion in completions)
        if room < 1:
            return None
        return [TokenSequence(prompt[-room:], completion) for completion in completions]

    @property
    def too_long(self) -> str:
        """What is said of rows that do not fit."""
        return f"are longer than {self.max_length} tokens without their prompt"

    @property
    def cut(self) -> str:
        """What is said of rows whose prompt does not fit."""
        return f"lost the beginning of their prompt, to stay within {self.max_length} tokens"


def _shown(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation so that it is found among others: its roles, and how it ends."""
    roles = ", ".join(message.get("role", "no role") for message in messages) or "no message"
    text = " ".join(messages[-1].get("content", "").split()) if messages else ""
    return f"The conversation ({roles}) that ends with “{text if len(text) <= 60 else f'...{text[-60:]}'}”"


def end_of_turn_id(tokenizer: Any) -> int:
    """The token that ends an assistant's turn: the special token the template puts after it, else EOS.

    Raises:
        ModelUnavailable: the template cannot be rendered.
    """
    probe = [{"role": "user", "content": "Plugh"}, {"role": "assistant", "content": "Xyzzy"}]
    try:
        rendered = tokenizer.apply_chat_template(probe, tokenize=False)
    except (TemplateError, KeyError, TypeError, ValueError) as error:
        raise ModelUnavailable(
            f"The chat template of {tokenizer.name_or_path} does not render a question with its answer: {error}.",
            "Mend chat_template.jinja in the model's folder, or remove it: then a plain one is used.",
        ) from error
    tail = tokenizer(rendered.rpartition("Xyzzy")[2], add_special_tokens=False)["input_ids"]
    # Some tokenizers list the end of a turn among their added tokens only, without a role of its own.
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((token for token in tail if token in special), tokenizer.eos_token_id)


class Pair(NamedTuple):
    """A comparison as token ids, oriented by the consensus; `p_chosen` >= 0.5 is how probably chosen is better."""

    chosen: TokenSequence
    rejected: TokenSequence
    p_chosen: float
    row: PairRow

    @property
    def tied(self) -> bool:
        """Whether there is no winner: both are as probably better, or most probably neither is."""
        return self.p_chosen == 0.5 or self.row.p_tie > self.p_chosen - self.row.p_tie / 2

    @property
    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        return self.chosen, self.rejected


class EncodedPairs(NamedTuple):
    """The usable rows of a snapshot, and what was left out and why: other rows, and the beginnings of long prompts."""

    train: list[Pair]
    heldout: list[Pair]
    dropped: tuple[str, ...]


def encode_pairs(rows: Sequence[PairRow], encoder: ChatEncoder, *, close_cut: bool = True) -> EncodedPairs:
    """Encodes a snapshot. Rows that do not fit, do not count (weight 0) or hold one response twice are named, and those
    whose prompt was cut.

    Args:
        close_cut: end the turn of responses that were cut by length too. A reward model reads them as what they are,
            a whole answer that stops; a policy must not learn that it ended, or did not want to end, its turn there.
    """
    pairs: dict[str, list[Pair]] = {"train": [], "heldout": []}
    left_out: dict[str, list[int]] = {}
    for row in rows:
        if row.weight == 0:
            left_out.setdefault("have weight 0", []).append(row.comparison_id)
            continue
        if row.response_a == row.response_b:
            left_out.setdefault("compare a response with itself", []).append(row.comparison_id)
            continue
        completions = [
            encoder.completion(row.response_a, row.finished_a or close_cut),
            encoder.completion(row.response_b, row.finished_b or close_cut),
        ]
        prompt = encoder.prompt(row.messages)
        fitted = encoder.fit(prompt, completions)
        if fitted is None:
            left_out.setdefault(encoder.too_long, []).append(row.comparison_id)
            continue
        a, b = fitted
        if len(a.prompt) < len(prompt):
            left_out.setdefault(encoder.cut, []).append(row.comparison_id)
        chosen, rejected, p = (b, a, row.p_b) if row.p_b >= 0.5 else (a, b, 1 - row.p_b)
        pairs[row.split].append(Pair(chosen, rejected, p, row))
    return EncodedPairs(pairs["train"], pairs["heldout"], describe_left_out(left_out, "comparisons"))


class Thumb(NamedTuple):
    """A response that was liked or not, as token ids."""

    sequence: TokenSequence
    row: ThumbRow


class EncodedThumbs(NamedTuple):
    """The usable rows of a thumbs file, and what was left out, as in `EncodedPairs`."""

    thumbs: list[Thumb]
    dropped: tuple[str, ...]


def encode_thumbs(rows: Sequence[ThumbRow], encoder: ChatEncoder) -> EncodedThumbs:
    """Encodes single responses, each with the end of its turn. Rows that do not fit or do not count are named."""
    fitted, left_out = _fitted(rows, encoder)
    return EncodedThumbs([Thumb(sequence, row) for sequence, row in fitted], describe_left_out(left_out, "thumbs"))


def _fitted(
    rows: Sequence[Response], encoder: ChatEncoder
) -> tuple[list[tuple[TokenSequence, Response]], dict[str, list[int]]]:
    """Rows of one response that count and fit, as token ids; by reason the ids of others and of cut ones."""
    fitted: list[tuple[TokenSequence, Response]] = []
    left_out: dict[str, list[int]] = {}
    for row in rows:
        if row.weight == 0:
            left_out.setdefault("have weight 0", []).append(row.id)
            continue
        prompt = encoder.prompt(row.messages)
        sequences = encoder.fit(prompt, [encoder.completion(row.response)])
        if sequences is None:
            left_out.setdefault(encoder.too_long, []).append(row.id)
            continue
        fitted.append((sequences[0], row))
        if len(sequences[0].prompt) < len(prompt):
            left_out.setdefault(encoder.cut, []).append(row.id)
    return fitted, left_out


class Demonstration(NamedTuple):
    """A conversation with the answer to learn, as token ids."""

    sequence: TokenSequence
    row: DemonstrationRow


class EncodedDemonstrations(NamedTuple):
    """The usable rows of a demonstrations file, and what was left out, as in `EncodedPairs`."""

    train: list[Demonstration]
    heldout: list[Demonstration]
    dropped: tuple[str, ...]


def encode_demonstrations(rows: Sequence[DemonstrationRow], encoder: ChatEncoder) -> EncodedDemonstrations:
    """Encodes demonstrations, each with the end of its turn. Rows that do not fit or teach nothing are named."""
    empty = [row.id for row in rows if row.weight and not row.response.strip()]
    fitted, left_out = _fitted([row for row in rows if not row.weight or row.response.strip()], encoder)
    demonstrations: dict[str, list[Demonstration]] = {"train": [], "heldout": []}
    for sequence, row in fitted:
        demonstrations[row.split].append(Demonstration(sequence, row))
    left_out |= {"have an empty answer": empty} if empty else {}
    return EncodedDemonstrations(**demonstrations, dropped=describe_left_out(left_out, "demonstrations"))


def require_pairs(pairs: Sequence[Pair], what: str, dropped: Sequence[str] = ()) -> None:
    """Raises InvalidInput unless at least `MIN_PAIRS` pairs have a winner: fewer teach nothing that holds elsewhere.

    Args:
        dropped: why others were left out, a sentence each.
    """
    decided = sum(not pair.tied for pair in pairs)
    if decided < MIN_PAIRS:
        raise InvalidInput(
            f"{what} needs at least {MIN_PAIRS} training comparisons with a winner; there are {decided} "
            f"(and {len(pairs) - decided} ties)." + "".join(f" {sentence}." for sentence in dropped),
            "Collect more judgments, or settle the comparisons under review.",
        )


def describe_left_out(left_out: dict[str, list[int]], noun: str) -> tuple[str, ...]:
    """`{reason: ids}` as sentences: `3 comparisons have weight 0: 4, 9, 12`. At most 20 ids are spelled out."""
    return tuple(
        f"{len(ids)} {noun} {reason}: {', '.join(map(str, ids[:20]))}{', ...' if len(ids) > 20 else ''}"
        for reason, ids in left_out.items()
    )


class Prompts(NamedTuple):
    """Prompts that wait for generation, padded on the left so that all go on at the same column. All (B, T).

    Attributes:
        input_ids: token ids, padding included.
        valid_mask: True on tokens of the prompt, False on padding (whatever id padding has).
        position_ids: counted along valid tokens from 0; 0 on padding.
    """

    input_ids: Tensor
    valid_mask: Tensor
    position_ids: Tensor


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """Pads prompts of token ids to the longest."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    valid_mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        input_ids[i, width - len(prompt) :] = torch.as_tensor(prompt)
        valid_mask[i, width - len(prompt) :] = True
    return Prompts(input_ids, valid_mask, (valid_mask.long().cumsum(-1) - 1).clamp(min=0))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Indices of rows, shortest first: for evaluation, where the order does not matter and little shall be padding."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])


def length_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator, window: int = 8
) -> list[list[int]]:
    """Indices of rows in batches of similar length, so that little is padding; shortest first within a batch.

    Rows are shuffled, sorted within windows of `window` batches and the batches shuffled again: an epoch visits every
    row once, in an order that depends on the generator's state only.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * window
    batches = []
    for start in range(0, len(shuffled), span):
        ordered = sorted(shuffled[start : start + span], key=lambda i: lengths[i])
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
