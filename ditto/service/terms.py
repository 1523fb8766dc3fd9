"""Whose a job is at a party, and what it computes: checked against who calls and what a client believes."""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from ditto.engine.plan import Plan
from ditto.errors import JobMismatch, NotAllowed, VersionMismatch
from ditto.net.messages import plan_of
from ditto.wire import party_pb2

_UNSAID = {"share_id": "sharing", "description_digest": "description"}  # what their values would tell nobody


def binding(share_id: str, plan: Plan, fingerprint: str, stocked: bool, dealing: str) -> str:
    """What both parties have to mean by one job's name, for their first message: whoever told them the name may have
    told them different things, and have had it dealt twice."""
    text = json.dumps([share_id, vars(plan), fingerprint, stocked, dealing], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Terms(NamedTuple):
    """What this party runs. The model and its owner are by its own records, the client by what it was told: whoever
    told it gains nothing, since only that client brings inputs and fetches outputs."""

    client: str
    model: str
    owner: str
    share_id: str
    plan: Plan
    fingerprint: str
    description_digest: bytes

    def check_caller(self, caller: str, role: str) -> None:
        """Raises NotAllowed for anybody but the client of the job: knowing its name opens nothing."""
        if caller != self.client:
            raise NotAllowed(f"this job belongs to {self.client}, not to {caller}", peer=role)

    def check(self, believed: party_pb2.JobTerms, role: str) -> None:
        """Raises JobMismatch, or VersionMismatch for another program, unless the client means this job."""
        theirs = Terms(
            self.client, believed.model, believed.owner, believed.share_id, plan_of(believed.plan),
            believed.fingerprint, believed.description_digest,
        )  # fmt: skip
        for field, mine, meant in zip(self._fields, self, theirs, strict=True):
            if mine == meant:
                continue
            if field == "fingerprint":
                raise VersionMismatch(f"{role} runs another program than the client compiled (fingerprint)", peer=role)
            word = _UNSAID.get(field, field)
            detail = "" if field in _UNSAID else f": {mine}, not {meant}"
            raise JobMismatch(f"{role} runs a job of another {word} than was asked for{detail}", peer=role)
