"""The pairs of workers that jobs run on: worker k of one party with worker k of the other. The first pair are the
keepers, which hold models and grants for all.

Where there are several, a pair is given work while both of its workers answer, the link between them stands, and so do
the keepers: they are asked, and PROBE_S later again. Configured addresses where nobody is yet are pairs that are not
up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import structlog

from ditto.errors import CertificateError, DittoError, PeerAbsent, PeerLost
from ditto.names import PARTIES
from ditto.net.config import CoordinatorConfig
from ditto.net.transport import connect, from_rpc_error, open_channel
from ditto.wire import control_pb2, party_pb2, party_pb2_grpc

log = structlog.get_logger()
PROBE_S = 2.0
Reply = party_pb2.PartyModelsReply | DittoError


class Pair:
    """Channels to worker `number` of both parties; nothing is sent before it is asked for."""

    def __init__(self, number: int, config: CoordinatorConfig) -> None:
        self.number, peers = number, config.peers
        self.addresses = [peers.of(role, number) for role in PARTIES]
        self.channels = {
            role: open_channel(address, role, config.tls, config.role, config.max_message_mb, config.silence_s)
            for role, address in zip(PARTIES, self.addresses, strict=True)
        }
        self.stubs = {role: party_pb2_grpc.PartyStub(channel) for role, channel in self.channels.items()}
        several = len(peers.workers(PARTIES[0])) > 1
        # what an error says of a role
        self.where = {role: f"worker {number}, {peers.of(role, number)}" for role in PARTIES} if several else {}


class Pairs:
    def __init__(self, config: CoordinatorConfig) -> None:
        self._timeout = config.connect_timeout_s
        self._all = [Pair(number, config) for number in range(len(config.peers.workers(PARTIES[0])))]
        self._lock = threading.Lock()
        self._said: dict[int, list[Reply]] = {}  # by pair: what each of its workers answered last
        self._up: tuple[int, ...] = (0,)
        self._stopping, self._now = threading.Event(), threading.Event()

    @property
    def keepers(self) -> Pair:
        return self._all[0]

    def up(self) -> tuple[int, ...]:
        """Those that may be given work. Where none may, the first: it says what is wrong."""
        with self._lock:
            return self._up

    def connect(self, number: int) -> Pair:
        """Make sure that a pair answers. Raises PeerAbsent."""
        pair = self._all[number]
        for role, channel in pair.channels.items():
            try:
                connect(channel, role, self._timeout)
            except (PeerAbsent, PeerLost) as error:
                if role not in pair.where:
                    raise
                raise PeerAbsent(f"{error} ({pair.where[role]})", peer=role) from None
        return pair

    def doubt(self, number: int, error: DittoError) -> None:
        """A job on this pair ended with an error: if a worker may be gone, the pair gets no work until it answers."""
        if len(self._all) > 1 and isinstance(error, PeerAbsent | PeerLost) and error.peer in PARTIES:
            with self._lock:
                self._up = tuple(other for other in self._up if other != number) or (0,)
            self._now.set()

    # Asking -------------------------------------------------------------------------------------

    def watch(self, changed: Callable[[], None]) -> None:
        """Ask every PROBE_S who is up, if there is a choice; `changed` is called when others are."""
        if len(self._all) > 1:
            threading.Thread(target=self._watch, args=(changed,), name="pairs", daemon=True).start()

    def _watch(self, changed: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                said = self._ask()
            except ValueError:  # grpc's, of a channel that was closed since
                if self._stopping.is_set():
                    return
                raise
            up = tuple(number for number in said if _well(said[number]) and _answers(said[0])) or (0,)
            with self._lock:
                before, self._up, self._said = self._up, up, said
            if up != before:
                log.info("pairs of workers", up=list(up), of=len(self._all))
                changed()
            self._now.wait(PROBE_S)
            self._now.clear()

    def _ask(self) -> dict[int, list[Reply]]:
        """All at the same time."""
        ask = party_pb2.PartyModelsRequest(page_size=1)
        asked = [(pair.number, role, stub) for pair in self._all for role, stub in pair.stubs.items()]
        calls = [(number, role, _begin(stub, ask, self._timeout)) for number, role, stub in asked]
        found: dict[int, list[Reply]] = {pair.number: [] for pair in self._all}
        for number, role, call in calls:
            found[number].append(call if isinstance(call, DittoError) else _result(call, role))
        return found

    def workers(self) -> Iterator[control_pb2.ProcessStatus]:
        """All but the keepers, as they were a moment ago."""
        with self._lock:
            said = dict(self._said)
        for pair in self._all[1:]:
            for at, (role, address) in enumerate(zip(PARTIES, pair.addresses, strict=True)):
                status = control_pb2.ProcessStatus(role=role, address=address, worker=pair.number)
                reply = said[pair.number][at] if pair.number in said else PeerAbsent("not asked yet")
                if isinstance(reply, DittoError):
                    status.error = str(reply)
                else:
                    status.serving = True
                    status.about.CopyFrom(reply.about)
                    if not reply.peer_link:
                        status.error = "no link to the other party's worker"
                yield status

    def close(self) -> None:
        self._stopping.set()
        self._now.set()
        for pair in self._all:
            for channel in pair.channels.values():
                channel.close()


def _begin(stub: party_pb2_grpc.PartyStub, ask: party_pb2.PartyModelsRequest, timeout: float) -> Any:
    """The call, or why there is none: a server whose certificate was revoked is not called."""
    try:
        return stub.ListModels.future(ask, timeout=timeout)
    except DittoError as error:
        return error


def _result(call: Any, role: str) -> Reply:
    try:
        reply: party_pb2.PartyModelsReply = call.result()
        return reply
    except grpc.RpcError as error:
        return from_rpc_error(error, role)
    except (CertificateError, grpc.FutureCancelledError) as error:
        return PeerAbsent(f"{role}: {error}", peer=role)


def _answers(replies: list[Reply]) -> bool:
    return not any(isinstance(reply, DittoError) for reply in replies)


def _well(replies: list[Reply]) -> bool:
    return all(not isinstance(reply, DittoError) and reply.peer_link for reply in replies)
