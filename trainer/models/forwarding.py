"""Forward passes without gradients over any number of sequences, batched by length and dealt to the processes."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.batching.chat import TokenSequence
from trainer.batching.packing import Packed, pack, packed_length, token_parts
from trainer.processes import accelerator, deal, device, sum_over_processes

Group = Sequence[TokenSequence]  # completions of one prompt, which are read together
Report = Callable[[int], None]  # called with how many groups are done


def ignore(_done: int) -> None:
    """A report to nobody."""


@torch.no_grad()
def forward_groups(
    run: Callable[[Packed], Tensor],
    groups: Sequence[Group],
    width: int,
    share: bool,
    pad_id: int,
    tokens: int,
    report: Report = ignore,
) -> Tensor:
    """Return the outputs (S, width) of a model for the S sequences of all groups, in their order, in fp32 on the CPU.

    Every process gets all outputs, and must call with the same groups.

    Args:
        run: from a batch of R sequences, on the device, to their outputs (R, width).
        share: whether the model may read the prompt of a group once for all its completions.
        tokens: at most so many are forwarded at once.
    """
    starts = [0, *itertools.accumulate(map(len, groups))]
    outputs = torch.zeros(starts[-1], width)
    lengths = [packed_length(group, share) for group in groups]
    done = 0
    for part, counts in deal(token_parts(range(len(groups)), lengths, len(groups), tokens)):
        report(done)
        packed = pack([sequence for number in part for sequence in groups[number]], pad_id, share).to(device())
        found = run(packed)
        if counts:
            outputs[[place for number in part for place in range(starts[number], starts[number + 1])]] = found.cpu()
            done += len(part) * accelerator().num_processes
    return sum_over_processes(outputs)
