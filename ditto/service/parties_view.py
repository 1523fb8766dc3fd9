"""What the coordinator asks the parties about models: whether they hold what it lists, and who may ask it.

It decides nothing by that: a party checks each job by itself when it is opened. A client hears earlier that it may not
ask, and nobody is handed a description that is not the parties'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import structlog

from ditto.errors import DamagedFile, DittoError, NotAllowed
from ditto.models.description import digest_of
from ditto.net.transport import from_rpc_error
from ditto.service.job_run import Stubs
from ditto.service.registered import Registered
from ditto.wire import control_pb2, dealer_pb2, party_pb2

log = structlog.get_logger()
FAULTS = 20  # that a status names


def check_request(model: Registered, client: str) -> party_pb2.CheckModelRequest:
    return party_pb2.CheckModelRequest(
        model=model.model, share_id=model.share_id, client=client, description_digest=digest_of(model.description)
    )


class PartiesView:
    """Any thread may ask. A party that says nothing within `timeout` seconds has no objection, and no models."""

    def __init__(self, stubs: Stubs, timeout: float) -> None:
        self._stubs, self._timeout = stubs, timeout

    def check(self, model: Registered, client: str, sure: bool = False) -> None:
        """Raises NotAllowed where a party says so, DamagedFile where the coordinator's description is not its own.
        To be `sure`, one of them has to say yes: else its error is raised."""
        ask = check_request(model, client)
        calls = {role: stub.CheckModel.future(ask, timeout=self._timeout) for role, stub in self._stubs.items()}
        unknown: list[DittoError] = []
        for role, call in calls.items():
            error = _error(call, role)
            if isinstance(error, NotAllowed | DamagedFile):
                raise error
            if error is not None:
                log.info("not known yet whether a model may be asked", peer=role, reason=str(error))
                unknown.append(error)
        if sure and len(unknown) == len(calls):
            raise unknown[0]

    def may_ask(self, client: str) -> set[str]:
        """The sharings that a client owns or was granted, by the first party that answers."""
        for role in self._stubs:
            try:
                return {model.share_id for model in self._models(role, client)}
            except DittoError as error:
                log.info("not known what a client may ask", peer=role, reason=str(error))
        return set()

    def about(self, role: str) -> dealer_pb2.About | None:
        """What a party says of itself; None if it does not."""
        try:
            return self._stubs[role].ListModels(party_pb2.PartyModelsRequest(page_size=1), timeout=self._timeout).about
        except (grpc.RpcError, DittoError) as error:
            log.info("not known what a party computes with", peer=role, reason=type(error).__name__)
            return None

    def held(
        self, models: Iterable[Registered], roles: Iterable[str]
    ) -> tuple[list[control_pb2.ModelFault], list[control_pb2.ModelStock]]:
        """Where one of these parties does not hold what is listed, FAULTS at most; and what each has in stock of it. Of
        one that does not answer: nothing."""
        listed, faults, stock = list(models), list[control_pb2.ModelFault](), list[control_pb2.ModelStock]()
        for role in roles if listed else ():
            try:
                held = {model.share_id: model for model in self._models(role)}
            except DittoError:  # its row of the status says why
                continue
            for model in listed:
                one = held.get(model.share_id)
                if (what := _fault(model, one)) and len(faults) < FAULTS:
                    faults.append(control_pb2.ModelFault(model=model.model, role=role, what=what))
                for stocked in one.stock if one else ():
                    stock.append(control_pb2.ModelStock(model=model.model, role=role, stocked=stocked))
        return faults, stock

    def _models(self, role: str, client: str = "") -> Iterator[party_pb2.PartyModel]:
        token = ""
        while True:
            ask = party_pb2.PartyModelsRequest(page_token=token, client=client)
            try:
                reply = self._stubs[role].ListModels(ask, timeout=self._timeout)
            except grpc.RpcError as error:
                raise from_rpc_error(error, role) from None
            yield from reply.models
            if not (token := reply.next_page_token):
                return


def _fault(model: Registered, held: party_pb2.PartyModel | None) -> str:
    if held is None:
        return "holds no share of it"
    if not held.active:
        return "has a share that was never activated"
    if held.description_digest != digest_of(model.description):
        return "has another description"
    return "" if held.owner == model.owner else "knows another owner"


def _error(call: Any, role: str) -> DittoError | None:
    error = call.exception()
    if error is None:
        return None
    return from_rpc_error(error, role) if isinstance(error, grpc.RpcError) else DittoError(f"{role}: {error}", role)
