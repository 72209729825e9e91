"""Cached values that take long to compute."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from app.cache import COMMITTING, Cache
from app.errors import Unavailable
from tests.waiting import wait_for


def test_the_newest_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**9)
    cache: Cache[int] = Cache(worth_keeping=-1)
    for n in range(2 * Cache.MOST):
        cache.get(n, lambda n=n: n)  # type: ignore[misc]
    assert cache.cached(Cache.MOST - 1) is None
    assert cache.get(Cache.MOST, lambda: -1).value == Cache.MOST


def test_who_has_changed_something_gets_what_was_begun_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "KEPT_FOR", 10**9)
    cache: Cache[str] = Cache(worth_keeping=-1)
    found = cache.get("p", lambda: "old")
    long_ago = found.begun - COMMITTING - timedelta(seconds=1)
    for since in (None, long_ago):
        assert cache.get("p", lambda: "new", since).value == "old"
    # Other changes may be visible a little later.
    assert cache.get("p", lambda: "after a change", found.begun - COMMITTING).value == "after a change"
    assert cache.get("p", lambda: "again", datetime.now(UTC)).value == "again"
    assert cache.get("p", lambda: "new").value == "again"


def test_few_wait_and_others_are_told_so_at_once() -> None:
    """Otherwise all threads of the service wait for one value, and labelers wait, too."""
    cache: Cache[int] = Cache(at_once=3)
    inside, may_end = threading.Barrier(Cache.COMPUTING + 1, timeout=60), threading.Event()

    def compute() -> int:
        inside.wait()
        assert may_end.wait(60)
        return 1

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(cache.get, n, compute) for n in range(Cache.COMPUTING)]
        inside.wait()  # both are being computed
        asked.append(pool.submit(cache.get, 0, lambda: 2))
        wait_for(lambda: cache.is_full, "the third asks")
        for key in (0, "another"):
            with pytest.raises(Unavailable, match="Many people are waiting"):
                cache.get(key, lambda: 3)
        may_end.set()
        assert [each.result().value for each in asked] == [1, 1, 2]  # too quick to be cached
    assert cache.get("another", lambda: 3).value == 3
