"""Pack sequences into rows for a forward pass: completions share their prompt, and short groups fill up rows.

    plain     [prompt c1 ....]            shared, filled   [prompt c1 c2][prompt c1 c2 c3]
              [prompt c2 ....]                             [prompt c1 c2 c3 c4 ..........]

A prompt appears once before all its completions, so a pair takes P + C + R tokens instead of 2 P + C + R. A completion
attends to its prompt and itself. Other completions and prompts in the row are masked, and positions continue from the
prompt, so every result is the same as without packing (`trainer.models.policy.can_share` checks this for each model).

On CPUs (`trainer.speed.attention`) padding is skipped, and the common start of all prompts, such as a system prompt, is
computed once for all groups.

On other devices, attention is torch's SDPA with a mask over all pairs of tokens, which every device supports.
FlashAttention 2 does not accept such a mask, and FlexAttention compiles for each shape, which changes with every batch.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.batching.chat import TokenSequence


class Ragged(NamedTuple):
    """The N tokens of G groups, one group after another, without padding.

    Attributes:
        places: (N,) the tokens' flat indices in the rows.
        lengths: number of tokens of each group.
        common: number of the first group's tokens that all later groups see before their own.
        masks: one per group (1, 1, tokens, seen), True where a token sees another; None if a causal mask is enough.
    """

    places: Tensor
    lengths: list[int]
    common: int
    masks: list[Tensor | None]


class Packed(NamedTuple):
    """S sequences in R rows of T tokens. Flat places are indices into the R * T tokens, row by row.

    Attributes:
        input_ids: (R, T), including the padding on the right.
        position_ids: (R, T), counted along each sequence from its prompt's first token.
        group_ids: (R, T), each token's group, -1 for padding.
        branches: (R, T), 0 in the prompt of a group; 1, 2... in its completions.
        alone: whether each row is one sequence, so that a causal mask is enough.
        common: number of tokens that all groups' prompts start with, less than any prompt's length; 0 for one group.
        predictors: (N,) flat places whose hidden state predicts each of the N completion tokens, sequence by sequence.
        targets: (N,) the completion tokens.
        owners: (N,) the sequence, 0 to S - 1, that each completion token belongs to.
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
        """Mask (R, 1, T, T), True where a token (first T) sees another; None if a causal mask is enough."""
        return None if self.alone else visible(self.group_ids, self.branches)

    def ragged(self) -> Ragged:
        """Return the same tokens without padding, with the common start of all prompts kept only in the first group."""
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
        """Number of tokens in a forward pass, including padding."""
        return self.input_ids.numel()

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum values (N,) of completion tokens per sequence, shape (S,)."""
        return torch.zeros(len(self.ends), dtype=values.dtype, device=values.device).index_add(0, self.owners, values)

    @property
    def lengths(self) -> Tensor:
        """Number of completion tokens (S,) of each sequence."""
        return torch.bincount(self.owners, minlength=len(self.ends))


def groups_of(sequences: Sequence[TokenSequence], share: bool) -> list[list[int]]:
    """Return indices of sequences in groups: with `share`, neighbours with the same prompt; otherwise one per group."""
    groups: list[list[int]] = []
    for i, sequence in enumerate(sequences):
        if share and groups and list(sequences[groups[-1][0]].prompt) == list(sequence.prompt):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def packed_length(sequences: Sequence[TokenSequence], share: bool) -> int:
    """Return the number of tokens that the sequences take without padding."""
    return sum(
        len(sequences[group[0]].prompt) + sum(len(sequences[i].completion) for i in group)
        for group in groups_of(sequences, share)
    )


def pack(sequences: Sequence[TokenSequence], pad_id: int, share: bool) -> Packed:
    """Lay sequences out in rows that are as wide as the longest group.

    With `share`, smaller groups fill up rows (first fit, longest first). Without it, every sequence has its own row,
    padded on the right, which any causal model accepts. Every prompt must have at least one token.
    """
    groups = groups_of(sequences, share)
    lengths = [packed_length([sequences[i] for i in group], share) for group in groups]
    width = max(lengths)
    starts, rows = _first_fit(lengths, width) if share else ([(row, 0) for row in range(len(groups))], len(groups))

    input_ids = torch.full((rows, width), pad_id, dtype=torch.long)
    alone = all(len(group) == 1 for group in groups) and rows == len(groups)
    # In rows of one sequence, positions keep rising over the padding, because transformers takes a row whose positions
    # do not rise for a packed row. Packed rows have a mask; they may be wider than the model's number of positions.
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
    """Return how many tokens all prompts start with, at most the shortest prompt's length minus 1; 0 for one prompt."""
    if len(prompts) < 2:
        return 0
    # In sorted order, all prompts share the common start of the first and the last.
    first, last = (list(prompt) for prompt in (min(prompts, key=list), max(prompts, key=list)))
    most = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def visible(group_ids: Tensor, branches: Tensor) -> Tensor:
    """Return the attention mask (R, 1, T, T) for rows with these groups and branches (R, T).

    [i, j] is True if token i sees token j: j is not later than i, in the same group, and either in the prompt or in i's
    own completion. Padding (group -1) sees padding, so that no row of the softmax is empty.
    """
    earlier = torch.ones(group_ids.shape[1], group_ids.shape[1], dtype=torch.bool, device=group_ids.device).tril()
    same_group = group_ids[:, :, None] == group_ids[:, None, :]
    own = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return (earlier & same_group & own).unsqueeze(1)


def _first_fit(lengths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """Place groups, longest first, into the first row with room; return their (row, first column) and the row count."""
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
    """Split a batch into parts for one forward pass: at most `rows` entries and `tokens` tokens, of similar length.

    An entry longer than `tokens` forms its own part. Memory grows with tokens; the result does not depend on the split.
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
