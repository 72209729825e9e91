"""How much a request may send: the body is counted while it arrives, so that no upload fills the disk.

FastAPI's own `max_body_size` answers in three words outside the error handlers; here the person reads what to do.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import PrefloopError


class TooLarge(PrefloopError):
    status = 413
    title = "That is too large"


class BodyLimit:
    """Refuses a request's body beyond `limit` bytes, by the declared length at once, else when it gets there."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received = 0

        async def counted() -> Message:
            # Raised here and not before the app runs: so it is shown like any other error of ours.
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, int(declared)) > self.limit:
                raise TooLarge(
                    f"The request is larger than {self.limit >> 20} MB.",
                    "Compress the file (gzip), split it, or use `prefloop import` on the server; "
                    "PREFLOOP_MAX_UPLOAD_MB sets the limit.",
                )
            return message

        await self.app(scope, counted, send)
