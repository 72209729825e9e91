"""Limits on requests: forms must be in UTF-8, within the route's size, and from people who may use the route.

FastAPI parses a form before it runs any dependency, on the event loop and in any encoding. `FormRoute` comes first: it
runs the route's own guards, counts the bytes while they arrive, and parses forms in a thread.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData

from app.access import guards
from app.access.sessions import SAFE_METHODS
from app.errors import InvalidInput, PrefloopError

# In bytes; a character may take twelve (%F0%9F%98%80).
SMALL = 16 << 10  # the limit for visitors who are not signed in
FORM = 512 << 10
LONG_FORM = 2 << 20  # for long texts: app.demonstrations.forms.MAX_TEXT
# Bytes of a body that are parsed in one go; other requests get their turn after each piece.
PIECE = 64 << 10

_KIND = re.compile(
    r"(application/x-www-form-urlencoded|multipart/form-data)"
    r"""(?:\s*;\s*(?:charset="?utf-?8"?|boundary=(?:"[^"*]{1,70}"|[^\s;"*]{1,70})))*[\s;]*""",
    re.IGNORECASE,
)


class TooLarge(PrefloopError):
    status = 413
    title = "That is too large"


class NotAForm(PrefloopError):
    """A body with a type or encoding that is not accepted."""

    status = 415
    title = "That is not a form"


def _too_large(most: int, takes_files: bool) -> TooLarge:
    size = f"{most >> 20} MB" if most >= 1 << 20 else f"{most >> 10} KB"
    advice = "Shorten the text and send it again."
    if takes_files:
        advice = (
            "Compress the file (gzip), split it, or use `prefloop import` on the server; "
            "PREFLOOP_MAX_UPLOAD_MB sets the limit."
        )
    return TooLarge(f"The request is larger than {size}.", advice)


class FormRequest(Request):
    """A request whose form is read once, within limits."""

    def __init__(self, request: Request, most: int, most_fields: int, *, takes_files: bool) -> None:
        super().__init__(request.scope, request.receive)
        self.most = most
        self.most_fields = most_fields
        self.takes_files = takes_files
        length = self.headers.get("content-length", "0")
        self.declared = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else 0
        self.is_small = self.declared <= SMALL and "transfer-encoding" not in self.headers
        self.has_body = self.declared > 0 or "transfer-encoding" in self.headers

    def check(self) -> None:
        """Refuse a body that is too large or of the wrong type, by its headers alone."""
        if not self.has_body:
            return
        kind = _KIND.fullmatch(self.headers.get("content-type", ""))
        if kind is None or (kind[1].lower() == "multipart/form-data" and not self.takes_files):
            taken = "application/x-www-form-urlencoded" + (" or multipart/form-data" if self.takes_files else "")
            raise NotAForm(
                "This address does not accept a body of this type or encoding.",
                f"Send it as {taken}, in UTF-8.",
            )
        if kind[1].lower() != "multipart/form-data":
            self.most = min(self.most, FORM) if self.takes_files else self.most
        if self.declared > self.most:
            raise _too_large(self.most, self.takes_files)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        received = 0
        async for chunk in super().stream():
            received += len(chunk)
            if received > self.most:
                raise _too_large(self.most, self.takes_files)
            for start in range(0, len(chunk), PIECE):
                yield chunk[start : start + PIECE]
                await asyncio.sleep(0)

    async def form(self, **_limits: Any) -> FormData:  # type: ignore[override]
        """Return the form, within this route's limits and no others."""
        if self._form is None and self.headers.get("content-type", "").lower().startswith("application/"):
            body = await self.body()
            # Parsing a small form takes less time than switching to another thread.
            read = (body, self.most_fields)
            self._form = _fields(*read) if self.is_small else await run_in_threadpool(_fields, *read)
        return await super().form(max_fields=self.most_fields)


def _fields(body: bytes, most: int) -> FormData:
    try:
        fields = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=most)
        return FormData([(name, value) for name, value in fields])
    except UnicodeDecodeError:
        raise InvalidInput("The form is not in UTF-8.", "Encode it in UTF-8 and send it again.") from None
    except ValueError:
        raise InvalidInput(f"The form has more than {most:,} fields.", "Send fewer.") from None


class FormRoute(APIRoute):
    """A route that checks a form's sender and size before it parses the form.

    Attributes:
        most: maximum size of a form in bytes. Routes without a sign-in take only SMALL.
        most_fields: maximum number of fields in a form.
    """

    most = FORM
    most_fields = 1_000
    takes_files = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        asked = list(_guards(self.dependant))

        async def checked(request: Request) -> Response:
            if request.method in SAFE_METHODS:
                return await (_guarded(request, asked, handle) if asked else handle(request))
            most = self._most_of(request) if asked else SMALL
            form = FormRequest(request, most, self.most_fields, takes_files=self.takes_files)
            try:
                if not asked:
                    return await _answer(form, handle)
                return await _admitted(form, asked, handle)
            finally:
                await form.close()  # closes uploaded files

        return checked

    def _most_of(self, _request: Request) -> int:
        return self.most


class LongFormRoute(FormRoute):
    most = LONG_FORM


class UploadRoute(FormRoute):
    """A route that takes files, up to PREFLOOP_MAX_UPLOAD_MB; forms without a file have the usual limit."""

    takes_files = True

    def _most_of(self, request: Request) -> int:
        most: int = request.app.state.settings.max_upload_mb << 20
        return most


def _guards(dependant: Dependant) -> Iterator[Any]:
    """Yield the route's dependencies that check who somebody is and what they may do."""
    for each in dependant.dependencies:
        yield from _guards(each)
        if guards.is_guard(each.call):
            yield each.call


Handle = Callable[[Any], Coroutine[Any, Any, Response]]


@asynccontextmanager
async def _asked(request: Request, asked: list[Any]) -> AsyncGenerator[Session]:
    """Run the guards in a thread, and yield the session that they used."""
    session: Session = request.app.state.session_factory()
    try:
        await run_in_threadpool(guards.ask, request, session, asked)
        yield session
    finally:
        # The route's session ends after this function, because FastAPI closes dependencies later.
        if not session.info.get("is_taken"):
            await run_in_threadpool(session.close)


async def _guarded(request: Request, asked: list[Any], handle: Handle) -> Response:
    """Return the response, in the session that the guards used."""
    async with _asked(request, asked) as session:
        request.state.session = session
        try:
            return await handle(request)
        finally:
            request.state.session = None  # it ends here: see app.db


async def _admitted(form: FormRequest, asked: list[Any], handle: Handle) -> Response:
    """Return the response if the guards admit the sender.

    A large form may take hours to arrive, so no connection is held meanwhile. The guards run again when it is here,
    because the sender may have lost the right.
    """
    if form.is_small:
        await form.body()  # read but not parsed, so nothing slow happens while the connection is held
        return await _guarded(form, asked, lambda form: _answer(form, handle))
    async with _asked(form, asked):
        pass
    return await _answer(form, lambda form: _guarded(form, asked, handle))


async def _answer(form: FormRequest, handle: Handle) -> Response:
    form.check()
    if form.has_body:
        await form.form()  # here, so that its errors keep their messages
    return await handle(form)
