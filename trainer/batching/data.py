"""Read snapshots and prompts, encode their rows as token ids and batch them by length.

`trainer.batching.packing` lays sequences out for a forward pass. This module pads only prompts for generation, on the
left. Masks are True for valid tokens.
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
    """Read the rows of a snapshot (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is invalid; two rows have the same id; a prompt is in both splits, so held-out prompts
            would be trained on; or a row's preference and p_b favor different sides.
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
    """Read the rows of a thumbs file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is invalid, or two rows have the same id.
    """
    rows = _read_rows(path, ThumbRow)
    _require_own_ids(path, "thumbs", (row.id for row in rows))
    return rows


def read_demonstrations(path: Path) -> list[DemonstrationRow]:
    """Read the rows of a demonstrations file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is invalid, two rows have the same id, or a prompt is in both splits.
    """
    rows = _read_rows(path, DemonstrationRow)
    _require_own_ids(path, "demonstrations", (row.id for row in rows))
    _require_one_split(path, "demonstration", ((row.id, row) for row in rows))
    return rows


def read_prompts(path: Path) -> list[PromptRow]:
    """Read the rows of a prompts file (JSONL or JSONL.gz).

    Raises:
        InvalidInput: a line is invalid, the file has no rows, or two rows have the same id. Ids must be unique because
            samples are drawn and stored by id.
    """
    rows = _read_rows(path, PromptRow)
    if not rows:
        raise InvalidInput(f"{path.name} holds no prompts.", "Choose at least one prompt.")
    _require_own_ids(path, "prompts", (row.id for row in rows))
    return rows


def read_answers(path: Path) -> dict[int, tuple[str, ...]]:
    """Read a file of AnswersRow and return each prompt's texts by prompt id.

    Raises:
        InvalidInput: a line is invalid.
    """
    return {row.prompt_id: row.texts for row in _read_rows(path, AnswersRow)}


def _require_own_ids(path: Path, noun: str, ids: Iterable[int]) -> None:
    """Raise InvalidInput if two rows have the same id: cached results and reports identify rows by id."""
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
    """Return the metric slices that a row belongs to, as `kind=value`."""
    return [f"{kind}={value}" for kind, value in sorted(slices.items()) if value]


class Pair(NamedTuple):
    """A comparison as token ids, oriented by the consensus; `p_chosen` >= 0.5 is the probability of chosen winning."""

    chosen: TokenSequence
    rejected: TokenSequence
    p_chosen: float
    row: PairRow

    @property
    def tied(self) -> bool:
        """Whether there is no winner: both responses are equally probable winners, or a tie is most probable."""
        return winner(self.row.p_b, self.row.p_tie) == 0

    @property
    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        return self.chosen, self.rejected


class EncodedPairs(NamedTuple):
    """The usable rows of a snapshot, and sentences about left-out rows and cut prompts, with the reasons."""

    train: list[Pair]
    heldout: list[Pair]
    dropped: tuple[str, ...]


def encode_pairs(rows: Sequence[PairRow], encoder: ChatEncoder, *, close_cut: bool = True) -> EncodedPairs:
    """Encode a snapshot.

    `dropped` names the rows that do not fit, have weight 0 or hold the same response twice, and the rows whose prompt
    was cut.

    Args:
        close_cut: also end the turn of responses that were cut by length. This is right for a reward model, which reads
            them as whole answers that stop. A policy must learn neither to end its turn there nor to go on. With False,
            rows in which a cut response won against a finished response are left out, because the policy would learn to
            run into the length limit.
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
        # Some tokenizers ignore case and accents, so different texts can give the same tokens.
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
    """Return the weight of each pair: its row's weight, times 2 / k if it comes from a ranking of k answers.

    The k (k - 1) / 2 pairs of a ranking then weigh k - 1 in total, because k - 1 comparisons put k answers in order.
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
    """A response with a thumb up or down, as token ids."""

    sequence: TokenSequence
    row: ThumbRow


class EncodedThumbs(NamedTuple):
    """The usable rows of a thumbs file, and sentences about left-out rows, as in `EncodedPairs`."""

    thumbs: list[Thumb]
    dropped: tuple[str, ...]


def encode_thumbs(rows: Sequence[ThumbRow], encoder: ChatEncoder) -> EncodedThumbs:
    """Encode single responses, each with its end-of-turn token. `dropped` names rows that do not fit or weigh 0."""
    fitted, left_out = _fitted(rows, encoder)
    return EncodedThumbs([Thumb(sequence, row) for sequence, row in fitted], describe_left_out(left_out, "thumbs"))


def _fitted(
    rows: Sequence[Response], encoder: ChatEncoder
) -> tuple[list[tuple[TokenSequence, Response]], dict[str, list[int]]]:
    """Encode single-response rows that have a weight and fit; also return ids of left-out and cut rows by reason."""
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
    """The usable rows of a demonstrations file, and sentences about left-out rows, as in `EncodedPairs`."""

    train: list[Demonstration]
    heldout: list[Demonstration]
    dropped: tuple[str, ...]


def encode_demonstrations(rows: Sequence[DemonstrationRow], encoder: ChatEncoder) -> EncodedDemonstrations:
    """Encode demonstrations, each with its end-of-turn token.

    `dropped` names rows that do not fit, weigh 0 or have an empty answer.
    """
    empty = [row.id for row in rows if row.weight and not row.response.strip()]
    fitted, left_out = _fitted([row for row in rows if not row.weight or row.response.strip()], encoder)
    demonstrations: dict[str, list[Demonstration]] = {"train": [], "heldout": []}
    for sequence, row in fitted:
        demonstrations[row.split].append(Demonstration(sequence, row))
    left_out |= {"have an empty answer": empty} if empty else {}
    return EncodedDemonstrations(**demonstrations, dropped=describe_left_out(left_out, "demonstrations"))


def require_pairs(pairs: Sequence[Pair], what: str, dropped: Sequence[str] = ()) -> None:
    """Raise InvalidInput if fewer than `MIN_PAIRS` pairs have a winner: a model trained on so few does not generalise.

    Args:
        dropped: sentences that say why other rows were left out.
    """
    decided = sum(not pair.tied for pair in pairs)
    if decided < MIN_PAIRS:
        raise InvalidInput(
            f"{what} needs at least {MIN_PAIRS} training comparisons with a winner; there are {decided} "
            f"(and {len(pairs) - decided} ties)." + "".join(f" {sentence}." for sentence in dropped),
            "Collect more judgments, or settle the comparisons under review.",
        )


def describe_left_out(left_out: dict[str, list[int]], noun: str) -> tuple[str, ...]:
    """Turn `{reason: ids}` into sentences like `3 comparisons have weight 0: 4, 9, 12`, with at most 20 ids each."""
    return tuple(
        f"{len(ids)} {noun} {reason}: {', '.join(map(str, ids[:20]))}{', ...' if len(ids) > 20 else ''}"
        for reason, ids in left_out.items()
    )


class Prompts(NamedTuple):
    """Prompts for generation, padded on the left so that all answers start at the same column. All fields are (B, T).

    Attributes:
        input_ids: token ids, including padding.
        valid_mask: True on prompt tokens, False on padding, whatever the padding's token id is.
        position_ids: positions of valid tokens, counted from 0; 0 on padding.
    """

    input_ids: Tensor
    valid_mask: Tensor
    position_ids: Tensor


def left_padded(prompts: Sequence[Sequence[int]], pad_id: int) -> Prompts:
    """Pad prompts of token ids on the left to the longest prompt."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    valid_mask = torch.zeros((len(prompts), width), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        input_ids[i, width - len(prompt) :] = torch.as_tensor(prompt)
        valid_mask[i, width - len(prompt) :] = True
    return Prompts(input_ids, valid_mask, (valid_mask.long().cumsum(-1) - 1).clamp(min=0))


def by_length(lengths: Sequence[int]) -> list[int]:
    """Return row indices, shortest first: for evaluation, where order does not matter and padding should be small."""
    return sorted(range(len(lengths)), key=lambda i: lengths[i])


def length_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator, window: int = 8
) -> list[list[int]]:
    """Return row indices in batches of similar length, which keeps padding small; shortest first within a batch.

    Rows are shuffled and sorted within windows of `window` batches; then the batches are shuffled. An epoch visits
    every row once, in an order that depends only on the generator's state.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    span = batch_size * window
    batches = []
    for start in range(0, len(shuffled), span):
        ordered = sorted(shuffled[start : start + span], key=lambda i: lengths[i])
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Yield consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
