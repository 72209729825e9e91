"""Sampling through an OpenAI-compatible server (vLLM and others), for models that this machine would sample slowly.

The official client does the talking: it repeats what failed by chance (429, 5xx, no answer in time, a connection that
broke) after growing pauses, or those the server asks for. Each sample is a request of its own, with a seed of its own.
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

HAND_ON_SECONDS = 0.5  # what has arrived is handed on this often
CONNECT_SECONDS = 10.0  # more than any server needs to be there at all

# Training assumes samples from the policy itself, and servers cut the distribution by default (vLLM as the model's
# generation_config.json says, llama.cpp at 40 tokens). Beyond the protocol: servers that refuse it are asked without.
WHOLE_DISTRIBUTION = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


class Answer(NamedTuple):
    """One response of a server.

    Attributes:
        seed: what the request carried (31 bits: servers differ in how many they keep).
        finished: whether the model ended its turn; False when it was cut by length.
        n_tokens: tokens sampled, as the server counts them.
    """

    row: PromptRow
    sample_index: int
    seed: int
    text: str
    finished: bool
    n_tokens: int


class ServedModel:
    """A model that a server samples from."""

    def __init__(self, server: Server, key: str | None) -> None:
        self.server, self._key = server, (key or "").strip()
        self._beyond_protocol = dict(WHOLE_DISTRIBUTION)

    def check(self) -> None:
        """Asks which models the server has, so that a wrong address, key or name shows before work begins.

        An address or a key that cannot be one is not asked at all: the client's own errors quote them.

        Raises:
            Unavailable: there is no server, or it refuses the key.
            ModelUnavailable: it does not serve the model.
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
        except ValueError:  # a port or a bracket that is none
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
        """The samples with the wanted indices of each prompt, as they arrive; prompts in an order `order` decides.

        The server is kept busy while the caller works on what has arrived. Closing the iterator cancels the requests
        under way. Before an error all that has arrived is handed on.

        Raises:
            Unavailable: the server is away, overloaded or talks something else, also after the retries.
            ModelUnavailable: it does not serve the model.
            InvalidInput: it refuses a prompt, most often for its length.
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
                raise errors.exceptions[0] from errors.exceptions[0].__cause__  # the others were cancelled for it

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
            await self._names(client)  # says it better
            where = f"The server at {self.server.url}"
            raise Unavailable(f"{where} does not complete chats: {self._said(error)}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from error
        try:
            return self._read(reply, row, index, seed)
        except (AttributeError, TypeError, ValueError) as error:
            # The client takes any JSON object for what it was to be.
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
        # What a reasoning parser takes out of the answer belongs to the sample as much as the rest.
        if any(getattr(choice.message, name, None) for name in ("reasoning_content", "reasoning")):
            raise Unavailable(
                f"The server at {self.server.url} keeps the reasoning apart from its answer to prompt {row.id}.",
                "Start it without a reasoning parser: a sample is all that the model said.",
            )
        text, finished = choice.message.content or "", choice.finish_reason == "stop"
        if not isinstance(text, str):
            raise TypeError(f"its content is {type(text).__name__}")
        whole = text.encode(errors="replace").decode()  # JSON may hold halves of surrogate pairs, no text file may
        return Answer(row, index, seed, whole, finished, int(usage.completion_tokens))

    async def _names(self, client: AsyncOpenAI) -> None:
        """Raises the error of a server that cannot be asked or does not have the model; a server may list none."""
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
        """The error, for whoever reads the run's page, of a request that did not succeed in all its attempts."""
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
        """What the server itself says."""
        body = error.body
        return self._shown(
            (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else (body or error.message)
        )

    def _shown(self, said: Any, most: int = 300) -> str:
        """At most so many characters of what came from the server, as a page and a database can show them."""
        text = str(said).replace(self._key, "...") if self._key else str(said)  # some quote the key they refuse
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:most]

    def _client(self) -> AsyncOpenAI:
        seconds = self.server.timeout_seconds
        return AsyncOpenAI(
            base_url=self.server.url,
            api_key=self._key or "none",  # servers without keys ignore it, the client insists
            timeout=openai.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS)),
            max_retries=self.server.retries,
            # The operator named this server and no other: prompts go to none that it points to.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )


@contextmanager
def _loop_in_background() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs whatever this thread does; on leaving, what still runs in it is cancelled."""
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
    """Ends all other tasks of the loop. Their errors have been raised where somebody waited for them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
