"""Work sharing between the processes of a run.

`accelerate launch` or torchrun start several processes; otherwise there is one.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from trainer.reporting import TrainingDiverged
from trainer.speed.memory import keep_freed_memory
from trainer.speed.sharding import check_launch

Value = TypeVar("Value")


@functools.cache
def accelerator() -> Accelerator:
    """Return the accelerator for the devices and processes that `accelerate launch` or torchrun set up.

    Raises:
        InvalidInput: the processes were launched in a way that is not supported.
    """
    check_launch()
    keep_freed_memory()
    return Accelerator(cpu=not torch.cuda.is_available())


def the_main_processes(value: Callable[[], Value]) -> Value:
    """Compute a value in the main process and return it on all processes."""
    shared = [value() if accelerator().is_main_process else None]
    return broadcast_object_list(shared)[0]


def device() -> torch.device:
    """Return this process's accelerator if there is one, else the CPU."""
    return accelerator().device


def device_name() -> str:
    """Return the name of this process's device for people: `NVIDIA H200`, or `CPU, 2 threads`."""
    if device().type == "cuda":
        return torch.cuda.get_device_name(device())
    threads = torch.get_num_threads()
    return f"{device().type.upper()}, {threads} thread{'' if threads == 1 else 's'}"


def generator_at(seed: int, *place: int) -> torch.Generator:
    """Return a random generator for one place in a run, independent of all earlier draws."""
    mixed = seed
    for number in place:
        mixed = (mixed * 1_000_003 + number + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def deal(parts: Iterable[list[int]]) -> Iterator[tuple[list[int], bool]]:
    """Yield this process's parts, each with True. All processes get equally many: repeated parts come with False."""
    dealer, everyone = accelerator(), list(parts)
    for number in range(
        dealer.process_index, -(-len(everyone) // dealer.num_processes) * dealer.num_processes, dealer.num_processes
    ):
        yield everyone[number % len(everyone)], number < len(everyone)


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of the values over all processes, on the CPU."""
    return accelerator().reduce(values.to(accelerator().device), reduction="sum").cpu()


def require_finite(values: Tensor, what: str) -> Tensor:
    """Return the values if all are finite.

    No loss is computed after the last step, so only later measurements can show that this step broke the model.

    Raises:
        TrainingDiverged: a value is NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        raise TrainingDiverged(
            f"The model gives NaN or infinite {what}.",
            "No model was saved; a checkpoint from before is kept. Lower the learning rate and start again.",
        )
    return values
