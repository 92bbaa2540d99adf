"""A receiver of webhooks on this machine: what a test posts to, in place of Slack and others."""

from __future__ import annotations

import json
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@pytest.fixture
def receiver() -> Iterator[types.SimpleNamespace]:
    """An HTTP server that keeps what it takes in `got`, and every request in `tries`.

    `answer(n, body)` may be replaced: what the n-th request (from 0) gets, (status, headers, text). `gate` holds
    requests back while it is cleared.
    """
    gate, lock = threading.Event(), threading.Lock()
    gate.set()
    box = types.SimpleNamespace(got=[], tries=[], headers=[], gate=gate, answer=lambda n, body: (200, {}, "ok"))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            gate.wait(10)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                n = len(box.tries)
                box.tries.append(body)
                box.headers.append(dict(self.headers))
                status, headers, text = box.answer(n, body)
                if 200 <= status < 300:
                    box.got.append(body)
            if status == 0:  # reset: no answer at all
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, address: Any) -> None:
            """A client that has given up is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    box.url = f"http://127.0.0.1:{server.server_port}/hook"
    yield box
    gate.set()
    server.shutdown()
    server.server_close()
