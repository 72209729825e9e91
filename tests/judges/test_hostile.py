"""Endpoints that mean harm: what they answer ends no run with a crash, holds no worker, and leads nowhere else."""

import gzip
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from threading import Event, Thread
from typing import Any

import pytest

from app.errors import InvalidInput, PrefloopError, Unavailable
from trainer.service import judge_endpoint
from trainer.service.judge_endpoint import BadAnswer, Endpoint, Halted

ANSWER = json.dumps(
    {
        "model": "m",
        "choices": [{"message": {"content": "Verdict: 1 for sk-secret"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 1},
    }
).encode()


def http(body: bytes, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n%s" % (len(body), head, body)


class Server:
    """Answers every request with these bytes, then with the piece again and again until the other side hangs up."""

    def __init__(self) -> None:
        self.answer, self.piece, self.asked = b"", b"", Event()
        self.ended = Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self._socket.accept()
            except OSError:
                return
            Thread(target=self._one, args=(line,), daemon=True).start()

    def _one(self, line: socket.socket) -> None:
        with line, suppress(OSError):
            sent = line.recv(1 << 20)
            if not sent:
                return
            while b'"messages"' not in sent:
                sent += line.recv(1 << 20)
            self.asked.set()
            line.sendall(self.answer)
            while self.piece and not self.ended.wait(0.05):
                line.sendall(self.piece)
            line.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.ended.set()
        self._socket.close()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


def endpoint(server: Server, host: str = "127.0.0.1", **values: Any) -> Endpoint:
    given = {"timeout": 30.0, "retries": 0, "max_tokens": 10} | values
    return Endpoint(f"http://{host}:{server.port}/v1", "m", "sk-secret", **given)


def ask(server: Server, **values: Any) -> judge_endpoint.Reply:
    return endpoint(server, **values).ask([{"role": "user", "content": "?"}])


def tokens(n: str) -> bytes:
    return ANSWER.replace(b'"prompt_tokens": 7', b'"prompt_tokens": ' + n.encode())


@pytest.mark.parametrize(
    "answer",
    [
        http(tokens("1e999")),
        http(tokens("NaN")),
        http(tokens("-1")),
        http(tokens(str(2**31 - 1))),  # both orders together would not fit their column
        http(ANSWER, b"Content-Encoding: gzip\r\n"),
        http(gzip.compress(gzip.compress(bytes(50_000_000))), b"Content-Encoding: gzip, gzip\r\n"),
        http(ANSWER.replace(b'"m"', b"[" * 100_000 + b"]" * 100_000)),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5 << 20),
    ],
    ids=["infinite", "nan", "negative", "too-many", "not-gzip", "bomb", "deep", "long"],
)
def test_an_answer_that_is_none_is_an_error_of_its_comparison(server: Server, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(BadAnswer):
        ask(server)


def test_an_answer_that_quotes_the_key_is_stored_without_it(server: Server) -> None:
    server.answer = http(ANSWER)
    assert ask(server).text == "Verdict: 1 for ..."


@pytest.mark.parametrize(
    ("answer", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\nX-More: ", b"a"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
    ids=["body", "body-without-length", "header", "hints"],
)
def test_an_answer_that_trickles_in_for_ever_is_late(server: Server, answer: bytes, piece: bytes) -> None:
    server.answer, server.piece = answer, piece
    with pytest.raises(Unavailable, match=r"did not answer within 0\.5 seconds"):
        ask(server, timeout=0.5)


def test_whoever_waits_for_an_answer_stops_when_the_run_ends(server: Server) -> None:
    server.piece = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    one = endpoint(server, timeout=3600.0)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            one.ask([])
        except (Halted, PrefloopError) as error:
            raised.append(error)

    thread = Thread(target=wait, daemon=True)
    thread.start()
    assert server.asked.wait(30)
    one.close()
    thread.join(30)
    assert [type(error) for error in raised] == [Halted]


def test_a_name_that_leads_elsewhere_after_the_check_gets_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check sees a public address; the connection goes to one that is refused. It stands for 169.254.169.254."""
    found: Callable[..., Any] = socket.getaddrinfo
    leads_to = ["93.184.216.34", "127.0.0.1"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: found(leads_to.pop(0), *more, **named))
    monkeypatch.setattr(judge_endpoint, "METADATA", {ip_address("127.0.0.1")})
    one = endpoint(server, "judge.example")
    one.check()
    with pytest.raises(InvalidInput, match=r"judge\.example is 127\.0\.0\.1: no judge is at such an address"):
        one.ask([])
    assert not server.asked.is_set()
    assert leads_to == []


@pytest.mark.parametrize("host", ["[fd00:ec2::254]", "100.100.100.200", "[::ffff:169.254.169.254]", "2852039166"])
def test_metadata_services_are_no_judges(server: Server, host: str) -> None:
    with pytest.raises(InvalidInput, match="no judge is at such an address"):
        endpoint(server, host).check()
