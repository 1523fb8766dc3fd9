"""A command asks this user's running `ditto serve`, by its socket: that has loaded and connected what is needed.

The socket lies in a directory that only this user may enter, so nobody else answers there, and no key is needed.
Nothing heavy is imported here.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ditto
from ditto.errors import BY_CODE, Busy, DittoError, PeerLost
from ditto.serve import place

PATIENCE = 2.0  # seconds until a server that is there takes a connection and begins to answer
LONGEST = 64 << 20  # bytes of a line: the answers of one command
HEADERS = {"content-type": "application/json", "host": "localhost"}
Line = dict[str, Any]


def ask(home: Path, path: str, document: Line, take: Callable[[Line], None]) -> bool:
    """Whether a server answered; `take` was given each line of the answer then.

    There is none for a command where none runs, where it is another version, or asks another cluster than this home's,
    and where it has too much to do. Raises what the answer's error says, and PeerLost where the answer ends early.
    """
    line = _connected(home)
    if line is None:
        return False
    try:
        try:
            line.request("POST", path, json.dumps(document).encode(), HEADERS)
            answer = line.getresponse()
        except (OSError, http.client.HTTPException):
            return False  # it ended just now
        if answer.status != 200:
            return False
        ended = False
        for said in _lines(answer):
            if "error" in said:
                error = said["error"]
                if error["code"] == Busy.code:
                    return False
                raise BY_CODE.get(error["code"], DittoError)(error["message"], peer=error["peer"])
            ended = said.get("end") is True
            if not ended:
                take(said)
        if not ended:
            raise PeerLost("ditto serve ended before its answer did")
        return True
    finally:
        line.close()


def tell(home: Path, path: str, document: Line) -> None:
    """The same where nothing is answered: whoever does not hear it, or not in time, does not."""
    line = _connected(home)
    if line is None:
        return
    try:
        line.sock.settimeout(PATIENCE)
        line.request("POST", path, json.dumps(document).encode(), HEADERS)
        line.getresponse()
    except (OSError, http.client.HTTPException):
        pass
    finally:
        line.close()


def _connected(home: Path) -> http.client.HTTPConnection | None:
    path = place.socket_path(home)
    if not place.private(path.parent):
        return None
    found = place.read(home)
    config = os.path.abspath(home / "configs" / "client.yaml")
    if found is None or found.get("version") != ditto.__version__ or found.get("config") != config:
        return None
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        stream.settimeout(PATIENCE)
        stream.connect(str(path))
    except OSError:  # of one that was killed
        stream.close()
        return None
    stream.settimeout(None)
    line = http.client.HTTPConnection("localhost")
    line.sock = stream
    return line


def _lines(answer: http.client.HTTPResponse) -> Iterator[Line]:
    try:
        while data := answer.readline(LONGEST):
            found = json.loads(data)
            if not isinstance(found, dict):
                raise ValueError("no object")
            yield found
    except (OSError, ValueError, http.client.HTTPException):
        raise PeerLost("ditto serve ended before its answer did") from None
