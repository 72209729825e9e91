"""Sequences laid out in rows for a forward pass: prompts shared between their completions, rows filled up, no padding.

    plain     [prompt c1 ....]            shared, filled   [prompt c1 c2][prompt c1 c2 c3]
              [prompt c2 ....]                             [prompt c1 c2 c3 c4 ..........]

A prompt stands once before all its completions: (P + C + R) tokens are worked on instead of (2 P + C + R). A completion
sees its prompt and itself; other completions and other prompts in the row are masked away, and positions go on from the
prompt, so every number is what it would be alone (`trainer.models.policy.can_share` checks that of each model).

On CPUs (`trainer.speed.attention`) padding is left out, and what all prompts begin with, a template's or a project's
system prompt, stands once for all groups.

Elsewhere attention is torch's own with a mask of all pairs of tokens (SDPA), which every device has. FlashAttention 2
takes no such mask, and FlexAttention is compiled for the shapes it meets, which change with every batch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.batching.chat import TokenSequence


class Ragged(NamedTuple):
    """N tokens of G groups behind one another.

    Attributes:
        places: (N,) their flat places in the rows.
        lengths: tokens of each group.
        common: how many of the first group's tokens all later groups see before their own.
        masks: of each group (1, 1, tokens, seen), True where a token sees another; None where causality is all.
    """

    places: Tensor
    lengths: list[int]
    common: int
    masks: list[Tensor | None]


class Packed(NamedTuple):
    """S sequences in R rows of T tokens. Flat places are indices into the R * T tokens, row by row.

    Attributes:
        input_ids: (R, T), padding included, which is on the right.
        position_ids: (R, T), counted along each sequence from its prompt's first token.
        group_ids: (R, T) which group a token is of, -1 at padding.
        branches: (R, T) 0 in the prompt of a group, in its completions 1, 2...
        alone: each row is one sequence, for which causality alone is right.
        common: tokens with which the prompts of all groups begin, each prompt being longer; 0 for one group.
        predictors: (N,) flat places whose state predicts each of the N completion tokens, sequence by sequence.
        targets: (N,) those tokens.
        owners: (N,) which sequence, 0 to S - 1, each of them belongs to.
        ends: (S,) flat place of each sequence's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    group_ids: Tensor
    branches: Tensor
    alone: bool
    common: int
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    ends: Tensor

    def to(self, device: torch.device) -> "Packed":
        return Packed._make(value.to(device) if isinstance(value, Tensor) else value for value in self)

    @property
    def attention_mask(self) -> Tensor | None:
        """(R, 1, T, T), True where a token (first T) sees another; None where causality alone is right."""
        return None if self.alone else visible(self.group_ids, self.branches)

    def ragged(self) -> Ragged:
        """The same without padding, and with what all groups begin with in the first of them only."""
        ids = self.group_ids.flatten()
        places = (ids >= 0).nonzero()[:, 0]
        groups, lengths = (found.tolist() for found in ids[places].unique_consecutive(return_counts=True))
        masks: list[Tensor | None] = []
        for group, branches in zip(groups, self.branches.flatten()[places].split(lengths), strict=True):
            skipped = self.common if group != groups[0] else 0
            plain = skipped == 0 and branches.max() <= 1
            mask = None if plain else visible(torch.zeros_like(branches)[None], branches[None])
            masks.append(None if mask is None else mask[:, :, skipped:])
        if self.common:
            later = (ids[places] != groups[0]) & (self.position_ids.flatten()[places] < self.common)
            places = places[~later]
            lengths = [lengths[0], *(length - self.common for length in lengths[1:])]
        return Ragged(places, lengths, self.common, masks)

    @property
    def tokens(self) -> int:
        """Tokens a forward pass works on, padding included."""
        return self.input_ids.numel()

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sums (S,) of values (N,) of completion tokens."""
        return torch.zeros(len(self.ends), dtype=values.dtype, device=values.device).index_add(0, self.owners, values)

    @property
    def lengths(self) -> Tensor:
        """Completion tokens (S,) of each sequence."""
        return torch.bincount(self.owners, minlength=len(self.ends))


def groups_of(sequences: Sequence[TokenSequence], share: bool) -> list[list[int]]:
    """Indices of sequences that stand together: neighbours with one prompt where it is shared, else each alone."""
    groups: list[list[int]] = []
    for i, sequence in enumerate(sequences):
        if share and groups and list(sequences[groups[-1][0]].prompt) == list(sequence.prompt):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def packed_length(sequences: Sequence[TokenSequence], share: bool) -> int:
    """Tokens these sequences take, before any padding."""
    return sum(
        len(sequences[group[0]].prompt) + sum(len(sequences[i].completion) for i in group)
        for group in groups_of(sequences, share)
    )


def pack(sequences: Sequence[TokenSequence], pad_id: int, share: bool) -> Packed:
    """Lays sequences out, as wide as the widest group; with `share`, smaller groups fill rows up (first fit, longest
    first). Without, every sequence has a row of its own, padded on the right: any causal model takes that.

    Every prompt has at least one token.
    """
    groups = groups_of(sequences, share)
    lengths = [packed_length([sequences[i] for i in group], share) for group in groups]
    width = max(lengths)
    starts, rows = _first_fit(lengths, width) if share else ([(row, 0) for row in range(len(groups))], len(groups))

    input_ids = torch.full((rows, width), pad_id, dtype=torch.long)
    alone = all(len(group) == 1 for group in groups) and rows == len(groups)
    # Padding counts on in rows of one sequence: transformers takes what does not rise for a packed row. Others may be
    # wider than the model has positions for, and bring a mask of their own.
    position_ids = torch.arange(width).repeat(rows, 1) if alone else torch.zeros((rows, width), dtype=torch.long)
    group_ids = torch.full((rows, width), -1, dtype=torch.long)
    branches = torch.zeros((rows, width), dtype=torch.long)  # 0 the prompt, then the completions
    predictors: list[list[int]] = [[] for _ in sequences]
    ends = [0] * len(sequences)
    for number, (group, (row, start)) in enumerate(zip(groups, starts, strict=True)):
        prompt = sequences[group[0]].prompt
        group_ids[row, start : start + lengths[number]] = number
        at = start + len(prompt)
        input_ids[row, start:at] = torch.as_tensor(prompt)
        position_ids[row, start:at] = torch.arange(len(prompt))
        last_of_prompt = row * width + at - 1
        for branch, i in enumerate(group, start=1):
            completion = sequences[i].completion
            end = at + len(completion)
            if completion:
                input_ids[row, at:end] = torch.as_tensor(completion)
            position_ids[row, at:end] = torch.arange(len(prompt), len(prompt) + len(completion))
            branches[row, at:end] = branch
            place = row * width + at
            predictors[i] = [last_of_prompt, *range(place, place + len(completion) - 1)][: len(completion)]
            ends[i] = place + len(completion) - 1 if completion else last_of_prompt
            at = end

    return Packed(
        input_ids,
        position_ids,
        group_ids,
        branches,
        alone=alone,
        common=common_start([sequences[group[0]].prompt for group in groups]) if share else 0,
        predictors=torch.tensor([place for places in predictors for place in places], dtype=torch.long),
        targets=torch.tensor([token for sequence in sequences for token in sequence.completion], dtype=torch.long),
        owners=torch.repeat_interleave(torch.tensor([len(sequence.completion) for sequence in sequences])),
        ends=torch.tensor(ends),
    )


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of these prompts begin with, less than the shortest has; 0 for a single one."""
    if len(prompts) < 2:
        return 0
    # What the first and the last in order begin with, all between them do.
    first, last = (list(prompt) for prompt in (min(prompts, key=list), max(prompts, key=list)))
    most = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def visible(group_ids: Tensor, branches: Tensor) -> Tensor:
    """The mask (R, 1, T, T) of rows with these groups and branches (R, T): [i, j] is True where token i sees token j.

    That is where j is not later, of the same group, and in its prompt or in i's own completion. Padding (group -1) sees
    padding, so that no row of the softmax is empty.
    """
    earlier = torch.ones(group_ids.shape[1], group_ids.shape[1], dtype=torch.bool, device=group_ids.device).tril()
    same_group = group_ids[:, :, None] == group_ids[:, None, :]
    own = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return (earlier & same_group & own).unsqueeze(1)


def _first_fit(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """(row, first column) of each group, and how many rows: the longest first, each into the first row with room."""
    starts = [(0, 0)] * len(lengths)
    filled: list[int] = []
    for group in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, used in enumerate(filled) if used + lengths[group] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        starts[group] = (row, filled[row])
        filled[row] += lengths[group]
    return starts, len(filled)


def token_parts(indices: Sequence[int], lengths: Sequence[int], rows: int, tokens: int) -> Iterator[list[int]]:
    """Splits a batch into what is forwarded at once: at most `rows` entries and `tokens` tokens, of similar length.

    An entry longer than `tokens` goes alone. Memory grows with tokens, the result does not depend on the split.
    """
    part: list[int] = []
    total = 0
    for index in sorted(indices, key=lambda i: lengths[i]):
        if part and (len(part) == rows or total + lengths[index] > tokens):
            yield part
            part, total = [], 0
        part.append(index)
        total += lengths[index]
    if part:
        yield part
