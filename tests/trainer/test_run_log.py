"""The end of a run's log: which threads' lines it collects, its maximum length, and that it contains no secrets."""

import logging
import threading

import pytest

from trainer.service import run_log
from trainer.service.run_log import LINES, LONGEST, RunLog


def lines(log: RunLog) -> list[str]:
    """Return the lines without their times."""
    return [line[20:] for line in log.text.splitlines()]


def test_it_hears_its_own_thread_while_it_listens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log, logger = RunLog(), logging.getLogger("trainer.recipes")
    logger.warning("before")
    with log.listening():
        logger.warning("3 of %d responses are cut", 7)
        other = threading.Thread(target=lambda: logger.warning("of another run"))
        other.start()
        other.join()
        served = threading.Thread(
            target=lambda: logging.getLogger("trainer.sampling.serving").warning("the server is slow")
        )
        served.start()
        served.join()
    logger.warning("after")
    assert lines(log) == ["WARNING 3 of 7 responses are cut", "WARNING the server is slow"]


def test_an_exception_is_a_line_and_no_secret_gets_in(caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog()
    with log.listening():
        try:
            raise ValueError("Authorization: Bearer abc123 was refused")
        except ValueError:
            logging.getLogger("trainer.service.tasks").exception("Run 3 failed")
    assert lines(log)[0] == "ERROR Run 3 failed"
    assert log.text.splitlines()[1] == "ValueError: Authorization: Bearer … was refused"
    assert "Traceback" not in log.text


def test_only_the_newest_lines_stay_behind_those_of_earlier_attempts() -> None:
    log = RunLog("the worker ran out of memory")
    log.say("x" * 1000 + "\0\ud800")
    assert log.text.splitlines()[0] == "the worker ran out of memory"
    assert len(log.text.splitlines()[1]) == LONGEST
    log.say("\0\ud800")
    assert lines(log)[2] == "?"
    for number in range(LINES):
        log.say(str(number))
    assert lines(log) == [str(number) for number in range(LINES)]


def test_metrics_are_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(run_log.time, "monotonic", lambda: now)
    log = RunLog()
    for step in range(1, 26):
        log.metrics(step, {"loss": 1 / step, "accuracy": 0.5})
        now += 1
    assert lines(log) == [
        "step 1: loss 1, accuracy 0.5",
        "step 11: loss 0.09091, accuracy 0.5",
        "step 21: loss 0.04762, accuracy 0.5",
    ]
