"""Values that took long to compute."""

import pytest

from app.kept import Kept


def test_the_newest_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kept, "WORTH_KEEPING", -1)
    monkeypatch.setattr(Kept, "KEPT_FOR", 10**9)
    kept: Kept[int] = Kept()
    for n in range(2 * Kept.MOST):
        kept.get(n, lambda n=n: n)  # type: ignore[misc]
    assert kept.kept(Kept.MOST - 1) is None
    assert kept.get(Kept.MOST, lambda: -1).value == Kept.MOST
