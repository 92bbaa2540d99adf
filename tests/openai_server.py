"""A small server that answers as OpenAI-compatible ones do, and fails as they do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: (path, body) -> what is sent: a text, a choice as a dictionary, or (status, headers, body).
Answer = Callable[[str, dict[str, Any]], Any]


@dataclass
class Served:
    """The running server and what it was asked, in order of arrival."""

    url: str
    answer: Answer
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    models: tuple[str, ...] = ("tiny",)


@contextmanager
def openai_server(answer: Answer, models: tuple[str, ...] = ("tiny",)) -> Iterator[Served]:
    """A server on this machine whose turns `answer` writes."""
    served = Served("", answer, models=models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": m, "object": "model"} for m in served.models]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            served.asked.append((self.path, body, {k.lower(): v for k, v in self.headers.items()}))
            given = served.answer(self.path, body)
            if isinstance(given, tuple):
                status, headers, content = given
                self._send(status, content, headers)
                return
            choice = given if isinstance(given, dict) else {"text": given, "finish_reason": "stop"}
            text = choice.pop("text")
            chat = self.path.endswith("/chat/completions")
            said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            self._send(200, {"id": "1", "choices": [{"index": 0, **said, **choice}], "usage": {}})

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def late(seconds: float, then: Any) -> Any:
    """`then`, after a while."""
    time.sleep(seconds)
    return then
