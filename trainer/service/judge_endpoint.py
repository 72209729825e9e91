"""Ask an AI judge's endpoint for one chat completion at a time, with retries and a clear error for every failure."""

import ipaddress
import json
import random
import socket
from email.utils import parsedate_to_datetime
from threading import Event
from time import time
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from app.errors import InvalidInput, PrefloopError, Unavailable

CONNECT_SECONDS = 10.0
LONGEST_PAUSE = 60.0  # maximum seconds between retries, even if the endpoint asks for more
MOST_BYTES = 4 << 20  # maximum size of an answer
SHOWN = 300  # maximum characters of an endpoint's error text that a page shows


class Reply(NamedTuple):
    """An endpoint's answer. `model` is the endpoint's name for the model that gave the answer."""

    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    is_cut: bool


class BadAnswer(PrefloopError):
    """The endpoint refused this request, or its answer is not a chat completion. Other comparisons may succeed."""


class Halted(Exception):
    """The run is ending, so the thread must stop waiting for the endpoint."""


class Endpoint:
    """A judge's endpoint. One instance serves several threads.

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
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        self._timeout = timeout

    def close(self) -> None:
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
            address = ipaddress.ip_address(str(each).partition("%")[0])
            mapped = getattr(address, "ipv4_mapped", None) or address
            if mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified:
                raise InvalidInput(f"{host} is {mapped}: no judge is at such an address.", "Check the judge's address.")

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
        except httpx.TimeoutException:
            raise _Again(
                Unavailable(
                    f"{where} did not answer within {self._timeout:g} seconds.",
                    "Allow it more time or fewer requests at once, then start the run again: its verdicts are kept.",
                )
            ) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _Again(
                Unavailable(
                    f"{where} cannot be reached: {self._shown(str(error) or type(error).__name__)}.",
                    "Start it or correct its address, then start the run again: its verdicts are kept.",
                )
            ) from error
        if status == 200:
            return self._read(body)
        said = self._said(body)
        if status in (400, 422) and self._without(said, settings):
            return self._once(messages)
        if status in (400, 413, 422):
            raise BadAnswer(f"The endpoint refuses the comparison ({status}): {said}")
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
            f"{where} answered {status}: {said}", "Look at its log, then start the run again: its verdicts are kept."
        )
        if status in (408, 425, 429) or status >= 500:
            failed.retry_after = _retry_after(headers)  # type: ignore[attr-defined]
            raise _Again(failed)
        raise failed

    def _post(self, sent: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        with self._client.stream("POST", f"{self.url}/chat/completions", json=sent) as response:
            body = bytearray()
            for piece in response.iter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise BadAnswer(f"The answer is longer than {MOST_BYTES >> 20} MB.")
            return response.status_code, response.headers, bytes(body)

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
            if min(tokens) < 0 or max(tokens) >= 2**31:
                raise ValueError("its token counts are invalid")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise BadAnswer(
                f"The answer is not a chat completion ({self._shown(f'{type(error).__name__}: {error}')}): "
                f"{self._shown(body[:2000].decode(errors='replace'))}"
            ) from error
        # JSON may hold halves of surrogate pairs and NUL, which the database does not accept.
        text = content.replace("\0", "").encode(errors="replace").decode()
        model = self._shown(said.get("model") or "")
        return Reply(text, model, tokens[0], tokens[1], choice.get("finish_reason") == "length")

    def _said(self, body: bytes) -> str:
        """Return the endpoint's own error text."""
        try:
            said = json.loads(body)
            error = said.get("error", said) if isinstance(said, dict) else said
            said = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
        except (ValueError, RecursionError):
            said = body[:2000].decode(errors="replace")
        return self._shown(said) or "nothing more"

    def _shown(self, said: Any) -> str:
        """Truncate an endpoint's text to `SHOWN` printable characters, without the key, which some endpoints quote."""
        text = str(said).replace(self._key, "...") if self._key else str(said)
        text = text.encode(errors="replace").decode()
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:SHOWN]


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
