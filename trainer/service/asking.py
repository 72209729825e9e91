"""Ask an endpoint many questions at once, and store each answer when it arrives."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from app.errors import PrefloopError, Unavailable
from trainer.service.judge_endpoint import Endpoint, Halted
from trainer.service.recording import RunRecorder

# If this many first answers of a run are all unreadable, the run fails: later answers would be unreadable too.
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
    """Ask about all tasks, several at once, and return how many answers could not be read.

    Args:
        keep: stores an answer; returns why it could not be read, or None.
        before: number of tasks that an earlier attempt has finished.
        words: what the run's progress counts, for example "comparisons judged".

    Raises:
        Unavailable: the endpoint is away, or the first answers could not be read. Stored answers stay.
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
                    problem = error  # raised below, after the other finished answers are stored
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
