"""The web server: JSON about the runs of one folder, a stream of events per run, and the page's files."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from agentrl.dashboard import episodes, live, prometheus
from agentrl.dashboard.access import TOKEN_VARIABLE, Access, Prefix, check_bind, checked_prefix
from agentrl.dashboard.history import columns
from agentrl.dashboard.library import Library, UnknownRun, info_of, run_state
from agentrl.errors import AgentRLError
from agentrl.monitors.signals import SIGNALS
from agentrl.runs import read
from agentrl.runs.files import strict_json

STATIC = Path(__file__).parent / "static"
BODY = 1 << 16  # bytes of a POST


def create_app(runs_dir: Path, token: str | None = None, hosts: Iterable[str] = (), root_path: str = "") -> Starlette:
    """The application over `runs_dir`. `hosts`: names besides this machine's under which it may be reached.

    `root_path`: the path under which a proxy shows it; requests may come with it or without it.
    """
    library = Library(runs_dir)

    def json(answer: Callable[[Library, Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            value = await anyio.to_thread.run_sync(partial(answer, library, request))
            return Response(strict_json(value), media_type="application/json")

        return endpoint

    async def events(request: Request) -> Response:
        run_id = _run(request)
        await anyio.to_thread.run_sync(library.path, run_id)
        cursor = request.headers.get("last-event-id") or request.query_params.get("after", "")

        async def until_gone() -> AsyncIterator[str]:
            async for text in live.stream(library, run_id, cursor):
                yield text
                if await request.is_disconnected():
                    return

        return StreamingResponse(until_gone(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def acknowledge(request: Request) -> Response:
        body = await _body(request)
        path = await anyio.to_thread.run_sync(library.path, str(body.get("run", "")))
        seen = body.get("acknowledged", True) is True
        await anyio.to_thread.run_sync(read.acknowledge, path, str(body.get("id", "")), seen)
        return JSONResponse({"acknowledged": seen})

    async def metrics(_: Request) -> Response:
        text = await anyio.to_thread.run_sync(prometheus.render, library)
        return Response(text, headers={"Content-Type": prometheus.CONTENT_TYPE})

    async def page(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    async def grafana(_: Request) -> Response:
        return FileResponse(prometheus.grafana_file(), filename="agentrl-grafana.json")

    async def report(request: Request) -> Response:
        from agentrl.dashboard.report import render_report

        run_id = _run(request)
        text = await anyio.to_thread.run_sync(render_report, library, run_id)
        return Response(text, media_type="text/html", headers={"Content-Disposition": attachment(run_id)})

    routes: list[BaseRoute] = [
        Route("/", page),
        Route("/run", page),
        Route("/compare", page),
        Route("/api/runs", json(_runs)),
        Route("/api/signals", json(lambda *_: {k: asdict(s) for k, s in SIGNALS.items()})),
        Route("/api/run", json(_one)),
        Route("/api/metrics", json(_metrics)),
        Route("/api/config", json(lambda lib, r: lib.config(_run(r)))),
        Route("/api/rollouts", json(_rollouts)),
        Route("/api/search", json(_search)),
        Route("/api/rollout", json(_rollout)),
        Route("/api/group", json(_group)),
        Route("/api/events", events),
        Route("/api/poll", json(lambda lib, r: live.look(lib, _run(r), r.query_params.get("after", "")))),
        Route("/api/acknowledge", acknowledge, methods=["POST"]),
        Route("/api/report", report),
        Route("/metrics", metrics),
        Route("/grafana.json", grafana),
        Mount("/static", _Static(directory=STATIC)),
    ]
    prefix = checked_prefix(root_path, [r.path for r in routes if isinstance(r, Route | Mount)])
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Prefix, prefix=prefix),
            Middleware(Access, token=token, hosts=tuple(hosts), prefix=prefix),
            Middleware(GZipMiddleware, minimum_size=2048, compresslevel=3),
        ],
        exception_handlers={AgentRLError: _explain, OSError: _unreadable, HTTPException: _http, Exception: _bug},
    )
    app.state.library = library
    return app


def serve(
    runs_dir: Path,
    host: str,
    port: int,
    hosts: Iterable[str] = (),
    *,
    root_path: str = "",
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until interrupted. `ready` gets the address, which ends in /, when it is bound.

    The token comes from the environment only. AgentRLError where that cannot be.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    check_bind(host, token)
    if not runs_dir.expanduser().is_dir():
        raise AgentRLError(
            f"{runs_dir} is not a folder: name the one that holds your runs, for example `agentrl dashboard runs`"
        )
    app = create_app(runs_dir, token, [host, *hosts], root_path)
    listening = _listen(host, port)
    threading.Thread(target=app.state.library.prefetch, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{listening.getsockname()[1]}/")
    # No access log: the token is in the first request's address.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=1, server_header=False
    )
    with quiet_cancels():
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def quiet_cancels() -> Iterator[None]:
    """Ends without a traceback where a page is open: its stream is cancelled, which is no error."""
    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(_no_cancel)
    try:
        yield
    finally:
        logger.removeFilter(_no_cancel)


def _no_cancel(record: logging.LogRecord) -> bool:
    kind = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
    cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
    return not (
        cancelled or "CancelledError" in record.getMessage() or "timeout graceful shutdown" in record.getMessage()
    )


def attachment(run_id: str) -> str:
    """Content-Disposition of a run's report: a plain name for old clients, the whole name (RFC 6266) for others."""
    name = "".join(c if c.isprintable() and c not in '\\/"' else "-" for c in run_id)[:200]
    plain = "".join(c if c.isascii() else "-" for c in name)
    return f"attachment; filename=\"{plain}.html\"; filename*=UTF-8''{quote(name.encode('utf-8', 'replace'))}.html"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise AgentRLError(
            f"cannot listen on {host} port {port} ({error}); choose another with --port, 0 takes a free one"
        ) from error


# ------------------------------------------------------------------------------------------------------------- answers


def _runs(library: Library, _: Request) -> Any:
    runs, problems = library.list_runs()
    return {"root": str(library.root), "runs": runs, "problems": problems}


def _one(library: Library, request: Request) -> Any:
    run_id = _run(request)
    path = library.path(run_id)
    history, lock = library.history(run_id)
    state = run_state(run_id, info_of(path))
    with lock:
        rows = list(history.rows)
        answer = {"cursor": history.cursor, "bands": list(history.bands), "phase": live.phase_of(history)}
        problems = library.problems(run_id, history, state["status"] == "running")
        nonfinite = history.nonfinite()
    return {
        **answer,
        "state": state,
        "columns": columns(rows),
        "nonfinite": nonfinite,
        "alarms": library.alarms(run_id),
        "guard": library.guard(run_id),
        "evals": library.evals(run_id),
        "rollout_steps": library.steps(run_id),
        "problems": problems,
    }


def _metrics(library: Library, request: Request) -> Any:
    """Rows after `after`, or everything: what a comparison needs."""
    run_id = _run(request)
    history, lock = library.history(run_id, phases=False)
    with lock:
        rows = history.since(request.query_params.get("after"))
        whole = rows is None
        nonfinite = history.nonfinite(rows)
        rows = list(history.rows if rows is None else rows)
        cursor = history.cursor
    return {
        "whole": whole,
        "cursor": cursor,
        "columns": columns(rows),
        "nonfinite": nonfinite,
        "evals": library.evals(run_id),
        "state": run_state(run_id, info_of(library.path(run_id))),
    }


def _rollouts(library: Library, request: Request) -> Any:
    run_id, step, kind = _run(request), _step(request), _kind(request)
    rows = library.rollouts(run_id, step, kind)
    return {
        "step": step,
        "kind": kind,
        "rows": [episodes.summary(r) for r in rows],
        "steps": library.steps(run_id)[kind],
    }


def _search(library: Library, request: Request) -> Any:
    text, prompt = request.query_params.get("q", "")[:500], request.query_params.get("prompt")
    return library.search(_run(request), _kind(request), text, prompt and prompt[:500])


def _rollout(library: Library, request: Request) -> Any:
    rows = library.rollouts(_run(request), _step(request), _kind(request))
    return episodes.find(rows, request.query_params.get("sample", ""))


def _group(library: Library, request: Request) -> Any:
    group = request.query_params.get("group", "")
    rows = library.rollouts(_run(request), _step(request), _kind(request))
    return {"rows": [episodes.conversation(r) for r in rows if str(r.get("group_id")) == group]}


def _run(request: Request) -> str:
    return request.query_params.get("run", "")


def _kind(request: Request) -> str:
    return "eval" if request.query_params.get("kind") == "eval" else "step"


def _step(request: Request) -> int:
    text = request.query_params.get("step", "")
    if not (text.isascii() and text.isdigit() and len(text) < 13):
        raise HTTPException(400, f"step is {text[:40]!r}; it must be a number")
    return int(text)


async def _body(request: Request) -> dict[str, Any]:
    size = 0
    parts = []
    async for part in request.stream():
        size += len(part)
        if size > BODY:
            raise HTTPException(413, f"more than {BODY} bytes")
        parts.append(part)
    request._body = b"".join(parts)
    try:
        body = await request.json()
    except ValueError:
        raise HTTPException(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return body


class _Static(StaticFiles):
    """The page's files; the browser asks again each time, since they change with an upgrade."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _explain(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, status_code=404 if isinstance(error, UnknownRun) else 422)


async def _unreadable(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"cannot be read: {error}"}, status_code=422)


async def _http(_: Request, error: Exception) -> Response:
    status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, str(error))
    return JSONResponse({"error": text}, status_code=status)


async def _bug(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{type(error).__name__} in the dashboard; its log has the details"}, status_code=500)
