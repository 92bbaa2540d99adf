"""Who may ask: Host and Origin against other sites' pages, a token where others can connect, headers against injection.

A page of another site can make a browser send requests here (and, by DNS rebinding, read the answers under its own
name). So the Host must be one that only we can have, and a request that carries an Origin must come from that Host, or
from a name that was allowed: some proxies put their own Host.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentrl.errors import AgentRLError

TOKEN_VARIABLE = "AGENTRL_DASHBOARD_TOKEN"
COOKIE = "agentrl_token"
MIN_TOKEN = 16  # characters
LOOPBACK = ("localhost", "127.0.0.1", "::1")
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no string becomes markup by way of innerHTML and the like
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(host: str, token: str | None) -> None:
    """Raise AgentRLError where others could connect without a token, or with one that can be guessed."""
    if token is not None and len(token) < MIN_TOKEN:
        raise AgentRLError(
            f"{TOKEN_VARIABLE} has {len(token)} characters; use at least {MIN_TOKEN}, "
            "for example from `openssl rand -hex 16`"
        )
    if token is None and not is_loopback(host):
        raise AgentRLError(
            f"--host {host} lets other machines connect, and rollouts are nobody else's: set {TOKEN_VARIABLE} to a "
            f"secret of at least {MIN_TOKEN} characters, or keep 127.0.0.1 and use `ssh -L`"
        )


def checked_prefix(text: str, own: Iterable[str]) -> str:
    """A proxy's prefix as `/some/path`, empty for none. AgentRLError where it is no path, or begins like an own one."""
    prefix = text.rstrip("/")
    if prefix and not _PREFIX.fullmatch(prefix):
        raise AgentRLError(f"--root-path {text!r}: expected a path such as /user/ann/proxy/8321")
    first = prefix.split("/")[1] if prefix else ""
    if first in {path.split("/")[1] for path in own} - {""}:
        raise AgentRLError(f"--root-path {text!r} begins like an address of the dashboard itself: choose another")
    return prefix


_PREFIX = re.compile(r"(/[\w.~@%+-]+)+", re.ASCII)


class Prefix:
    """ASGI middleware: takes the proxy's prefix off the path, where the proxy has not done that itself.

    The pages need nothing else: all their addresses are relative.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; the bare prefix is sent to the page that it is the folder of."""
        path = scope.get("path", "")
        if scope["type"] == "http" and self.prefix:
            if path == self.prefix:
                await RedirectResponse(f"{self.prefix}/", status_code=308)(scope, receive, send)
                return
            if path.startswith(f"{self.prefix}/"):
                scope = {**scope, "path": path.removeprefix(self.prefix), "raw_path": None}
        await self.app(scope, receive, send)


class Access:
    """ASGI middleware: refuses what the module's docstring says, adds the headers to every answer.

    `prefix`: the proxy's, to which the cookie with the token is then confined.
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] = (), prefix: str = "") -> None:
        self.app, self.token, self.prefix = app, token, prefix
        self.allowed = {h.lower() for h in hosts}
        self.hosts = {*LOOPBACK, socket.gethostname().lower(), *self.allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse or pass on one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        answer = self._refusal(scope, headers) or self._login(scope, headers)
        await (answer or self.app)(scope, receive, guarded_send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host, name = headers.get("host", ""), host_name(headers.get("host", ""))
        if name not in self.hosts and not _is_address(name):  # an address cannot be rebound, a name can
            return _no(421, f"Host {host[:100]!r} is not one of this server's; start it with --allow-host {name[:100]}")
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}") and not self._allows(origin):
            return _no(403, f"Origin {origin[:100]!r} is another site")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            headers.get("sec-fetch-mode") != "navigate" or scope["method"] != "GET"
        ):
            return _no(403, "this request was made by another site's page")
        if scope["method"] not in ("GET", "HEAD"):
            # A form of another site cannot send JSON without asking first.
            if headers.get("content-type", "").split(";")[0].strip() != "application/json":
                return _no(415, "send application/json")
        return None

    def _allows(self, origin: str) -> bool:
        """Whether `origin` is a site whose name was given with --allow-host."""
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and (parts.hostname or "") in self.allowed

    def _login(self, scope: Scope, headers: Headers) -> Response | None:
        """None for whoever has the token; it comes as `Authorization: Bearer`, as a cookie, or once as `?token=`."""
        if self.token is None:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._same(given.strip()):
            return None
        if self._same(_cookie(headers.get("cookie", ""))):
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if scope["method"] == "GET" and self._same(query.pop("token", [""])[0]):
            rest = urlencode(query, doseq=True)
            page = "./" + quote(scope["path"].rpartition("/")[2])  # relative: right behind any prefix, never elsewhere
            answer = RedirectResponse(page + (f"?{rest}" if rest else ""), status_code=303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict", path=self.prefix or "/")
            return answer
        return _no(401, "open /?token=... once with the token that the server was started with")

    def _same(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


def host_name(host: str) -> str:
    """The name in a Host header, without the port: tunnels change it."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _cookie(header: str) -> str:
    try:
        morsel = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel is not None else ""


def _no(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)
