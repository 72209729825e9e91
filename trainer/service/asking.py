"""Asking an endpoint about many things at once, and keeping each answer as it comes."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from app.errors import PrefloopError, Unavailable
from trainer.service.judge_endpoint import Endpoint, Halted
from trainer.service.recording import RunRecorder

# So many answers in a row, from the run's first on, that cannot be read: the others could not be either.
HOPELESS = 10

Task = TypeVar("Task")
Answer = TypeVar("Answer")


def ask_all(
    endpoint: Endpoint,
    tasks: Sequence[Task],
    ask: Callable[[Task], Answer],
    keep: Callable[[Task, Answer], str | None],
    recorder: RunRecorder,
    *,
    at_once: int,
    before: int,
    words: str,
) -> int:
    """Ask about all tasks, several at once; return how many answers could not be read.

    Args:
        keep: stores an answer; returns why it could not be read, or None.
        before: tasks that an earlier attempt has done.
        words: what has been done, for the run's progress.

    Raises:
        Unavailable: the endpoint is away, or the first answers could not be read. What arrived is kept.
    """
    waiting, under_way = list(tasks[::-1]), dict[Future[Answer], Task]()
    answered = failed = 0
    total = before + len(tasks)
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="asking")
    try:
        while waiting or under_way:
            while waiting and len(under_way) < at_once:
                task = waiting.pop()
                under_way[pool.submit(ask, task)] = task
            recorder.progress(before + answered, total, words)
            ended, _ = wait(under_way, timeout=0.5, return_when=FIRST_COMPLETED)
            problem: Exception | None = None
            for future in ended:
                task = under_way.pop(future)
                try:
                    answer = future.result()
                except (PrefloopError, Halted) as error:
                    problem = error  # after what has arrived with it is stored
                    continue
                error_ = keep(task, answer)
                answered, failed = answered + 1, failed + (error_ is not None)
                if failed == answered == HOPELESS:
                    problem = Unavailable(
                        f"The first {HOPELESS} answers could not be read. The last one: {error_}",
                        "Choose a model that follows the form of the answer, or allow more tokens.",
                    )
            if problem is not None:
                raise problem
        recorder.progress(total, total, words)
    finally:
        endpoint.halt.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return failed
