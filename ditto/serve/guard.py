"""What stands before every route: who may ask, from where, and what no answer goes without.

Adversaries are a web page open in the same browser (it can send requests here, and be at a name of its own that leads
to this address), another user of this machine, and whoever reaches the port. See docs/decisions/0026-local-http.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditto.errors import DittoError, Interrupted
from ditto.serve.errors import Refused, failure
from ditto.serve.leaving import Gone
from ditto.serve.metrics import Metrics

STALLED = 60.0  # seconds until an answer that nobody reads is dropped
OPEN = ("/", "/page/page.css", "/page/page.js", "/health")  # without a key: the same for everybody
ALWAYS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_log = logging.getLogger("ditto.serve")
Neighbour = Callable[[Scope], bool]


class Guard:
    """ASGI middleware. Requests by the Unix socket, which the protocol marks (`ditto.serve.server`), need no key: the
    directory that it lies in is this user's alone."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, routes: Collection[str], key: str | None, hosts: Collection[str] = (),
        neighbour: Neighbour = lambda scope: True,
    ) -> None:  # fmt: skip
        """`hosts`: names that lead here besides localhost. `neighbour` says, where there is no key, whether a
        connection is of somebody who may ask."""
        self._app, self._metrics, self._routes = app, metrics, set(routes)
        self._key = hashlib.sha256(key.encode()).digest() if key else None
        self._hosts = {"localhost", *(host.lower() for host in hosts)}
        self._neighbour = neighbour

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
            async with asyncio.timeout(STALLED):
                await send(message)

        try:
            try:
                self._check(scope)
                await self._app(scope, receive, answer)
            except DittoError as error:
                await failure(scope["path"], error)(scope, receive, answer)
            except (Gone, TimeoutError):
                pass  # nobody reads
            except asyncio.CancelledError:  # the server ends; what was under way has ended
                if status == 499:
                    await failure(scope["path"], Interrupted("the server ends"))(scope, receive, answer)
            except Exception as error:
                _log.error("%s: %s", self._route(scope), _where(error))
                if status == 499:
                    unexpected = DittoError("unexpected internal error; the log says where")
                    await failure(scope["path"], unexpected)(scope, receive, answer)
        finally:
            route = self._route(scope)
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _route(self, scope: Scope) -> str:
        """As it is written in the table of routes; `other` for what is not there."""
        path: str = scope["path"]
        if path in self._routes:
            return path
        return next((one for one in self._routes if "{" in one and path.startswith(one.partition("{")[0])), "other")

    def _check(self, scope: Scope) -> None:
        """Raises Refused."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._ours(host):
            raise Refused("this host name is not known here (--allow-host NAME)", 403, "unknown_host")
        origin = headers.get("origin")
        if origin is not None and (urlsplit(origin).scheme not in ("http", "https") or _netloc(origin) != host.lower()):
            raise Refused("asked by a page of another origin", 403, "foreign_origin")
        if _foreign(headers, scope["method"]):
            raise Refused("asked by a page of another site", 403, "foreign_origin")
        if scope.get("state", {}).get("unix") is True or _for_everybody(scope["path"]):
            return
        if self._key is None:
            if not self._neighbour(scope):
                raise Refused("another user's process: start `ditto serve` with a key", 403, "foreign_user")
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # both as digests: neither the length nor the place of a difference shows in the time
        digest = hashlib.sha256(given.strip().encode("latin-1")).digest()
        if not hmac.compare_digest(digest, self._key) or scheme.lower() != "bearer":
            raise Refused("a key is needed: Authorization: Bearer KEY", 401, "invalid_api_key")

    def _ours(self, host: str) -> bool:
        """A name that somebody else can let lead here is no name of ours; an address leads nowhere else."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def _netloc(origin: str) -> str:
    return origin.partition("://")[2].lower()


def _foreign(headers: Headers, method: str) -> bool:
    """As browsers say it; following a link to the page is fine, and shows nothing to where the link was."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    followed = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    return not (followed and method == "GET")


def _for_everybody(path: str) -> bool:
    return path in OPEN


def _where(error: BaseException) -> str:
    """Which error, and where; not its message, which may quote a text."""
    trace: Any = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{place}"
