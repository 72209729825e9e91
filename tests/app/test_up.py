"""What the supervisor does with signals, without starting anything."""

import os
import signal
from collections.abc import Iterator

import pytest

from app.up import _stop_on_signals


@pytest.fixture
def hang_up() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_stops_the_service(hang_up: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    after = []
    with _stop_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        after.append("still running")
    assert after == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_terminal_that_goes_does_not_stop_it_under_nohup(hang_up: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _stop_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        after = "still running"
    assert after == "still running"
