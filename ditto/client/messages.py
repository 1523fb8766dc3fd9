"""What a client sends and receives: what it means by a job, and shares in pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ditto.engine.program import Program, Wire
from ditto.errors import IntegrityError
from ditto.models import Plan
from ditto.models.description import digest_of
from ditto.names import PARTIES
from ditto.net.messages import tensor_chunks, to_message
from ditto.ring import pack
from ditto.wire import control_pb2, party_pb2


def terms_of(model: control_pb2.Model, plan: Plan, program: Program) -> party_pb2.JobTerms:
    """What a client believes that it asks; `program` is the first stage's."""
    return party_pb2.JobTerms(
        model=model.model, owner=model.owner, share_id=model.share_id, plan=to_message(plan),
        fingerprint=program.fingerprint, description_digest=digest_of(model.description),
    )  # fmt: skip


def ask_of(terms: party_pb2.JobTerms, in_turns: bool = False) -> control_pb2.RunJobRequest:
    """The same, as the coordinator is asked: on whichever sharing serves when the job's turn comes."""
    return control_pb2.RunJobRequest(
        model=terms.model, owner=terms.owner, plan=terms.plan, fingerprint=terms.fingerprint,
        description_digest=terms.description_digest, in_turns=in_turns,
    )  # fmt: skip


def deal_of(terms: party_pb2.JobTerms, count: int) -> control_pb2.DealRequest:
    """So many jobs like it, to be laid down."""
    return control_pb2.DealRequest(
        model=terms.model, owner=terms.owner, plan=terms.plan, fingerprint=terms.fingerprint,
        description_digest=terms.description_digest, count=count,
    )  # fmt: skip


def chunks(name: str, wire: Wire, share: torch.Tensor) -> Iterator[party_pb2.TensorChunk]:
    """A share in pieces, in order."""
    return tensor_chunks(name, wire.ring, wire.shape, pack(share, wire.ring))


def whole(pieces: Iterable[party_pb2.TensorChunk], name: str, wire: Wire, party: int) -> bytes:
    """A share from its pieces, in order. Raises IntegrityError."""
    data, peer = bytearray(), PARTIES[party]
    for chunk in pieces:
        if (chunk.name, chunk.offset) != (name, len(data)):
            raise IntegrityError(f"{peer}: the pieces of {name} do not fit together", peer=peer)
        data += chunk.data
    if len(data) != wire.nbytes:
        raise IntegrityError(f"{peer} sent {len(data)} bytes of {name}, expected {wire.nbytes}", peer=peer)
    return bytes(data)
