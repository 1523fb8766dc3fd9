"""What a client does with no more than words: list, show, grant and remove models, ask for the state.

It loads no torch, so that commands for it start at once; `ditto.client.client` adds sharing and asking.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from ditto.client.publication import SharedModel
from ditto.client.status import activity
from ditto.errors import IntegrityError, LimitExceeded, PeerAbsent, UnknownModel
from ditto.models.description import Description, parse
from ditto.names import PARTIES
from ditto.net.config import MOST_WORKERS, ClientConfig, Tls, check_address
from ditto.net.transport import connect, from_rpc_error, open_channel
from ditto.wire import control_pb2, control_pb2_grpc, party_pb2, party_pb2_grpc

MOST_CHANNELS = 3 + 2 * MOST_WORKERS


@contextlib.contextmanager
def calling(peer: str, running: bool = False) -> Iterator[None]:
    """What gRPC raises within becomes the error that it stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer, running) from None


class Manager:
    """A client that asks and changes what the servers hold, without a tensor. A context manager, or `close` ends it."""

    def __init__(self, config: ClientConfig) -> None:
        self._config, self._opening = config, threading.Lock()  # of further channels, by jobs in several threads
        self._channels = {
            role: open_channel(
                config.peers.of(role), role, config.tls, config.role, config.max_message_mb, config.silence_s
            )
            for role in ("coordinator", *PARTIES)
        }
        self._control = control_pb2_grpc.CoordinatorStub(self._channels["coordinator"])
        self._parties = [party_pb2_grpc.PartyStub(self._channels[role]) for role in PARTIES]

    def _pair(self, accepted: control_pb2.Accepted) -> list[party_pb2_grpc.PartyStub]:
        """The workers of both parties that run a job. This client's own configuration says where they are, as far as
        it goes; else the coordinator does. Whoever answers there has to be the party, by its certificate. Raises
        PeerAbsent, CertificateError; IntegrityError for an answer that names no place."""
        worker = accepted.worker
        if not worker:
            return self._parties
        stubs = []
        for at, role in enumerate(PARTIES):
            known = self._config.peers.workers(role)
            if worker >= len(known) and len(accepted.addresses) != len(PARTIES):
                raise IntegrityError(f"the coordinator does not say where worker {worker} is", peer="coordinator")
            address = known[worker] if worker < len(known) else check_address(accepted.addresses[at])
            name = f"{role} at {address}"
            with self._opening:
                channel = self._opened(name, address, role)
            try:
                connect(channel, role, self._config.connect_timeout_s)
            except PeerAbsent as error:
                raise PeerAbsent(f"{error} (worker {worker}, {address})", peer=role) from None
            stubs.append(party_pb2_grpc.PartyStub(channel))
        return stubs

    def _opened(self, name: str, address: str, role: str) -> grpc.Channel:
        """The caller holds the lock."""
        if name not in self._channels:
            if len(self._channels) >= MOST_CHANNELS:
                raise LimitExceeded("the coordinator names ever other workers", peer="coordinator")
            config = self._config
            self._channels[name] = open_channel(
                address, role, config.tls, config.role, config.max_message_mb, config.silence_s
            )
        return self._channels[name]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def _within(self, seconds: float) -> float:
        """The deadline of a call that should take less than a step of a job."""
        return min(seconds, self._config.step_timeout_s)

    def _connect(self, *roles: str) -> None:
        for role in roles:
            connect(self._channels[role], role, self._config.connect_timeout_s)

    # Models -------------------------------------------------------------------------------------

    def list_models(self) -> list[SharedModel]:
        """The shared models that the caller owns or may ask, by name."""
        self._connect("coordinator")
        found = [SharedModel(m.description, m.owner) for m in self._listed()]
        for model in found:
            parse(model.text)
        return found

    def _listed(self, page_size: int = 0) -> Iterator[control_pb2.Model]:
        token = ""
        while True:
            ask = control_pb2.ListModelsRequest(page_token=token, page_size=page_size)
            with calling("coordinator"):
                reply = self._control.ListModels(ask, timeout=30)
            yield from reply.models
            if not (token := reply.next_page_token):
                return

    def get_model(self, name: str) -> Description:
        """The description of one shared model. Raises UnknownModel, NotAllowed."""
        return self.shared(name).description

    def shared(self, name: str) -> SharedModel:
        """The same, and whose it is, as the coordinator says. Raises IntegrityError where it gives another model's."""
        found = self._model(name)
        model = SharedModel(found.description, found.owner)
        if model.name != name:
            raise IntegrityError(f"asked for {name}, the coordinator gave {model.name}", peer="coordinator")
        return model

    def public_part(self, name: str) -> Iterator[control_pb2.PublicPiece]:
        """As it comes, nothing checked: `ditto.client.public.fetch` does. Raises ClusterError where there is none."""
        self._connect("coordinator")
        call = self._control.GetPublic(control_pb2.GetPublicRequest(model=name), timeout=self._config.step_timeout_s)
        try:
            with calling("coordinator"):
                yield from call
        finally:
            call.cancel()

    @property
    def tls(self) -> Tls:
        return self._config.tls

    def _model(self, name: str) -> control_pb2.Model:
        self._connect("coordinator")
        with calling("coordinator"):
            return self._control.GetModel(control_pb2.GetModelRequest(model=name), timeout=self._within(30))

    def _remove(self, request: party_pb2.RemoveModelRequest) -> int:
        """At both parties, also when one fails; how many sharings there were. Raises the first party's error."""
        calls = [stub.RemoveModel.future(request, timeout=60) for stub in self._parties]
        for call in calls:
            call.exception()
        removed = 0
        for role, call in zip(PARTIES, calls, strict=True):
            with calling(role):
                removed += call.result().removed
        return removed

    def remove_model(self, name: str) -> None:
        """Have both parties, and through them the dealer, forget a model, then the coordinator. Can be repeated after
        a failure. Raises UnknownModel, NotAllowed for another's."""
        self._connect("coordinator", *PARTIES)
        removed = self._remove(party_pb2.RemoveModelRequest(model=name))
        with calling("coordinator"):
            reply = self._control.UnregisterModel(control_pb2.UnregisterModelRequest(model=name), timeout=30)
        if not removed and not reply.known:
            raise UnknownModel(f"no model {name!r} is shared")

    def grant_model(self, name: str, to: str, revoke: bool = False) -> None:
        """Let another client, by its certificate's name, ask a model; or, with `revoke`, no longer. At both parties, by
        themselves: the coordinator has no say. Raises UnknownModel, NotAllowed for another's."""
        self._connect(*PARTIES)
        request = party_pb2.GrantModelRequest(model=name, to=to, revoke=revoke)
        for role, stub in zip(PARTIES, self._parties, strict=True):
            with calling(role):
                stub.GrantModel(request, timeout=30)

    def status(self) -> dict[str, Any]:
        self._connect("coordinator")
        with calling("coordinator"):
            reply = self._control.Status(control_pb2.StatusRequest(), timeout=30)
        processes = [
            {"role": p.role, "worker": p.worker, "address": p.address, "serving": p.serving, "error": p.error}
            for p in reply.processes
        ]
        return {"processes": processes, "queued": reply.queued, "running": list(reply.running)} | activity(reply)
