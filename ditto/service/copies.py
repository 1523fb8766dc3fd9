"""What a worker of a party has of its keeper's sharings: copies, sealed under the worker's own key.

1. At each job the keeper is asked for the sharing: owner, grants and description are its, so that a grant that is
   revoked and a sharing that is dropped hold at once. Without the keeper no job is opened: PeerAbsent names it.
2. A sharing that the worker does not have yet is fetched, and written down tensor by tensor. Its entry comes last,
   after the digest over all of it.
3. What the keeper does not have any more goes: when it says so at a job, when the worker starts, and every SWEEP_S.
"""

from __future__ import annotations

import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import grpc
import structlog
from pydantic import ValidationError

from ditto.engine.weights import PartyWeights
from ditto.errors import BadShare, DittoError, IntegrityError, PeerAbsent, PeerLost, UnknownModel
from ditto.files import make_directory
from ditto.names import check_id
from ditto.net.config import PartyConfig
from ditto.net.transport import from_rpc_error, open_channel, short
from ditto.service.assembly import hashed, receive
from ditto.service.keeping import digest_begun, from_message, in_order, to_message
from ditto.service.leftovers import COPIES
from ditto.service.limits import admit_model
from ditto.service.model_store import KEPT, OPENED, Entry, marks, warm_weights
from ditto.service.stored import Owner, readable_entries, save_entry, save_seed, save_tensors
from ditto.wire import party_pb2, party_pb2_grpc

log = structlog.get_logger()
SWEEP_S = 30.0
Parts = Iterator[party_pb2.FetchShareReply]


class Copies:
    """In the place of a `ModelStore`, for jobs."""

    def __init__(self, config: PartyConfig) -> None:
        self._config, self._role, self._party = config, config.role, config.index
        self._me = f"worker {config.worker} of {config.role}"
        self._root = config.data_dir / COPIES
        make_directory(self._root, 0o700)
        self._channel = open_channel(
            config.keeper_address, config.role, config.tls, config.role, config.max_message_mb, config.silence_s
        )
        self._keeper = party_pb2_grpc.PartyStub(self._channel)
        self._lock = threading.Lock()  # of what is here
        self._fetching = threading.Lock()
        self._loaded: OrderedDict[str, PartyWeights] = OrderedDict()
        self._in_use = WeakValueDictionary[str, PartyWeights]()  # by a job: another one shares them
        paths = sorted(self._root.glob("*/model.json"))
        found = readable_entries(paths, Entry, lambda path: self._owner(path.parent.name))
        self._copies = {entry.share_id: entry for entry in found}
        for place in self._root.iterdir():  # what cannot be read is fetched again
            if place.name not in self._copies:
                shutil.rmtree(place, ignore_errors=True)
        self._asked: dict[str, Entry] = {}  # as the keeper said last, of those that jobs were opened on
        self._stopping = threading.Event()
        threading.Thread(target=self._sweep, name="copies", daemon=True).start()

    def _owner(self, share_id: str) -> Owner:
        return Owner(self._role, share_id, "remove its directory, and it is fetched from the keeper again")

    def entries(self) -> list[Entry]:
        """None: the keeper lists what the party has."""
        return []

    # The keeper ---------------------------------------------------------------------------------

    def _failed(self, error: grpc.RpcError | DittoError) -> DittoError:
        found = from_rpc_error(error, self._role) if isinstance(error, grpc.RpcError) else error
        if isinstance(found, PeerAbsent | PeerLost):
            where = f"the keeper of {self._role}, {self._config.keeper_address}"
            return PeerAbsent(f"{self._me}: {where}, does not answer", peer=self._role)
        return found

    def _ask(self, share_id: str = "") -> Entry | None:
        """The sharing as the keeper has it now; None if it has not. Copies of what it has not go."""
        with self._lock:
            ask = party_pb2.AskKeeperRequest(share_id=share_id, copies=[*self._copies])
        try:
            reply = self._keeper.AskKeeper(ask, timeout=self._config.connect_timeout_s)
        except (grpc.RpcError, PeerAbsent, PeerLost) as error:
            raise self._failed(error) from None
        self._drop(reply.gone)
        if not reply.HasField("sharing"):
            return None
        try:
            entry = from_message(reply.sharing)
        except ValidationError:
            raise IntegrityError(f"{self._me}: what its keeper said is no sharing", peer=self._role) from None
        if entry.share_id != share_id:
            raise IntegrityError(f"{self._me}: its keeper answered for another sharing", peer=self._role)
        return entry

    def entry(self, share_id: str) -> Entry:
        """Raises UnknownModel, PeerAbsent."""
        # 1
        entry = self._ask(check_id(share_id))
        if entry is None:
            self._drop([share_id])
            raise UnknownModel(f"{self._role} has no share of this model", peer=self._role)
        with self._lock:
            self._asked[share_id] = entry
        return entry

    def _sweep(self) -> None:
        while True:
            try:
                self._ask()
            except DittoError as error:
                log.info("not known which copies have to go", reason=str(error))
            except ValueError:  # grpc's, of a channel that was closed since
                if self._stopping.is_set():
                    return
                raise
            if self._stopping.wait(SWEEP_S):
                return

    # Copies -------------------------------------------------------------------------------------

    def _drop(self, share_ids: Iterable[str]) -> None:
        # 3
        with self._lock:
            for share_id in share_ids:
                self._loaded.pop(share_id, None)
                self._in_use.pop(share_id, None)
                self._asked.pop(share_id, None)
                if self._copies.pop(share_id, None) is not None:
                    log.info("copy dropped", share=short(share_id))
                shutil.rmtree(self._root / check_id(share_id), ignore_errors=True)

    def weights(self, share_id: str) -> PartyWeights:
        """Of a sharing that `entry` gave: from memory, from disk, or from the keeper. Raises what fetching does."""
        with self._lock:
            entry, copy = self._asked.get(share_id), self._copies.get(share_id)
        if entry is None:
            raise UnknownModel(f"{self._role} has no share of this model", peer=self._role)
        if copy is None:
            with self._fetching:
                if share_id not in self._copies:  # another job's, meanwhile
                    self._fetch(entry)
        with self._lock:
            weights = self._loaded.get(share_id)
            if weights is None:
                if share_id not in self._copies:
                    raise UnknownModel(f"{self._role} has no share of this model", peer=self._role)
                weights = self._in_use.get(share_id) or warm_weights(self._root / share_id, entry, self._party)
                while len(self._loaded) >= KEPT:
                    self._loaded.popitem(last=False)
                self._loaded[share_id] = self._in_use[share_id] = weights
            self._loaded.move_to_end(share_id)
            return weights

    def marks(self, share_id: str) -> dict[str, str]:
        """As of `model_store.marks`."""
        return marks(self._root / check_id(share_id))

    def _fetch(self, entry: Entry) -> None:
        """Raises LimitExceeded, PeerAbsent, IntegrityError for what is not what the keeper has."""
        # 2
        admit_model(entry.description, self._config, self._role)
        home = self._root / entry.share_id
        shutil.rmtree(home, ignore_errors=True)
        make_directory(home, 0o700)
        call = self._keeper.FetchShare(
            party_pb2.FetchShareRequest(share_id=entry.share_id), timeout=self._config.step_timeout_s
        )
        try:
            self._receive(home, entry, call)
            save_entry(home / "model.json", entry, self._owner(entry.share_id))
            with self._lock:
                self._copies[entry.share_id] = entry
        except BaseException as error:
            call.cancel()
            shutil.rmtree(home, ignore_errors=True)
            if isinstance(error, grpc.RpcError | PeerAbsent | PeerLost):
                raise self._failed(error) from None
            if isinstance(error, BadShare):
                raise IntegrityError(f"{self._me}, from its keeper: {error}", peer=self._role) from None
            raise
        log.info("share fetched", model=entry.model, share=short(entry.share_id))

    def _receive(self, home: Path, entry: Entry, parts: Parts) -> None:
        owner, (masked, plain) = self._owner(entry.share_id), in_order(entry.description)
        seed = next(parts, party_pb2.FetchShareReply()).mask_seed
        save_seed(home / "mask_seed", seed, owner)
        found, digest = digest_begun(to_message(entry), seed), b""

        def chunks() -> Parts:
            nonlocal digest
            for part in parts:
                if part.HasField("digest"):
                    digest = part.digest
                    return
                yield part

        both = masked | plain
        tensors = hashed(receive(chunks(), both), both, found)
        save_tensors(home / OPENED, masked, islice(tensors, len(masked)), owner)
        save_tensors(home / "kept.safetensors", plain, islice(tensors, len(plain)), owner)
        next(tensors, None)  # nothing may follow, and the digest does
        if digest != found.digest():
            raise IntegrityError(f"{self._me}: what it received is not what its keeper has", peer=self._role)

    def close(self) -> None:
        self._stopping.set()
        self._channel.close()
