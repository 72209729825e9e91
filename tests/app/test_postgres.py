"""The embedded PostgreSQL runs as long as the last command that uses it, however the commands end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app.errors import Unavailable
from app.postgres import database
from app.settings import Settings
from tests.waiting import wait_for

USE = """
import sys
from pathlib import Path
from app.postgres import database
from app.settings import Settings
with database(Settings(home=Path(sys.argv[1]), database_url=None, _env_file=None)) as url:
    print(url, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pf-") as folder:
        yield Path(folder)


def use(home: Path) -> "tuple[subprocess.Popen[str], str]":
    """Start a command that uses the database until it reads a line; return it once it has the URL."""
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    process = subprocess.Popen(
        [sys.executable, "-c", USE, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def leave(process: "subprocess.Popen[str]") -> None:
    process.communicate("\n", timeout=30)
    assert process.returncode == 0


def answers(url: str) -> bool:
    try:
        psycopg.connect(url, connect_timeout=30).close()
    except psycopg.OperationalError:
        return False
    return True


def test_the_server_outlives_a_command_while_another_uses_it(home: Path) -> None:
    first, url = use(home)
    second, same = use(home)
    assert url == same
    leave(first)
    assert answers(url)
    leave(second)
    assert not answers(url)


def test_after_sigkill_the_next_command_takes_the_server_over_and_stops_it(home: Path) -> None:
    killed, url = use(home)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert answers(url)
    following, same = use(home)
    assert url == same
    leave(following)
    assert not answers(url)


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def test_a_web_service_that_is_told_to_end_stops_the_server(home: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment |= {"PREFLOOP_HOME": str(home), "PREFLOOP_PORT": str(port)}
    command = [sys.executable, "-m", "app.cli"]
    first, url = use(home)
    subprocess.run([*command, "migrate"], env=environment, check=True, capture_output=True)
    web = subprocess.Popen([*command, "web"], env=environment)
    wait_for(lambda: is_open(port), "the web service")
    leave(first)
    assert answers(url)
    web.terminate()
    web.wait(timeout=60)
    assert not answers(url)


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, database_url="postgresql://nobody@127.0.0.1:1/none", _env_file=None)
    with pytest.raises(Unavailable, match="does not answer"), database(settings):
        pass


@pytest.mark.parametrize("whose", ["link", "open to all", "somebody else's", "file"])
def test_a_temporary_folder_that_somebody_else_made_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Its name can be guessed, and it may contain the server's socket."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"prefloop-{os.getuid()}"
    match whose:
        case "link":
            (tmp_path / "theirs").mkdir(mode=0o700)
            folder.symlink_to(tmp_path / "theirs")
        case "open to all":
            folder.mkdir()
            folder.chmod(0o777)
        case "somebody else's":
            folder.mkdir(mode=0o700)
            found, theirs = Path.lstat, os.getuid() + 1  # only root could give the folder away

            def lstat(path: Path) -> os.stat_result:
                values = list(found(path))
                return os.stat_result([*values[:4], theirs, *values[5:]])

            monkeypatch.setattr(Path, "lstat", lstat)
        case "file":
            folder.touch()
    settings = Settings(home=home, database_url=None, _env_file=None)
    with pytest.raises(Unavailable, match="made by another user"), database(settings):
        pass
