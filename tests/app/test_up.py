"""How the supervisor handles signals and addresses, without starting anything."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select

from app import up
from app.db import make_session_factory
from app.errors import Conflict, Unavailable
from app.models import SigninLink
from app.settings import Settings
from app.up import _check_port, _stop_on_signals


@pytest.fixture
def hang_up() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_goes_stops_the_service(hang_up: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    after = []
    with _stop_on_signals() as pause:
        os.kill(os.getpid(), signal.SIGHUP)
        pause(60)
        after.append("still running")
    assert after == []
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_terminal_that_goes_does_not_stop_it_under_nohup(hang_up: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _stop_on_signals() as pause:
        os.kill(os.getpid(), signal.SIGHUP)
        pause(0.1)
        after = "still running"
    assert after == "still running"


def test_a_signal_is_not_lost_in_what_it_interrupts() -> None:
    done = []
    with _stop_on_signals() as pause:
        # Like a library that replaces every error by its own, and a caller that continues after it.
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGINT)
            done.append("the statement")
        pause(60)
        done.append("the next one")
    assert done == ["the statement"]


def test_a_second_signal_interrupts_what_does_not_end_and_the_stopping_is_interrupted_by_none() -> None:
    done = []
    with _stop_on_signals():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            done.append("waits on")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("for ever")
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            done.append("stopped in order")
    assert done == ["waits on", "stopped in order"]


@pytest.mark.parametrize("asked", [False, True])
def test_an_error_is_told_unless_a_signal_may_have_made_it(asked: bool) -> None:
    with contextlib.ExitStack() as stack:
        if not asked:
            stack.enter_context(pytest.raises(Unavailable, match="did not start"))
        with _stop_on_signals():
            if asked:
                os.kill(os.getpid(), signal.SIGINT)
            raise Unavailable("The embedded PostgreSQL did not start.")


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("::", socket.AF_INET6, "http://[::1]"),
        ("::1", socket.AF_INET6, "http://[::1]"),
        ("0.0.0.0", socket.AF_INET, "http://127.0.0.1"),
        ("localhost", socket.AF_INET, "http://localhost"),
    ],
)
def test_every_kind_of_address_is_checked_and_reached(host: str, family: int, address: str) -> None:
    with socket.socket(family) as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(host=host, port=port, _env_file=None)
        assert settings.url == f"{address}:{port}"
        with pytest.raises(Conflict, match=f"Port {port} on {host} cannot be used"):
            _check_port(settings)
    _check_port(settings)


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("PREFLOOP_HOME", "~/data")
    monkeypatch.setenv("PREFLOOP_ARTIFACTS", "~/models")
    settings = Settings(_env_file=None)
    assert (settings.home, settings.artifacts_root) == (Path("/home/ada/data"), Path("/home/ada/models"))


def test_what_migrates_logs_no_link(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(up, "_give_first_model", lambda *_: None)
    up.prepare(settings)
    told = capsys.readouterr().out
    assert "/join/" not in told
    assert "prefloop invite --administrator" in told
    with make_session_factory(engine)() as session:
        assert session.scalars(select(SigninLink)).all() == []
