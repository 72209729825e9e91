"""Ask the endpoint of an AI judge or critic for one chat completion at a time, with retries and a clear error for every
failure."""

import ipaddress
import json
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from threading import Event, Lock, Timer
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from app.errors import InvalidInput, PrefloopError, Unavailable

CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 60.0  # maximum seconds between retries, even if the endpoint asks for more
MOST_BYTES = 4 << 20  # maximum size of an answer
SHOWN = 300  # maximum characters of an endpoint's error text that a page shows
MOST_TOKENS = 2**30 - 1  # maximum of an answer: the sum of both orders fits a column
# Metadata services of clouds hand out credentials. Most are at link-local addresses; these are not.
METADATA = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")))


class Reply(NamedTuple):
    """An endpoint's answer. `model` is the endpoint's name for the model that gave the answer."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool


class BadAnswer(PrefloopError):
    """The endpoint refused this request, or its answer is not a chat completion. Other questions may succeed."""


class Halted(Exception):
    """The run is ending, so the thread must stop waiting for the endpoint."""


class Endpoint:
    """A judge's endpoint. One instance serves several threads.

    Each request opens its own connection. The connection's address is checked before anything is sent, because a name
    can resolve to another address than a moment ago. The whole answer must arrive within `timeout`.

    Args:
        hosts: hosts that judges may have; empty allows all hosts.
        pause: seconds before the first retry; the pause doubles with every retry.
        halt: set when the run ends and answers are no longer needed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str,
        *,
        timeout: float,
        retries: int,
        max_tokens: int,
        hosts: tuple[str, ...] = (),
        pause: float = 0.5,
        halt: Event | None = None,
    ) -> None:
        self.url, self.model, self._key = url.rstrip("/"), model, key
        self.retries, self.pause, self.halt = retries, pause, halt or Event()
        self._hosts = hosts
        self._settings: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
        # The operator allowed only this endpoint, so prompts must not follow a redirect to another one.
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            follow_redirects=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
        )
        self._timeout = timeout
        self._lines: set[_Line] = set()
        self._changing = Lock()

    def close(self) -> None:
        """Cut all connections, so that no thread keeps waiting."""
        self.halt.set()
        with self._changing:
            under_way = list(self._lines)
        for line in under_way:
            line.cut()
        self._client.close()

    def check(self) -> None:
        """Reject addresses that a judge cannot have, before anything is sent there.

        Raises:
            InvalidInput: PREFLOOP_JUDGE_HOSTS does not list the host, or the host is a link-local or multicast address
                (clouds' metadata services have such addresses).
            Unavailable: the host name cannot be resolved.
        """
        host = urlsplit(self.url).hostname or ""
        if self._hosts and host not in self._hosts:
            raise InvalidInput(
                f"The host {host} is not allowed for judges.",
                "Choose a host that PREFLOOP_JUDGE_HOSTS lists, or ask the operator of this service to add it.",
            )
        try:
            found = {each[4][0] for each in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            raise Unavailable(f"The host {host} is not known: {error}.", "Check the judge's address.") from error
        for each in found:
            _refuse_address(host, str(each))

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Return the endpoint's answer to the messages.

        Raises:
            BadAnswer: the endpoint refuses these messages, or its answer is not a chat completion.
            Unavailable: even after retries, the endpoint is unreachable or overloaded; or it refuses the key or does
                not have the model.
            Halted: the run is ending.
        """
        problem: PrefloopError | None = None
        for attempt in range(self.retries + 1):
            if attempt and self.halt.wait(self._pause(attempt, problem)):
                raise Halted
            if self.halt.is_set():
                raise Halted
            try:
                return self._once(messages)
            except _Again as again:
                problem = again.problem
        assert problem is not None
        problem.message = f"{problem.message.rstrip('.')} ({self.retries + 1} attempts)."
        raise problem

    def _pause(self, attempt: int, problem: PrefloopError | None) -> float:
        asked = getattr(problem, "retry_after", None)
        # Random pauses, so that requests that failed together are not retried together.
        own = self.pause * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        return min(max(own, asked or 0.0), LONGEST_PAUSE)

    def _once(self, messages: list[dict[str, str]]) -> Reply:
        where = f"The endpoint at {self.url}"
        settings = dict(self._settings)
        try:
            status, headers, body = self._post({"model": self.model, "messages": messages, **settings})
        except (httpx.TimeoutException, _TooSlow):
            raise _Again(
                Unavailable(
                    f"{where} did not answer within {self._timeout:g} seconds.",
                    "Allow it more time or ask it less at once, then start the run again: what it answered is kept.",
                )
            ) from None
        except (httpx.TransportError, httpx.InvalidURL, OSError) as error:
            if self.halt.is_set():
                raise Halted from None
            raise _Again(
                Unavailable(
                    f"{where} cannot be reached: {self._shown(str(error) or type(error).__name__)}.",
                    "Start it or correct its address, then start the run again: what it answered is kept.",
                )
            ) from error
        if status == 200:
            return self._read(body)
        said = self._said(body)
        if status in (400, 422) and self._without(said, settings):
            return self._once(messages)
        if status in (400, 413, 422):
            raise BadAnswer(f"The endpoint refuses the question ({status}): {said}")
        if status in (401, 403):
            raise Unavailable(f"{where} refuses the key ({status}): {said}", "Correct the judge's key.")
        if status == 404:
            raise Unavailable(
                f"{where} does not have the model {self.model}, or does not offer chat completions (404): {said}",
                "Correct the model's name or the address, which ends in /v1 on most servers.",
            )
        if 300 <= status < 400:
            raise Unavailable(f"{where} sends requests on to another address.", "Enter the one that answers itself.")
        failed = Unavailable(
            f"{where} answered {status}: {said}", "Look at its log, then start the run again: what it answered is kept."
        )
        if status in (408, 425, 429) or status >= 500:
            failed.retry_after = _retry_after(headers)  # type: ignore[attr-defined]
            raise _Again(failed)
        raise failed

    def _post(self, sent: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        with (
            self._line() as line,
            self._client.stream(
                "POST", f"{self.url}/chat/completions", json=sent, extensions={"trace": line.opened}
            ) as response,
        ):
            # A few compressed bytes can hold gigabytes, and nobody asked for them.
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BadAnswer("The answer is compressed, though the request allows no compression.")
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if len(body) > MOST_BYTES:
                    raise BadAnswer(f"The answer is longer than {MOST_BYTES >> 20} MB.")
        return response.status_code, response.headers, bytes(body)

    @contextmanager
    def _line(self) -> Iterator["_Line"]:
        """The connection of one request, which is cut when its time is over or the run ends.

        Raises:
            _TooSlow: its time was over.
        """
        line = _Line(urlsplit(self.url).hostname or "")
        alarm = Timer(self._timeout, line.cut, (True,))
        alarm.daemon = True
        with self._changing:
            self._lines.add(line)
        alarm.start()
        try:
            yield line
            if line.is_late:  # an answer without a length ends where it was cut
                raise _TooSlow
        except (httpx.TransportError, OSError):
            if line.is_late:
                raise _TooSlow from None
            raise
        finally:
            alarm.cancel()
            with self._changing:
                self._lines.discard(line)
            line.close()

    def _without(self, said: str, sent: dict[str, Any]) -> bool:
        """Change or remove a setting that the endpoint rejects, as newer models do; return whether to ask again."""
        settings = dict(sent)
        if "max_tokens" in said and "max_tokens" in settings:
            settings["max_completion_tokens"] = settings.pop("max_tokens")
        elif "temperature" in said:
            settings.pop("temperature", None)
        if settings == sent:
            return False
        self._settings = settings
        return True

    def _read(self, body: bytes) -> Reply:
        try:
            said = json.loads(body)
            choice, usage = said["choices"][0], said.get("usage") or {}
            content = choice["message"].get("content") or ""
            if not isinstance(content, str):
                raise TypeError("its content is not a text")
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            if min(tokens) < 0 or max(tokens) > MOST_TOKENS:
                raise ValueError("its token counts are invalid")
            model = self._shown(said.get("model") or "")
        except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise BadAnswer(
                f"The answer is not a chat completion ({self._shown(f'{type(error).__name__}: {error}')}): "
                f"{self._shown(body[:2000].decode(errors='replace'))}"
            ) from error
        # JSON may hold halves of surrogate pairs and NUL, which the database does not accept.
        text = self._without_key(content.replace("\0", "").encode(errors="replace").decode())
        return Reply(text, model, tokens[0], tokens[1], choice.get("finish_reason") == "length")

    def _said(self, body: bytes) -> str:
        """Return the endpoint's own error text."""
        try:
            said = json.loads(body)
            error = said.get("error", said) if isinstance(said, dict) else said
            said = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
            return self._shown(said) or "nothing more"
        except (ValueError, RecursionError):
            return self._shown(body[:2000].decode(errors="replace")) or "nothing more"

    def _shown(self, said: Any) -> str:
        """Truncate an endpoint's text to `SHOWN` printable characters, without the key, which some endpoints quote."""
        text = self._without_key(str(said)).encode(errors="replace").decode()
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SHOWN]

    def _without_key(self, said: str) -> str:
        return said.replace(self._key, "...") if self._key else said


class _Line:
    """The connection of one request. It is cut through a copy of its socket: TLS takes the socket itself over."""

    def __init__(self, host: str) -> None:
        self.is_late = False
        self._host, self._is_cut = host, False
        self._changing = Lock()
        self._socket: socket.socket | None = None

    def opened(self, event: str, info: dict[str, Any]) -> None:
        """What httpx calls at each step of a request; here when the connection stands and before anything is sent.

        Raises:
            InvalidInput: no judge is at the address that it leads to.
        """
        if not event.endswith("connection.connect_tcp.complete"):
            return
        stream = info["return_value"]
        _refuse_address(self._host, str(stream.get_extra_info("server_addr")[0]))
        with self._changing:
            self._socket = stream.get_extra_info("socket").dup()
            self._shut()

    def cut(self, is_late: bool = False) -> None:
        with self._changing:
            self.is_late, self._is_cut = self.is_late or is_late, True
            self._shut()

    def _shut(self) -> None:
        if self._is_cut and self._socket is not None:
            with suppress(OSError):  # the other side was quicker
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with self._changing:
            if self._socket is not None:
                self._socket.close()
                self._socket = None


def _refuse_address(host: str, at: str) -> None:
    """Raises InvalidInput for addresses at which no judge is."""
    address = ipaddress.ip_address(at.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None) or address
    if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified or mapped in METADATA:
        raise InvalidInput(f"{host} is {mapped}: no judge is at such an address.", "Check the judge's address.")


class _TooSlow(Exception):
    """The answer was not there in time."""


class _Again(Exception):
    """A failure that may be temporary, so the request is retried."""

    def __init__(self, problem: PrefloopError) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _retry_after(headers: httpx.Headers) -> float | None:
    """Return the pause in seconds that the endpoint asks for, if any."""
    said = headers.get("retry-after", "")
    if said.isdecimal() and len(said) < 9:
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time()) if said else None
    except (ValueError, TypeError, OverflowError):
        return None
