"""Sampling through an OpenAI-compatible server (vLLM and others), for models that this machine would sample slowly.

The official client does the talking: it repeats what failed by chance (429, 5xx, no answer in time, a connection that
broke) after growing pauses, or those the server asks for. Each sample is a request of its own, with a seed of its own.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import openai
import torch
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion

from app.errors import InvalidInput, ModelUnavailable, PrefloopError, Unavailable
from app.specs import Generation, PromptRow, Server
from trainer.rollout import Tick, no_tick, sample_seed

HAND_ON_SECONDS = 0.5  # what has arrived is handed on this often

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
        self.server, self._key = server, key
        self._beyond_protocol = dict(WHOLE_DISTRIBUTION)

    def check(self) -> None:
        """Asks which models the server has, so that a wrong address, key or name shows before work begins.

        Raises:
            Unavailable: there is no server, or it refuses the key.
            ModelUnavailable: it does not serve the model.
        """

        async def ask() -> None:
            async with self._client() as client:
                await self._names(client)

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

        Closing the iterator cancels the requests under way. Before an error all that has arrived is handed on.

        Raises:
            Unavailable: the server is away, overloaded or talks something else, also after the retries.
            ModelUnavailable: it does not serve the model.
            InvalidInput: it refuses a prompt, most often for its length.
        """
        shuffled = [wanted[i] for i in torch.randperm(len(wanted), generator=order).tolist()]
        requests = iter([(row, index) for row, indices in shuffled for index in indices])
        arrived: list[Answer] = []

        async def work(client: AsyncOpenAI) -> None:
            for row, index in requests:
                arrived.append(await self._ask(client, row, index, generation, seed))

        async def start() -> tuple[AsyncOpenAI, set[asyncio.Task[None]]]:
            client = self._new_client()
            count = min(self.server.concurrency, sum(len(indices) for _, indices in wanted))
            return client, {asyncio.create_task(work(client)) for _ in range(count)}

        with asyncio.Runner() as runner:  # cancels what still runs when it is left
            client, workers = runner.run(start())
            ended: set[asyncio.Task[None]] = set()
            try:
                while workers:
                    waiting = asyncio.wait(workers, timeout=HAND_ON_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
                    newly_ended, workers = runner.run(waiting)
                    ended |= newly_ended
                    if arrived:
                        batch = arrived[:]
                        arrived.clear()
                        yield batch
                    for worker in newly_ended:
                        worker.result()
                    tick()
            finally:
                for worker in workers:
                    worker.cancel()
                runner.run(_settle([*workers, *ended]))
                runner.run(client.close())

    async def _ask(
        self, client: AsyncOpenAI, row: PromptRow, index: int, generation: Generation, run_seed: int
    ) -> Answer:
        seed = sample_seed(run_seed, row.id, index) >> 32
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
            if beyond_protocol and any(name in str(error) for name in beyond_protocol):
                self._beyond_protocol = {}
                return await self._ask(client, row, index, generation, run_seed)
            raise self._refused(row, error) from error
        except openai.NotFoundError as error:
            await self._names(client)  # says it better
            raise Unavailable(f"The server at {self.server.url} does not complete chats: {_said(error)}") from error
        except (openai.OpenAIError, ValueError) as error:
            raise self._failed(error) from error
        return self._read(reply, row, index, seed)

    def _read(self, reply: Any, row: PromptRow, index: int, seed: int) -> Answer:
        if not isinstance(reply, ChatCompletion) or not isinstance(reply.choices, list):
            raise self._failed(ValueError("an answer that is not a chat completion"))
        if not reply.choices:
            raise Unavailable(
                f"The server at {self.server.url} answered prompt {row.id} without a choice.",
                "Look at its log; then retry: what was sampled is kept.",
            )
        choice, usage = reply.choices[0], reply.usage
        if choice.finish_reason not in ("stop", "length"):
            raise Unavailable(
                f"The server at {self.server.url} ended its answer to prompt {row.id} by {choice.finish_reason}, "
                "neither by its end nor by length.",
                "Turn filters and tools off there: they would make the samples another model's.",
            )
        if usage is None:
            raise Unavailable(
                f"The server at {self.server.url} does not say how many tokens it sampled (usage.completion_tokens).",
                "Sample from a server that does, such as vLLM.",
            )
        finished = choice.finish_reason == "stop"
        return Answer(row, index, seed, choice.message.content or "", finished, usage.completion_tokens)

    async def _names(self, client: AsyncOpenAI) -> None:
        """Raises the error of a server that cannot be asked or does not have the model; a server may list none."""
        try:
            names = [model.id async for model in client.models.list()]
        except openai.NotFoundError as error:
            raise Unavailable(
                f"There is no OpenAI-compatible server at {self.server.url}: {_said(error)}",
                "Set PREFLOOP_SAMPLING_URL to its address up to and including /v1.",
            ) from error
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise self._failed(error) from error
        if names and self.server.model not in names:
            raise ModelUnavailable(
                f"The server at {self.server.url} does not serve {self.server.model}; it serves {', '.join(names)}.",
                "Load the model there under that name, or set PREFLOOP_SAMPLING_MODEL to the name it has.",
            )

    def _refused(self, row: PromptRow, error: openai.APIStatusError) -> InvalidInput:
        said = _said(error)
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
                    f"{where} refuses the key: {_said(error)}", "Set PREFLOOP_SAMPLING_KEY to one it takes."
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
            case openai.APIStatusError():
                return Unavailable(
                    f"{where} answered {error.status_code} to {attempts} attempts: {_said(error)}",
                    "Look at its log; then retry: what was sampled is kept.",
                )
        return Unavailable(
            f"{where} does not answer as an OpenAI-compatible server does: {error}.",
            "Set PREFLOOP_SAMPLING_URL to the address of one, up to and including /v1.",
        )

    def _new_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(
            base_url=self.server.url,
            api_key=self._key or "none",  # servers without keys ignore it, the client insists
            timeout=self.server.timeout_seconds,
            max_retries=self.server.retries,
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[AsyncOpenAI]:
        client = self._new_client()
        try:
            yield client
        finally:
            await client.close()


async def _settle(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Waits for tasks to end, and looks at their errors, of which one has been raised already."""
    await asyncio.gather(*tasks, return_exceptions=True)


def _said(error: openai.APIStatusError) -> str:
    """What the server itself says, at most 300 characters of it."""
    body = error.body
    text = (body.get("message") or body.get("detail") or body) if isinstance(body, dict) else (body or error.message)
    return " ".join(str(text).split())[:300]
