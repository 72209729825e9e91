"""The headers of every response, including files, refusals and unexpected errors."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
ONLY_HTTPS = {"Strict-Transport-Security": "max-age=31536000"}  # one year in seconds
# What pages depend on: the signed-in user, and whether htmx or the labeling script asks for a part of them.
PAGES_VARY_BY = ("Cookie", "HX-Request", "Accept")


class AnswerHeaders:
    """Adds the security headers to every response, and forbids caching unless the response allows it.

    Args:
        https: the service is reached by HTTPS only; browsers are told to use nothing else.
    """

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self.app = app
        self.always = SECURITY_HEADERS | (ONLY_HTTPS if https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self.always)
                if "public" not in headers.setdefault("Cache-Control", "no-store"):
                    for name in PAGES_VARY_BY:
                        headers.add_vary_header(name)
            await send(message)

        await self.app(scope, receive, send_with_headers)
