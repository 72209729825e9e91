"""`prefloop up`: the whole service from one command: database, schema, first project, supervised web service and
worker."""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

import httpx
from rich.console import Console
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from app.accounts import service as accounts
from app.artifacts import ArtifactStore
from app.db import make_engine, make_session_factory
from app.errors import Conflict, PrefloopError, Unavailable
from app.models import Comparison, Run
from app.postgres import database
from app.projects import queries as projects
from app.projects import starter
from app.schema import migrate
from app.settings import Settings

console = Console(highlight=False, soft_wrap=True)
Pause = Callable[[float], None]  # waits for this many seconds
DAY = 24 * 60 * 60.0  # seconds; no artifact takes that long to write
PR_SET_PDEATHSIG = 1


def up(settings: Settings) -> None:
    """Run until Ctrl-C or SIGTERM. A worker that dies is started again; if the web service ends, everything ends.

    Raises:
        Conflict: the port is taken, or another `prefloop up` uses this home.
    """
    with _sole_user(settings.home), _stop_on_signals() as pause:
        _check_port(settings)
        console.print(f"Starting PostgreSQL ({'at DATABASE_URL' if settings.database_url else f'in {settings.home}'})")
        with database(settings) as url:
            migrate(url, lock_seconds=settings.migration_lock_seconds)
            engine = make_engine(url, pool_size=2)
            try:
                _serve(settings, url, make_session_factory(engine), pause)
            finally:
                engine.dispose()
                console.print("Stopped.")


def prepare(settings: Settings) -> None:
    """Migrate; on a first run also create the starter project and say how to make the first administrator's link."""
    with database(settings) as url:
        migrate(url, lock_seconds=settings.migration_lock_seconds)
        engine = make_engine(url, pool_size=2)
        try:
            factory = make_session_factory(engine)
            _make_first_project(factory)
            _give_first_model(settings, _environment(settings, url), factory, time.sleep)
            with factory() as session:
                if accounts.needs_first_admin(session):
                    # The link itself is not printed: nobody watches a migration, and other people read its log.
                    console.print("Make a link for the first administrator: prefloop invite --administrator")
        finally:
            engine.dispose()


def _serve(settings: Settings, url: str, factory: sessionmaker[Session], pause: Pause) -> None:
    environment = _environment(settings, url)
    # Beside an embedded database only this command's children write, and none runs yet; otherwise others may be
    # writing.
    ArtifactStore(settings.artifacts_root, settings.outside_models).sweep(
        older_than_seconds=DAY if settings.database_url else 0
    )
    with _child("web", environment, "-m", "app.cli", "web") as web:
        # before there is a link, because whoever uses the link becomes the project's member
        _make_first_project(factory)
        _wait_until_served(settings, web, pause)
        _print_address(settings, factory)
        _give_first_model(settings, environment, factory, pause)
        with contextlib.ExitStack() as workers:
            worker = workers.enter_context(_child("worker", environment, "-m", "trainer.service.worker"))
            progress = _Progress(factory)
            while web.poll() is None:
                progress.show()
                pause(1)
                if worker.poll() is not None:
                    console.print(f"The worker ended (code {worker.returncode}); starting it again.")
                    pause(2)
                    worker = workers.enter_context(_child("worker", environment, "-m", "trainer.service.worker"))
    raise Unavailable(f"The web service ended with code {web.returncode}.", "Its last lines above say why.")


def _make_first_project(factory: sessionmaker[Session]) -> None:
    """Create the starter project on a first run, still without a model."""
    with factory.begin() as session:
        if starter.is_first_run(session):
            starter.create(session)


def _give_first_model(
    settings: Settings, environment: dict[str, str], factory: sessionmaker[Session], pause: Pause
) -> None:
    """Fetch the starter project's model. If that fails, the next start tries again."""
    with factory.begin() as session:
        project = projects.by_slug(session, starter.SLUG)
        if project is None or project.policy_id is not None:
            return
    try:
        location = _fetch_model(settings, environment, pause)
    except PrefloopError as error:
        console.print(f"[bold]{error.message}[/bold] {error.advice}")
        console.print("Labeling works without it; sampling and training begin once the model is there.")
        return
    with factory.begin() as session:
        project = projects.by_slug(session, starter.SLUG)
        assert project is not None
        store = ArtifactStore(settings.artifacts_root, settings.outside_models)
        starter.use_model(session, store, project, settings.model, location, settings.sampling_server)


def _fetch_model(settings: Settings, environment: dict[str, str], pause: Pause) -> str:
    """Fetch the model and return its location in the store, in a separate process, because this one
    never loads torch."""
    console.print(f"Fetching the model {settings.model}")
    command = ["-m", "trainer.cli", "fetch-model", settings.model, "--store", str(settings.artifacts_root)]
    settings.artifacts_root.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The libraries' progress bars would bury the lines that say what happens.
    environment = environment | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as said, _child("download", environment, *command, stdout=said) as fetching:
        while fetching.poll() is None:
            pause(0.2)
        if fetching.returncode != 0:
            raise Unavailable(f"The model {settings.model} could not be fetched.", "The lines above say why.")
        said.seek(0)
        return said.read().strip().splitlines()[-1]


class _Progress:
    """Prints what the worker does: a line when something begins, ends, or makes noticeable progress."""

    def __init__(self, factory: sessionmaker[Session]) -> None:
        self.factory = factory
        self.shown: dict[int, tuple[str, int]] = {}
        self.next_look = 0.0

    def show(self) -> None:
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + 3
        try:
            with self.factory() as session:
                recent = session.scalars(select(Run).order_by(Run.id.desc()).limit(5)).all()
                # Calibration items are open permanently, so they are not counted.
                is_open = Comparison.state == "open", Comparison.gold.is_(None)
                waiting = session.scalar(select(func.count()).where(*is_open)) or 0
        except Exception as error:  # noqa: BLE001 - an unreachable database must not end the supervisor
            console.print(f"[dim]The database does not answer: {type(error).__name__}[/dim]")
            return
        for run in reversed(recent):
            tenth = 10 * run.progress_done // run.progress_total if run.progress_total else 0
            now = (run.state, tenth)
            if self.shown.get(run.id) == now:
                continue
            first_look = run.id not in self.shown
            self.shown[run.id] = now
            if first_look and run.state in ("succeeded", "failed", "cancelled"):
                continue  # it ended before this start
            share = f" {run.progress_done} of {run.progress_total}" if run.progress_total else ""
            told = f"{run.error}" if run.state == "failed" else run.progress_message
            console.print(f"{run.kind} run {run.id}: {run.state}{share} {told} · {waiting} comparisons to label")


def _print_address(settings: Settings, factory: sessionmaker[Session]) -> None:
    console.print(f"\n[bold]Prefloop is ready: {settings.url}[/bold]   (Ctrl-C stops it)")
    _print_first_link(settings, factory)


def _print_first_link(settings: Settings, factory: sessionmaker[Session]) -> None:
    with factory.begin() as session:
        if accounts.needs_first_admin(session):
            token = accounts.create_link(session, created_by=None, days=settings.link_days, is_admin=True)
            console.print(f"First administrator, one-time link: [bold]{settings.url}/join/{token}[/bold]\n")


def _environment(settings: Settings, url: str) -> dict[str, str]:
    """Return the children's environment: the same settings, and the database that was started."""
    return os.environ | {
        "DATABASE_URL": url,
        "PREFLOOP_HOME": str(settings.home.absolute()),
        "PREFLOOP_HOST": settings.host,
        "PREFLOOP_PORT": str(settings.port),
        "PYTHONUNBUFFERED": "1",
    }


@contextlib.contextmanager
def _child(
    name: str, environment: dict[str, str], *arguments: str, stdout: IO[str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a child process in its own session, so that Ctrl-C reaches only the supervisor, which stops children in
    order."""
    niceness = 10 if name == "worker" else 0  # keeps pages fast while a model trains

    def before_start() -> None:
        os.nice(niceness)
        if sys.platform == "linux":
            # If the supervisor is killed, the kernel ends its children too.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        start_new_session=True,
        preexec_fn=before_start,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            console.print(f"The {name} did not stop in 15 s; killing it.")
            process.kill()
            process.wait()


@contextlib.contextmanager
def _sole_user(home: Path) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"Prefloop is already running with its home in {home}.",
                "Stop it first, or set PREFLOOP_HOME to another folder.",
            ) from None
        yield


class _Stopped(Exception):
    """Somebody asked the supervisor to stop; the context managers then stop the children."""


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[Pause]:
    """Yield the function that the supervisor waits with: after a signal, the next wait ends the block.

    The first signal's handler raises nothing. An exception in the middle of a library may turn into another one
    (psycopg made it a database error, which looked like an outage), and between two of our lines it may leave a process
    behind. A second signal does interrupt, because the block may be waiting for a database that never answers. While
    everything is being stopped, nothing interrupts.
    """
    asked = stopping = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked and not stopping:
            stop()
        asked = True

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while not asked and time.monotonic() < until:
            time.sleep(0.05)
        if asked:
            console.print("\nStopping …")
            stop()

    def stop() -> NoReturn:
        nonlocal stopping
        stopping = True
        raise _Stopped

    before: dict[int, Callable[..., object] | int | None] = {}
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if each == signal.SIGHUP and signal.getsignal(each) == signal.SIG_IGN:
            continue  # started by nohup: losing the terminal is fine
        before[each] = signal.signal(each, note)
    try:
        yield pause
    except Exception:
        if not asked:  # otherwise the stop may have caused it: Ctrl-C also reaches a PostgreSQL that is being set up
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_port(settings: Settings) -> None:
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        raise Conflict(
            f"Port {settings.port} on {settings.host} cannot be used: {error.strerror}.",
            f"Set PREFLOOP_PORT to a free one, for instance PREFLOOP_PORT={settings.port + 1}.",
        ) from error


def _wait_until_served(settings: Settings, web: "subprocess.Popen[bytes]", pause: Pause) -> None:
    deadline = time.monotonic() + 60
    while web.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{settings.local_url}/healthz", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        pause(0.1)
    raise Unavailable("The web service did not start.", "Its lines above say why.")
