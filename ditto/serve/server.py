"""`ditto serve` as a process: its sockets, its note of where it is, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

import ditto
from ditto import files
from ditto.errors import ClusterError, ConfigError, StorageError
from ditto.serve import place

HEAD = 10.0  # seconds until a request's head is there
GRACE = 5.0  # seconds from the signal to end until what is under way is cancelled
CONNECTIONS = 128


class Protocol(H11Protocol):
    """Marks what comes by the Unix socket, and drops who does not finish a request's head."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        unix = transport.get_extra_info("socket").family == socket.AF_UNIX
        self.app_state = self.app_state | {"unix": unix}
        self._heads: asyncio.TimerHandle | None = None
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._heads is not None:
            self._heads.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """The clock runs from the first byte, or the connection, to a whole head; not while an answer is made."""
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._heads is None:
            self._heads = self.loop.call_later(HEAD, self._late)
        elif not waiting and self._heads is not None:
            self._heads.cancel()
            self._heads = None

    def _late(self) -> None:
        self._heads = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


@dataclass(frozen=True)
class Listening:
    """Bound sockets, and the address of the first one, which is TCP."""

    sockets: list[socket.socket]
    address: str
    unix: Path | None


@contextlib.contextmanager
def listening(host: str, port: int, home: Path) -> Iterator[Listening]:
    """Bound to the address, and to this user's own socket below `home`. Raises ClusterError: another one serves for
    this home, or the port is taken; ConfigError for an address that is none of this machine's."""
    with contextlib.ExitStack() as stack:
        files.make_directory(home, 0o700)
        try:
            stack.enter_context(files.locked(home / place.LOCK, 0, lambda: None))
        except TimeoutError:
            found = place.read(home)
            where = f" at {found['address']} (process {found['pid']})" if found else ""
            raise ClusterError(f"another `ditto serve` runs for {home} already{where}") from None
        tcp = stack.enter_context(_bound(host, port))
        unix = stack.enter_context(_unix(home))
        number = tcp.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{number}"
        yield Listening([tcp, *([unix[0]] if unix else [])], address, unix[1] if unix else None)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        if error.errno == 98 or "in use" in str(error):
            raise ClusterError(f"port {port} of {host} is taken by another process: --port N, 0 for any") from None
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    return bound


@contextlib.contextmanager
def _unix(home: Path) -> Iterator[tuple[socket.socket, Path] | None]:
    """None where the path is too long for one."""
    path = place.socket_path(home)
    files.make_directory(path.parent, 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        path.unlink(missing_ok=True)  # of one that was killed: the lock says that nobody else has it
        if not place.private(path.parent):
            raise StorageError(f"{path.parent}: not this user's alone (chmod 700)")
        try:
            bound.bind(str(path))
        except OSError:
            yield None
            return
        try:
            yield bound, path
        finally:
            path.unlink(missing_ok=True)


class Server(uvicorn.Server):
    """Serves an application at sockets that are bound. `ready` is told what the note says (`ditto.serve.place`), once
    connections are accepted."""

    def __init__(
        self, app: ASGIApp, here: Listening, home: Path, config: str | None, ready: Callable[[dict[str, Any]], None]
    ) -> None:
        settings = uvicorn.Config(
            app, http=Protocol, ws="none", loop="asyncio", lifespan="on", log_level="warning", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, date_header=False,
            limit_concurrency=CONNECTIONS, timeout_keep_alive=int(HEAD), timeout_graceful_shutdown=int(GRACE),
            h11_max_incomplete_event_size=32 << 10,
        )  # fmt: skip
        super().__init__(settings)
        self._here, self._note, self._say = here, home / place.NOTE, ready
        self._said = {
            "address": here.address, "pid": os.getpid(), "version": ditto.__version__, "config": config,
            "socket": str(here.unix) if here.unix else None,
        }  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            files.write(self._note, json.dumps(self._said), files.PRIVATE)
            self._say(self._said)

    def until_signal(self) -> None:
        """Serve until SIGINT or SIGTERM, or `should_exit`; what is under way has GRACE seconds then."""
        try:
            self.run(sockets=self._here.sockets)
        except KeyboardInterrupt:  # the signal that ended it, raised again: it ended as it should
            pass
        finally:
            self._note.unlink(missing_ok=True)
