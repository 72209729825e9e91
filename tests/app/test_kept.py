"""Values that took long to compute."""

from datetime import UTC, datetime, timedelta

import pytest

from app.kept import COMMITTING, Kept


def test_the_newest_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "KEPT_FOR", 10**9)
    kept: Kept[int] = Kept(worth_keeping=-1)
    for n in range(2 * Kept.MOST):
        kept.get(n, lambda n=n: n)  # type: ignore[misc]
    assert kept.kept(Kept.MOST - 1) is None
    assert kept.get(Kept.MOST, lambda: -1).value == Kept.MOST


def test_who_has_changed_something_gets_what_was_begun_after_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "KEPT_FOR", 10**9)
    kept: Kept[str] = Kept(worth_keeping=-1)
    found = kept.get("p", lambda: "old")
    long_ago = found.begun - COMMITTING - timedelta(seconds=1)
    for since in (None, long_ago):
        assert kept.get("p", lambda: "new", since).value == "old"
    # A change that bears a moment may be seen a little later only.
    assert kept.get("p", lambda: "after a change", found.begun - COMMITTING).value == "after a change"
    assert kept.get("p", lambda: "again", datetime.now(UTC)).value == "again"
    assert kept.get("p", lambda: "new").value == "again"
