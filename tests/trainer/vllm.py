"""A real HTTP server that answers like vLLM, and fails in the ways in which servers fail."""

import hashlib
import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], None]


def text_of(request: dict[str, Any]) -> str:
    """Return the text that the server "samples": a function of the conversation, the seed and the temperature."""
    key = json.dumps([request["messages"], request["seed"], request["temperature"]])
    return hashlib.sha256(key.encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Vllm"

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            return self.answer(404, {"detail": "Not Found"})
        if self.refused():
            return None
        return self.answer(
            200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]}
        )

    def do_POST(self) -> None:
        self.request_body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.entered(self.request_body)
        try:
            if self.refused():
                return
            if self.path != "/v1/chat/completions":
                return self.answer(404, {"detail": "Not Found"})
            if self.request_body["model"] not in self.server.models:
                message = f"The model `{self.request_body['model']}` does not exist."
                return self.answer(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
            self.server.next_fault()(self)
        finally:
            self.server.left()

    def refused(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return False
        self.answer(401, {"error": "Unauthorized"})
        return True

    def complete(self, **changes: Any) -> None:
        cut = int(text_of(self.request_body)[0], 16) < 4
        tokens = self.request_body["max_tokens"] if cut else 5
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text_of(self.request_body)},
            "finish_reason": "length" if cut else "stop",
        }
        reply = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": self.request_body["model"],
            "choices": [choice | changes.pop("choice", {})],
            "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": tokens + 3},
        }
        self.answer(200, reply | changes)

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


class Vllm(ThreadingHTTPServer):
    """`faults` are used up one per chat request, in order of arrival; afterwards `ordinary` answers."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.key: str | None = None
        self.models: tuple[str, ...] = ("pf", "base")
        self.faults: list[Fault] = []
        self.ordinary: Fault = Handler.complete
        self.requests: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def entered(self, request: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(request)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)

    def left(self) -> None:
        with self._lock:
            self.under_way -= 1

    def next_fault(self) -> Fault:
        with self._lock:
            return self.faults.pop(0) if self.faults else self.ordinary

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: in some tests, the client disconnects on purpose."""


def status(code: int, message: str = "Engine busy.", **headers: str) -> Fault:
    """Return an error in vLLM's form. A server may say how soon to retry, which keeps tests short."""
    body = {"error": {"message": message, "type": "Error", "code": code}}
    return lambda handler: handler.answer(code, body, {"retry-after-ms": "5", **headers})


def hang(handler: Handler) -> None:
    handler.server.closing.wait(60)
    handler.close_connection = True


def break_off(handler: Handler) -> None:
    """Close the connection in the middle of the announced body."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"id": "chatcmpl-1", "choi')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
