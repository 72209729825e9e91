"""Refuse addresses that none of our pages has, before anything else reads them."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import InvalidInput, PrefloopError

MAX_PATH = 1000  # ours have fewer than 200 characters


class AddressTooLong(PrefloopError):
    status = 414
    title = "That address is too long"


class AddressCheck:
    """Refuses a path that is too long (Python does not parse a number of 4,300 digits) or an address with a NUL
    character (PostgreSQL and file systems cannot store it).

    Args:
        show: renders the error as a response.
    """

    def __init__(self, app: ASGIApp, show: Callable[[Request, Exception], Response]) -> None:
        self.app = app
        self.show = show

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = _problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await self.show(Request(scope), problem)(scope, receive, send)


def _problem(scope: Scope) -> PrefloopError | None:
    if len(scope["path"]) > MAX_PATH:
        return AddressTooLong(f"The address has over {MAX_PATH} characters.", "Check it, or begin at the start page.")
    if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
        return InvalidInput("The address holds a NUL character.", "Check it, or begin at the start page.")
    return None
