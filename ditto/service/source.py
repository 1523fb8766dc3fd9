"""A party's end of the dealer's stream: correlation bytes, a bounded piece ahead of their use."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import cast

import grpc
import numpy as np

from ditto.errors import ClusterError, DittoError, IntegrityError, PeerLost
from ditto.net.bulk import Dealt
from ditto.net.framing import around_dealt, dealt_digest
from ditto.net.metrics import PartyMetrics
from ditto.net.tracing import SILENT, Span
from ditto.net.transport import from_rpc_error
from ditto.ring.prg import SEED_BYTES
from ditto.wire import dealer_pb2, dealer_pb2_grpc, party_pb2

AHEAD = 32 << 20


def correlations(request: party_pb2.OpenJobRequest | party_pb2.StockRequest) -> dealer_pb2.CorrelationsRequest:
    """What the dealer is asked for."""
    return dealer_pb2.CorrelationsRequest(
        job=request.job, model=request.model, share_id=request.share_id, plan=request.plan,
        fingerprint=request.fingerprint,
    )  # fmt: skip


class DealerSource:
    """Reads one job's correlations in a thread of its own and hands them out strictly in order: a `Source` of jobs."""

    def __init__(
        self,
        stub: dealer_pb2_grpc.DealerStub,
        request: dealer_pb2.CorrelationsRequest,
        timeout: float,
        metrics: PartyMetrics,
        span: Span = SILENT,
    ) -> None:
        self._changed = threading.Condition()
        self._chunks: deque[memoryview] = deque()
        self._held = 0
        self._ended = False
        self._error: DittoError | None = None
        self._seed: bytes | None = None
        self.dealing = ""  # what both parties know it by; there with the seed
        self._timeout = timeout
        self.until: float | None = None  # when the step under way has to be over (time.monotonic)
        self._metrics = metrics
        self.received = 0
        self.framing = 0
        self._call = stub.Correlations(request, **span.carried)
        threading.Thread(target=self._read, name="dealer-in", daemon=True).start()

    def _read(self) -> None:
        try:
            for place, reply in enumerate(cast(Iterator[Dealt], self._call)):
                if reply.digest != dealt_digest(place, reply.seed, reply.data, reply.dealing):
                    self._fail(IntegrityError(f"correlations, piece {place}: not what the dealer sent", peer="dealer"))
                    self._call.cancel()
                    return
                with self._changed:
                    if self._seed is None:
                        self._seed, self.dealing = reply.seed, reply.dealing.hex()
                    data, around = memoryview(reply.data), around_dealt(reply)
                    self.framing += around
                    self._metrics.dealt(len(data), around)
                    if data:
                        self._chunks.append(data)
                        self._held += len(data)
                        self.received += len(data)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._held < AHEAD or self._ended)
        except grpc.RpcError as error:
            self._fail(from_rpc_error(error, "dealer", running=self._seed is not None))
        except DittoError as error:  # before there was a connection
            self._fail(error)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _fail(self, error: DittoError) -> None:
        with self._changed:
            self._error = self._error or error
            self._ended = True
            self._changed.notify_all()

    def seed(self) -> bytes:
        """This party's job seed: the first thing that the dealer sends."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._seed is not None or self._ended, self._timeout):
                raise PeerLost("dealer sent no seed in time", peer="dealer")
            if self._seed is None:
                raise self._error or PeerLost("dealer closed the stream", peer="dealer")
            if len(self._seed) != SEED_BYTES:
                raise DittoError("the dealer's seed has a wrong length", peer="dealer")
            return self._seed

    def take(self, nbytes: int) -> memoryview:
        """The next `nbytes` bytes, as they arrived or in memory of their own; waits for them."""
        with self._changed:
            if nbytes and self._chunks and len(self._chunks[0]) >= nbytes:
                return self._cut(nbytes)
            whole = np.empty(nbytes, dtype=np.uint8).data
            filled = 0
            while filled < nbytes:
                if not self._chunks:
                    self._wait()
                piece = self._cut(min(len(self._chunks[0]), nbytes - filled))
                whole[filled : filled + len(piece)] = piece
                filled += len(piece)
            return whole

    def rest(self) -> Iterator[memoryview]:
        """All that the dealer sends, as it comes, to its end. Raises PeerLost where nothing comes in time, and whatever
        the stream ends with."""
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._chunks) or self._ended, self._timeout):
                    raise PeerLost("dealer sent nothing in time", peer="dealer")
                if self._error is not None:
                    raise self._error
                if not self._chunks:
                    return
                piece = self._cut(len(self._chunks[0]))
            yield piece

    def _wait(self) -> None:
        left = self._timeout if self.until is None else max(0.0, self.until - time.monotonic())
        if not self._changed.wait_for(lambda: bool(self._chunks) or self._ended, left):
            raise PeerLost("dealer sent nothing in time", peer="dealer")
        if not self._chunks:
            raise self._error or IntegrityError(
                f"correlations: the dealer's stream ended after {self.received} bytes, the program needs more",
                peer="dealer",
            )

    def _cut(self, n: int) -> memoryview:
        head = self._chunks[0]
        if len(head) == n:
            self._chunks.popleft()
        else:
            self._chunks[0] = head[n:]
        full = self._held >= AHEAD
        self._held -= n
        if full and self._held < AHEAD:
            self._changed.notify_all()
        return head[:n]

    def close(self, reason: str = "the job was closed") -> None:
        self._fail(ClusterError(reason))
        self._call.cancel()
