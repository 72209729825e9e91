"""From rows to token ids: snapshots and prompts are read, rows encoded and batched by length.

How sequences are laid out for a forward pass is `trainer.batching.packing`; only prompts that wait for generation are
padded here, on the left. Masks are True = valid.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from app.artifacts import read_content
from app.domain.consensus import winner
from app.errors import InvalidInput
from app.rows import AnswersRow, DemonstrationRow, PairRow, PromptRow, ThumbRow
from trainer.batching.chat import ChatEncoder, TokenSequence

MIN_PAIRS = 20

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
    """Rows of a snapshot (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is wrong; two rows have one id; a prompt is in both splits, so that what is held out would
            be trained on; or a row's preference and p_b are for different sides.
    """
    rows = _read_rows(path, PairRow)
    _require_own_ids(path, "comparisons", (row.comparison_id for row in rows))
    _require_one_split(path, "comparison", ((row.comparison_id, row) for row in rows))
    for row in rows:
        if row.preference * (row.p_b - 0.5) < 0:
            sides = ("B", "A") if row.preference > 0 else ("A", "B")
            raise InvalidInput(
                f"{path.name}: comparison {row.comparison_id} has the preference {row.preference:g}, which is for "
                f"{sides[0]}, and p_b {row.p_b:g}, which is for {sides[1]}.",
                "A preference above 0 and a p_b above 0.5 are for B. Correct one of the two.",
            )
    return rows


def read_thumbs(path: Path) -> list[ThumbRow]:
    """Rows of a thumbs file (JSONL or JSONL.gz). Raises InvalidInput where a line is wrong or two have one id."""
    rows = _read_rows(path, ThumbRow)
    _require_own_ids(path, "thumbs", (row.id for row in rows))
    return rows


def read_demonstrations(path: Path) -> list[DemonstrationRow]:
    """Rows of a demonstrations file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is wrong, two rows have one id, or a prompt is in both splits.
    """
    rows = _read_rows(path, DemonstrationRow)
    _require_own_ids(path, "demonstrations", (row.id for row in rows))
    _require_one_split(path, "demonstration", ((row.id, row) for row in rows))
    return rows


def read_prompts(path: Path) -> list[PromptRow]:
    """Rows of a prompts file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is wrong, there is none, or two have one id, by which samples are drawn and kept.
    """
    rows = _read_rows(path, PromptRow)
    if not rows:
        raise InvalidInput(f"{path.name} holds no prompts.", "Choose at least one prompt.")
    _require_own_ids(path, "prompts", (row.id for row in rows))
    return rows


def read_answers(path: Path) -> dict[int, tuple[str, ...]]:
    """By prompt: the texts of a file of AnswersRow.

    Raises:
        InvalidInput: a line is wrong.
    """
    return {row.prompt_id: row.texts for row in _read_rows(path, AnswersRow)}


def _require_own_ids(path: Path, noun: str, ids: Iterable[int]) -> None:
    """What is computed once and kept, and what a report names, is told apart by ids."""
    for id_, times in Counter(ids).most_common(1):
        if times > 1:
            raise InvalidInput(
                f"{path.name} holds {times} {noun} with the id {id_}.",
                f"Give each of the {noun} an id of its own.",
            )


def _require_one_split(path: Path, noun: str, rows: Iterable[tuple[int, PairRow | DemonstrationRow]]) -> None:
    first: dict[str, tuple[int, str]] = {}
    for id_, row in rows:
        other, split = first.setdefault(json.dumps(row.messages, sort_keys=True), (id_, row.split))
        if split != row.split:
            raise InvalidInput(
                f"{path.name} has one prompt in both splits: {noun} {other} is {split}, {noun} {id_} is {row.split}.",
                f"Put every {noun} of a prompt into the same split.",
            )


def slice_names(slices: dict[str, str]) -> list[str]:
    """The metric slices a row belongs to: `kind=value` each."""
    return [f"{kind}={value}" for kind, value in sorted(slices.items()) if value]


class Pair(NamedTuple):
    """A comparison as token ids, oriented by the consensus; `p_chosen` >= 0.5 is how probably chosen is better."""

    chosen: TokenSequence
    rejected: TokenSequence
    p_chosen: float
    row: PairRow

    @property
    def tied(self) -> bool:
        """Whether there is no winner: both are as probably better, or most probably neither is."""
        return winner(self.row.p_b, self.row.p_tie) == 0

    @property
    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        return self.chosen, self.rejected


class EncodedPairs(NamedTuple):
    """The usable rows of a snapshot, and what was left out and why: other rows, and parts of long prompts."""

    train: list[Pair]
    heldout: list[Pair]
    dropped: tuple[str, ...]


def encode_pairs(rows: Sequence[PairRow], encoder: ChatEncoder, *, close_cut: bool = True) -> EncodedPairs:
    """Encodes a snapshot. Rows that do not fit, do not count (weight 0) or hold one response twice are named, and those
    whose prompt was cut.

    Args:
        close_cut: end the turn of responses that were cut by length too. A reward model reads them as what they are,
            a whole answer that stops; a policy must not learn that it ended, or did not want to end, its turn there.
            Nor does it learn from those that won against one that ended: it would learn to be cut.
    """
    pairs: dict[str, list[Pair]] = {"train": [], "heldout": []}
    left_out: dict[str, list[int]] = {}
    for row in rows:
        if row.weight == 0:
            left_out.setdefault("have weight 0", []).append(row.comparison_id)
            continue
        if not close_cut and won_although_cut(row):
            left_out.setdefault(WON_ALTHOUGH_CUT, []).append(row.comparison_id)
            continue
        completions = [
            encoder.completion(row.response_a, row.finished_a or close_cut),
            encoder.completion(row.response_b, row.finished_b or close_cut),
        ]
        # Some tokenizers tell neither case nor accents apart.
        if row.response_a == row.response_b or completions[0] == completions[1]:
            left_out.setdefault("compare a response with itself", []).append(row.comparison_id)
            continue
        fitted = encoder.fit(row.messages, completions)
        if fitted is None:
            left_out.setdefault(encoder.too_long, []).append(row.comparison_id)
            continue
        a, b = fitted.sequences
        if fitted.cut:
            left_out.setdefault(encoder.cut, []).append(row.comparison_id)
        chosen, rejected, p = (b, a, row.p_b) if row.p_b >= 0.5 else (a, b, 1 - row.p_b)
        pairs[row.split].append(Pair(chosen, rejected, p, row))
    return EncodedPairs(pairs["train"], pairs["heldout"], describe_left_out(left_out, "comparisons"))


WON_ALTHOUGH_CUT = "prefer an answer that was cut by length to one that ended"


def won_although_cut(row: PairRow) -> bool:
    """Whether the winner was cut by length and the loser ended by itself."""
    won, lost = (row.finished_b, row.finished_a) if row.p_b > 0.5 else (row.finished_a, row.finished_b)
    return row.p_b != 0.5 and lost and not won


def weights_of(pairs: Sequence[Pair]) -> list[float]:
    """How much each pair counts: its row's weight, for a pair of a ranking of k answers times 2 / k.

    Together the k (k - 1) / 2 pairs of a ranking count k - 1 times: so many comparisons put k answers in order.
    """
    answers: dict[tuple[int | None, int], set[tuple[int, ...]]] = {}
    for pair in pairs:
        key = pair.row.ranking, pair.row.prompt_id
        answers.setdefault(key, set()).update(tuple(sequence.completion) for sequence in pair.sequences)
    return [
        pair.row.weight * (1 if pair.row.ranking is None else 2 / len(answers[pair.row.ranking, pair.row.prompt_id]))
        for pair in pairs
    ]


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
        one = encoder.fit(row.messages, [encoder.completion(row.response)])
        if one is None:
            left_out.setdefault(encoder.too_long, []).append(row.id)
            continue
        fitted.append((one.sequences[0], row))
        if one.cut:
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
