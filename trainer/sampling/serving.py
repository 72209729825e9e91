"""Sampling through an OpenAI-compatible server (vLLM and others), for models that this machine would sample slowly.

The official client sends the requests. After a temporary failure (429, 5xx, timeout, broken connection) it retries,
with growing pauses or those the server asks for. Each sample is a separate request with its own seed.
"""

import asyncio
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import openai
import torch
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from app.errors import InvalidInput, ModelUnavailable, PrefloopError, Unavailable
from app.rows import PromptRow
from app.specs import Generation, Server
from trainer.sampling.responses import Tick, no_tick, sample_seed

log = logging.getLogger(__name__)

HAND_ON_SECONDS = 0.5  # how often answers that have arrived are yielded
CONNECT_SECONDS = 10.0  # more than any server needs to accept a connection

# Training assumes samples from the policy itself, but servers cut the distribution by default (vLLM according to the
# model's generation_config.json, llama.cpp to 40 tokens). These fields are not in the OpenAI protocol; if a server
# refuses a field, the request is repeated without it.
WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class Answer(NamedTuple):
    """One response of a server.

    Attributes:
        seed: the seed of the request (31 bits, because servers differ in how many bits they keep).
        finished: whether the model ended its turn; False if it was cut by length.
        n_tokens: number of sampled tokens, as counted by the server.
    """

    row: PromptRow
    sample_index: int
    seed: int
    text: str
    finished: bool
    n_tokens: int


class ServedModel:
    """A model on a sampling server."""

    def __init__(self, server: Server, key: str | None) -> None:
        self.server, self._key = server, (key or "").strip()
        self._beyond_protocol = dict(WHOLE_DISTRIBUTION)

    def check(self) -> None:
        """Ask the server for its models, so that a wrong address, key or name is reported before the run starts.

        A malformed address or key is refused before any request, because the client's own errors would quote it.

        Raises:
            Unavailable: there is no server, or it refuses the key.
            ModelUnavailable: the server does not serve the model.
        """

        async def ask() -> None:
            async with self._client() as client:
                await self._names(client)

        if not re.fullmatch(r"[\x20-\x7e]*", self._key):
            raise Unavailable(
                "The key of the sampling server holds characters that no key has, such as a line end.",
                "Set PREFLOOP_SAMPLING_KEY to the key alone.",
            )
        try:
            address = urlsplit(self.server.url)
            whole = address.scheme in ("http", "https") and address.hostname and address.port != 0
            whole = whole and self.server.url.isprintable() and " " not in self.server.url
        except ValueError:  # an invalid port or bracket
            whole = False
        if not whole:
            raise Unavailable(
                f"“{self.server.url}” is not the address of a server.",
                "Set PREFLOOP_SAMPLING_URL to one such as http://127.0.0.1:8001/v1.",
            )
        asyncio.run(ask())

    def respond(
        self,
        wanted: Sequence[tuple[PromptRow, Sequence[int]]],
        generation: Generation,
        seed: int,
        order: torch.Generator,
        tick: Tick = no_tick,
    ) -> Iterator[list[Answer]]:
        """Yield the samples with the wanted indices of each prompt as they arrive; `order` shuffles the prompts.

        Requests continue while the caller processes a batch. Closing the iterator cancels the running requests. Before
        an error is raised, all samples that have arrived are yielded.

        Raises:
            Unavailable: even after retries, the server is unreachable, overloaded or not compatible.
            ModelUnavailable: the server does not serve the model.
            InvalidInput: the server refuses a prompt, usually because it is too long.
        """
        shuffled = [wanted[i] for i in torch.randperm(len(wanted), generator=order).tolist()]
        requests = deque((row, index) for row, indices in shuffled for index in indices)
        arrived: deque[Answer] = deque()

        async def work(client: AsyncOpenAI) -> None:
            while requests:
                arrived.append(await self._ask(client, *requests.popleft(), generation, seed))

        async def work_on_all() -> None:
            try:
                async with self._client() as client, asyncio.TaskGroup() as workers:
                    for _ in range(min(self.server.concurrency, len(requests))):
                        workers.create_task(work(client))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from errors.exceptions[0].__cause__  # it cancelled the other workers

        with _loop_in_background() as loop:
            work_under_way = asyncio.run_coroutine_threadsafe(work_on_all(), loop)
            ended = False
            while not ended:
                ended = bool(wait([work_under_way], timeout=HAND_ON_SECONDS).done)
                if batch := [arrived.popleft() for _ in range(len(arrived))]:
                    yield batch
                tick()
            work_under_way.result()

    async def _ask(
        self, client: AsyncOpenAI, row: PromptRow, index: int, generation: Generation, run_seed: int
    ) -> Answer:
        seed = sample_seed(run_seed, "sample", row.id, index) >> 32
        messages: Any = list(row.messages)
        beyond_protocol = self._beyond_protocol
        try:
            reply = await client.chat.completions.create(
                model=self.server.model,
                messages=messages,
                temperature=generation.temperature,
                top_p=1.0,
                max_tokens=generation.max_new_tokens,
                n=1,
                seed=seed,
                extra_body=beyond_protocol,
            )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            if refused := {name for name in beyond_protocol if name in str(error)}:
                self._ask_without(refused)
                return await self._ask(client, row, index, generation, run_seed)
            raise self._refused(row, error) from error
        except openai.NotFoundError as error:
            await self._names(client)  # gives a clearer error if the model or the address is wrong
            where = f"The server at {self.server.url}"
            raise Unavailable(f"{where} does not complete chats: {self._said(error)}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from error
        try:
            return self._read(reply, row, index, seed)
        except (AttributeError, TypeError, ValueError) as error:
            # The client accepts any JSON object as a reply, so fields may be missing or have other types.
            raise self._failed(ValueError(f"an answer that is not a chat completion ({error})")) from error

    def _ask_without(self, names: set[str]) -> None:
        left = {name: value for name, value in self._beyond_protocol.items() if name not in names}
        if left != self._beyond_protocol:
            log.warning(
                "The server at %s does not take %s: make sure that it samples the whole distribution by itself.",
                *(self.server.url, ", ".join(sorted(names))),
            )
        self._beyond_protocol = left

    def _read(self, reply: Any, row: PromptRow, index: int, seed: int) -> Answer:
        if not isinstance(reply, ChatCompletion) or not isinstance(reply.choices, list):
            raise TypeError("it has no choices")
        if not reply.choices:
            raise Unavailable(
                f"The server at {self.server.url} answered prompt {row.id} without a choice.",
                "Look at its log; then retry: what was sampled is kept.",
            )
        choice, usage = reply.choices[0], reply.usage
        if choice.finish_reason not in ("stop", "length"):
            raise Unavailable(
                f"The server at {self.server.url} ended its answer to prompt {row.id} by "
                f"{self._shown(choice.finish_reason)}, neither by its end nor by length.",
                "Turn filters and tools off there: they would make the samples another model's.",
            )
        if usage is None:
            raise Unavailable(
                f"The server at {self.server.url} does not say how many tokens it sampled (usage.completion_tokens).",
                "Sample from a server that does, such as vLLM.",
            )
        # Text that a reasoning parser removes from the answer is part of the sample too.
        if any(getattr(choice.message, name, None) for name in ("reasoning_content", "reasoning")):
            raise Unavailable(
                f"The server at {self.server.url} keeps the reasoning apart from its answer to prompt {row.id}.",
                "Start it without a reasoning parser: a sample is all that the model said.",
            )
        text, finished = choice.message.content or "", choice.finish_reason == "stop"
        if not isinstance(text, str):
            raise TypeError(f"its content is {type(text).__name__}")
        whole = text.encode(errors="replace").decode()  # JSON may hold half a surrogate pair, which UTF-8 cannot
        return Answer(row, index, seed, whole, finished, int(usage.completion_tokens))

    async def _names(self, client: AsyncOpenAI) -> None:
        """Raise an error if the server does not answer or does not list the model; an empty list is accepted."""
        try:
            names = [model.id async for model in client.models.list()]
        except openai.NotFoundError as error:
            raise Unavailable(
                f"There is no OpenAI-compatible server at {self.server.url}: {self._said(error)}",
                "Set PREFLOOP_SAMPLING_URL to its address up to and including /v1.",
            ) from error
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise self._failed(error) from error
        if names and self.server.model not in names:
            served = self._shown(", ".join(map(str, names[:20])), most=2000)
            served += f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise ModelUnavailable(
                f"The server at {self.server.url} does not serve {self.server.model}; it serves {served}.",
                "Load the model there under that name, or set PREFLOOP_SAMPLING_MODEL to the name it has.",
            )

    def _refused(self, row: PromptRow, error: openai.APIStatusError) -> InvalidInput:
        said = self._said(error)
        advice = "Mend the prompt or withdraw it; then retry: what was sampled is kept."
        if re.search(r"context|max_model_len|too long", said, re.IGNORECASE):
            advice = "Ask for fewer new tokens, shorten the prompt, or serve the model with a longer context."
        return InvalidInput(f"The server at {self.server.url} refuses prompt {row.id}: {said}", advice)

    def _failed(self, error: Exception) -> PrefloopError:
        """Return the error to show on the run's page for a request that failed in all its attempts."""
        where, attempts = f"The server at {self.server.url}", self.server.retries + 1
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return Unavailable(
                    f"{where} refuses the key: {self._said(error)}", "Set PREFLOOP_SAMPLING_KEY to one it takes."
                )
            case openai.APITimeoutError():
                return Unavailable(
                    f"{where} did not answer within {self.server.timeout_seconds:g} seconds, {attempts} times.",
                    "Allow it more time or ask it less at once; then retry: what was sampled is kept.",
                )
            case openai.APIConnectionError():
                reason = error.__cause__ or error
                return Unavailable(
                    f"{where} cannot be reached ({attempts} attempts): {reason or type(reason).__name__}.",
                    "Start it, or set PREFLOOP_SAMPLING_URL to its address; then retry: what was sampled is kept.",
                )
            case openai.APIStatusError() if error.response.is_redirect:
                return Unavailable(
                    f"{where} sends requests on to another address.",
                    "Set PREFLOOP_SAMPLING_URL to the address that answers itself.",
                )
            case openai.APIStatusError():
                return Unavailable(
                    f"{where} answered {error.status_code} to {attempts} attempts: {self._said(error)}",
                    "Look at its log; then retry: what was sampled is kept.",
                )
        return Unavailable(
            f"{where} does not answer as an OpenAI-compatible server does: {error}.",
            "Set PREFLOOP_SAMPLING_URL to the address of one, up to and including /v1.",
        )

    def _said(self, error: openai.APIStatusError) -> str:
        """Return the server's own error text."""
        body = error.body
        return self._shown(
            (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else (body or error.message)
        )

    def _shown(self, said: Any, most: int = 300) -> str:
        """Truncate a server's answer to `most` characters of text that pages and PostgreSQL accept."""
        text = str(said).replace(self._key, "...") if self._key else str(said)  # some servers quote a refused key
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]

    def _client(self) -> AsyncOpenAI:
        seconds = self.server.timeout_seconds
        return AsyncOpenAI(
            base_url=self.server.url,
            api_key=self._key or "none",  # the client requires a key; servers without keys ignore it
            timeout=openai.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            max_retries=self.server.retries,
            # The operator allowed only this server, so prompts must not follow a redirect to another one.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )


@contextmanager
def _loop_in_background() -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in a background thread; on exit, cancel the tasks that still run in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="requests", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_the_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_the_others() -> None:
    """Cancel all other tasks of the loop. Errors of the work itself were raised by its future."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
