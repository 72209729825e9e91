"""The client for both sides: N concurrent labelers, each in a separate thread with a separate browser session."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

PAUSE_SECONDS = 0.2  # after an error, and while there is no card
TIMEOUT_SECONDS = 60


class Refused(Exception):
    """The service refused a request; the message contains its answer."""


class Labeler(Protocol):
    """A labeler at work. Only one thread may use it at a time."""

    http: httpx.Client
    asked: bool
    """Whether the last card needed its own request. Otherwise it came with the previous answer and took no extra time.
    """

    def next_card(self) -> Any:
        """Return the next card, with a request if it is not loaded yet; None if the service has no card."""

    def answer(self, card: Any) -> str:
        """Send an answer, and return the id under which the database must now contain it."""


@dataclass
class Played:
    """The labelers' measurements on one side, over all its time windows.

    Attributes:
        begin, end: start and end of the current window by `time.perf_counter`. Requests outside it are not timed.
        seconds: total length of the windows.
        card, answer: milliseconds of each request; cards that needed no request are not included.
        acknowledged: ids of all answers that the service accepted, including those outside windows.
        dry: how often a labeler got no card.
        errors: counts by message, including errors outside windows.
        client_seconds, service_seconds: processor time of this process and of the service within the windows.
    """

    begin: float = float("inf")
    end: float = float("inf")
    seconds: float = 0
    card: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    dry: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    client_seconds: float = 0
    service_seconds: float = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rate(self) -> float:
        """Judgments per second."""
        return len(self.answer) / self.seconds

    @property
    def service_ms(self) -> float:
        """The service's processor time per judgment in milliseconds; NaN if there was no judgment."""
        return 1000 * self.service_seconds / len(self.answer) if self.answer else float("nan")


def play(
    labelers: Sequence[Labeler], played: Played, seconds: float, warmup: float, service_seconds: Callable[[], float]
) -> None:
    """Let all labelers judge at the same time, without a pause, for a fixed time after a warm-up.

    Args:
        service_seconds: returns the processor time that the service has used since its start.
    """
    stop = threading.Event()

    def work(labeler: Labeler) -> None:
        while not stop.is_set():
            if not turn(labeler, played):
                stop.wait(PAUSE_SECONDS)

    with ThreadPoolExecutor(len(labelers)) as pool:
        try:
            jobs = [pool.submit(work, labeler) for labeler in labelers]
            stop.wait(warmup)
            client, service = time.process_time(), service_seconds()
            played.begin = time.perf_counter()
            stop.wait(seconds)
            played.end = time.perf_counter()
            played.client_seconds += time.process_time() - client
            played.service_seconds += service_seconds() - service
        finally:
            stop.set()
    for job in jobs:
        job.result()
    played.seconds += played.end - played.begin
    played.begin = played.end = float("inf")


def turn(labeler: Labeler, played: Played) -> bool:
    """Get one card and answer it; return whether both succeeded. Times and errors are recorded in `played`."""
    try:
        began = time.perf_counter()
        card = labeler.next_card()
        shown = time.perf_counter()
        if card is None:
            with played.lock:
                played.dry += 1
            return False
        key = labeler.answer(card)
        taken = time.perf_counter()
    except (httpx.HTTPError, Refused) as error:
        with played.lock:
            played.errors[f"{type(error).__name__}: {error}"] += 1
        return False
    with played.lock:
        played.acknowledged.append(key)
        if labeler.asked and played.begin <= shown < played.end:
            played.card.append(1000 * (shown - began))
        if played.begin <= taken < played.end:
            played.answer.append(1000 * (taken - shown))
    return True


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the percentile by nearest rank: the smallest value that at least `percent` % of the values do not exceed.

    It is NaN without values.
    """
    if not values:
        return float("nan")
    rank = -(-percent * len(values) // 100)  # rounded up
    return sorted(values)[max(0, int(rank) - 1)]


def browser(url: str) -> httpx.Client:
    """Return an HTTP client with separate cookies that follows redirects."""
    return httpx.Client(base_url=url, follow_redirects=True, timeout=TIMEOUT_SECONDS)


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success.

    Raises:
        Refused: it is not a success. The message has the status and the beginning of the body.
    """
    if response.is_success:
        return response
    request = response.request
    path = "/".join("…" if any(c.isdigit() for c in part) else part for part in request.url.path.split("/"))
    raise Refused(f"{request.method} {path} answered {response.status_code}: {' '.join(response.text.split())[:120]}")


def shared_out(count: int, urls: Sequence[str]) -> list[str]:
    """Return an address for each of `count` labelers, in turn, like a proxy that distributes users over processes."""
    return list(itertools.islice(itertools.cycle(urls), count))
