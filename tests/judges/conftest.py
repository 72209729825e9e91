"""A judge's endpoint as a separate process, one per test process."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from tests.waiting import wait_for


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/asked").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="session")
def endpoint() -> Iterator[str]:
    """Its address without /v1; `GET /asked` there returns the requests it received."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "tests.judges.endpoint", str(port)])
    try:
        wait_for(lambda: _answers(url), "the endpoint")
        yield url
    finally:
        process.kill()
        process.wait()
