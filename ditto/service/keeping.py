"""What the keeper of a party, its worker 0, tells the other workers: they are replicas, and models, grants and removals
are the keeper's alone.

Only the party's own role is answered (`party_service.roles`): whoever holds its key is the party.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from ditto.engine.program import Wire
from ditto.errors import DamagedFile, UnknownModel
from ditto.models.compiled import weights_of
from ditto.service.assembly import hashed, pieces
from ditto.service.model_store import OPENED, Entry, ModelStore, of_kind
from ditto.service.stored import load_seed, load_tensors
from ditto.wire import party_pb2


def in_order(description: str) -> tuple[dict[str, Wire], dict[str, Wire]]:
    """What a party keeps of an active sharing, as it goes to a worker: first F, then the shares without a mask."""
    wires = weights_of(description)
    return of_kind(wires, True), of_kind(wires, False)


def digest_begun(sharing: party_pb2.KeptSharing, mask_seed: bytes) -> Any:
    """SHA-256 of a sharing and its seed; the tensors come after them."""
    about = [sharing.share_id, sharing.model, sharing.description, sharing.share_digest, mask_seed.hex()]
    return hashlib.sha256(json.dumps(about).encode())


def to_message(entry: Entry) -> party_pb2.KeptSharing:
    return party_pb2.KeptSharing(**entry.model_dump(exclude={"active"}))


def from_message(sharing: party_pb2.KeptSharing) -> Entry:
    return Entry(
        model=sharing.model, share_id=sharing.share_id, description=sharing.description, active=True,
        owner=sharing.owner, granted=list(sharing.granted), share_digest=sharing.share_digest, order=sharing.order,
    )  # fmt: skip


def answer(store: ModelStore, request: party_pb2.AskKeeperRequest) -> party_pb2.AskKeeperReply:
    """The sharing as it is now, if it is active, and which of the worker's copies are of none that is."""
    active = {entry.share_id: entry for entry in store.entries() if entry.active}
    reply = party_pb2.AskKeeperReply(gone=[share_id for share_id in request.copies if share_id not in active])
    if (entry := active.get(request.share_id)) is not None:
        reply.sharing.CopyFrom(to_message(entry))
    return reply


def kept(store: ModelStore, share_id: str) -> Iterator[party_pb2.FetchShareReply]:
    """All that the party keeps of an active sharing, one tensor in memory at a time. Raises UnknownModel, also where it
    is dropped meanwhile; DamagedFile."""
    entry = store.entry(share_id)
    if not entry.active:
        raise UnknownModel(f"{store.role} has not activated this sharing", peer=store.role)
    home, owner = store.home(share_id)
    masked, plain = in_order(entry.description)
    try:
        seed = load_seed(home / "mask_seed", owner)
        found = digest_begun(to_message(entry), seed)
        yield party_pb2.FetchShareReply(mask_seed=seed)
        for name, wires in ((OPENED, masked), ("kept.safetensors", plain)):
            tensors = (tensor for _, tensor in load_tensors(home / name, wires, owner))
            for (key, wire), tensor in zip(wires.items(), hashed(tensors, wires, found), strict=True):
                yield from _chunks(key, wire, tensor)
        yield party_pb2.FetchShareReply(digest=found.digest())
    except DamagedFile:
        store.entry(share_id)
        raise


def _chunks(name: str, wire: Wire, tensor: torch.Tensor) -> Iterator[party_pb2.FetchShareReply]:
    return (party_pb2.FetchShareReply(chunk=chunk) for chunk in pieces(name, wire, tensor))
