"""`prefloop up` and `prefloop simulate` for a new user: real processes, a tiny model, nothing prepared."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from app.simulation.browser import Browser
from tests.trainer.conftest import build_model

pytestmark = pytest.mark.long


class Up:
    """A running `prefloop up` and its output so far."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.url = f"http://127.0.0.1:{environment['PREFLOOP_PORT']}"
        self.log = log
        command = [sys.executable, "-m", "app.cli", "up"]
        with log.open("w") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, condition: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def ready(self) -> bool:
        return "Prefloop is ready" in self.said()

    def workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between, or is a zombie
                if "trainer.service.worker" in child.cmdline():
                    found.append(child)
        return found

    def stop(self) -> list[psutil.Process]:
        """Press Ctrl-C; return the processes that still run."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(60) == 0, self.said()
        except subprocess.TimeoutExpired as error:
            error.add_note(self.said())
            raise
        return psutil.wait_procs(children, timeout=60)[1]


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="pf-") as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        build_model(Path(folder) / "tiny")
        inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
        yield inherited | {
            "PREFLOOP_HOME": f"{folder}/home",
            "PREFLOOP_PORT": str(port),
            "PREFLOOP_MODEL": f"{folder}/tiny",
        }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], Up]]:
    started: list[Up] = []

    def start_() -> Up:
        started.append(Up(environment, tmp_path / f"up-{len(started)}.log"))
        return started[-1]

    yield start_
    for up in started:
        if up.process.poll() is None:
            up.stop()


def simulate(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "app.cli", "simulate", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_from_nothing_through_a_round_and_on_after_a_restart_and_a_killed_worker(
    start: Callable[[], Up], environment: dict[str, str]
) -> None:
    up = start()
    up.wait_for(up.ready, 180)
    assert httpx.get(f"{up.url}/healthz").status_code == 200
    up.wait_for(lambda: re.search(r"one-time link: \S+\n", up.said()), 180)  # printed shortly after the address
    link = re.search(r"one-time link: (\S+)", up.said())
    assert link
    # The first administrator is a member of the starter project, which had no members.
    first = Browser(up.url)
    form = first.open(f"/join/{link[1].rpartition('/')[2]}").form("main form")
    first.send(form, name="Ada", email="ada@example.org", password="correct horse battery")
    assert "ada@example.org" in first.open("/projects/starter/members").soup.get_text()
    first.close()

    # Sampling starts automatically. Simulated labelers wait for it, judge, and run one round.
    settings = ["learning_rate=1e-3", "epochs=1", "reward_epochs=1", "max_new_tokens=16", "prompts=20"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = simulate(environment, "--rounds", "1", "--labelers", "3", "--judgments", "120", "--json", *arguments)
    assert done.returncode == 0, done.stderr + up.said()
    (report,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert list(report) == [
        "round",
        "judgments",
        "alpha",
        "rm_accuracy",
        "proxy",
        "kl",
        "kl_k3",
        "adopted",
        "seconds",
        "win_rate",
        "win_rate_low",
        "win_rate_high",
        "true",
        "first_true",
        "tokens",
        "first_tokens",
        "finished",
        "first_finished",
    ]
    assert report["round"] == 1
    assert report["judgments"] >= 100
    assert -1 <= report["alpha"] <= 1
    assert 0 <= report["rm_accuracy"] <= 1
    assert 0 <= report["win_rate_low"] <= report["win_rate"] <= report["win_rate_high"] <= 1
    assert 0 < report["tokens"] <= 16
    assert 0 <= report["finished"] <= 1
    assert report["kl_k3"] >= 0

    # Only one can run on a home, and on a port.
    second = subprocess.run(
        [sys.executable, "-m", "app.cli", "up"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "is already running with its home" in second.stderr
    taken = environment | {"PREFLOOP_HOME": environment["PREFLOOP_HOME"] + "2"}
    third = subprocess.run(
        [sys.executable, "-m", "app.cli", "up"], env=taken, capture_output=True, text=True, timeout=60, check=False
    )
    assert third.returncode == 1
    assert f"Port {environment['PREFLOOP_PORT']}" in third.stderr
    assert "PREFLOOP_PORT=" in third.stderr

    assert up.stop() == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{up.url}/healthz")

    again = start()
    again.wait_for(again.ready, 180)
    # An administrator already exists.
    assert "one-time link" not in again.said()
    listed = subprocess.run(
        [sys.executable, "-m", "app.cli", "user", "list"], env=environment, capture_output=True, text=True, check=True
    )
    assert listed.stdout.count("simulation.invalid") == 4

    # A killed worker is started again, and the pages stay available.
    again.wait_for(again.workers, 90)
    (worker,) = again.workers()
    worker.kill()
    again.wait_for(lambda: "starting it again" in again.said(), 30)
    again.wait_for(lambda: [w for w in again.workers() if w.pid != worker.pid], 30)
    assert httpx.get(f"{again.url}/healthz").status_code == 200
    assert again.stop() == []
