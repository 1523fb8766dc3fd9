"""The RPCs of a compute party."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import structlog

from ditto.engine.ledger import Phase
from ditto.engine.sharing import answer_type
from ditto.errors import BadShare, CertificateError, ClusterError, DittoError, NotAllowed
from ditto.models.description import digest_of
from ditto.names import check_id, check_name
from ditto.net.config import PartyConfig
from ditto.net.identity import Identity, caller
from ditto.net.messages import to_message
from ditto.net.metrics import PartyMetrics
from ditto.net.peerlink import PeerLink
from ditto.net.tracing import OFF, Context, Tracing, received
from ditto.net.transport import Roles, connect, from_rpc_error, open_channel, short
from ditto.service.about import Links, about
from ditto.service.assembly import Assembly, pieces
from ditto.service.copies import Copies
from ditto.service.keeping import answer, kept
from ditto.service.laying import Laying
from ditto.service.model_store import Entry, ModelStore
from ditto.service.pages import page
from ditto.service.party_jobs import Jobs
from ditto.wire import dealer_pb2, dealer_pb2_grpc, party_pb2, party_pb2_grpc

log = structlog.get_logger()
_STEERED = ("ActivateModel", "CheckModel", "OpenJob", "Prepare", "Run", "CloseJob", "Stock")  # by the coordinator
_CLIENT, _CONTROL = frozenset({"client"}), frozenset({"coordinator"})


def roles(config: PartyConfig) -> Roles:
    table = {name: _CONTROL for name in _STEERED}
    table |= {name: _CLIENT for name in ("PutModel", "RemoveModel", "GrantModel", "PutInput", "FetchOutput")}
    table["ListModels"] = _CLIENT | _CONTROL
    if config.index == 0:
        table["Exchange"] = frozenset({"party1"})
    if config.worker == 0:  # the other workers have no share but their keeper's
        table |= dict.fromkeys(("AskKeeper", "FetchShare"), frozenset({config.role}))
    return table


class LinkService(party_pb2_grpc.PeerLinkServicer):
    """Party 0's end of the peer link."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link

    def Exchange(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        return self._link.serve(request_iterator, context)


class PartyService(party_pb2_grpc.PartyServicer):
    def __init__(self, config: PartyConfig, tracing: Tracing = OFF) -> None:
        self._config = config
        self._store: ModelStore | Copies = (
            Copies(config) if config.worker else ModelStore(config.data_dir, config.index, config)
        )
        self.metrics = PartyMetrics()
        self.metrics.models.set_function(lambda: len(self._store.entries()))
        self.link = PeerLink(
            config.role, config.peer, config.connect_timeout_s, config.step_timeout_s, config.network,
            self.metrics.link,
        )  # fmt: skip
        self._dealer_channel = open_channel(
            config.peers.dealer, "dealer", config.tls, config.role, config.max_message_mb, config.silence_s
        )
        self._dealer = dealer_pb2_grpc.DealerStub(self._dealer_channel)
        self._jobs = Jobs(config, self._store, self.link, self._dealer, self.metrics, tracing)
        stock = self._jobs.stock
        self._laying = Laying(config, self._store, stock, self._dealer, self.metrics, self._jobs.check_fresh)
        self.metrics.stock_jobs.set_function(lambda: len(stock))
        self.metrics.stock_bytes.set_function(lambda: stock.nbytes)
        self._peer_channel: grpc.Channel | None = None
        if config.index == 1:
            address = config.peers.of(config.peer, config.worker)
            self._peer_channel = open_channel(
                address, config.peer, config.tls, config.role, config.max_message_mb, config.silence_s
            )
            self.link.dial(party_pb2_grpc.PeerLinkStub(self._peer_channel))
        channels = {"dealer": self._dealer_channel} | ({config.peer: self._peer_channel} if self._peer_channel else {})
        self._links = Links(channels, {config.peer: lambda: self.link.fastest})

    # Models -------------------------------------------------------------------------------------

    @property
    def _models(self) -> ModelStore:
        """Raises ClusterError at a worker that keeps none."""
        if isinstance(self._store, Copies):
            raise ClusterError(
                f"worker {self._config.worker} of {self._config.role} keeps no models: ask its keeper",
                self._config.role,
            )
        return self._store

    def AskKeeper(self, request: party_pb2.AskKeeperRequest, context: grpc.ServicerContext) -> party_pb2.AskKeeperReply:
        return answer(self._models, request)

    def FetchShare(
        self, request: party_pb2.FetchShareRequest, context: grpc.ServicerContext
    ) -> Iterator[party_pb2.FetchShareReply]:
        log.info("share fetched by a worker", share=short(request.share_id))
        return kept(self._models, request.share_id)

    def PutModel(
        self, request_iterator: Iterator[party_pb2.PutModelRequest], context: grpc.ServicerContext
    ) -> party_pb2.PutModelReply:
        entry = self._models.put(request_iterator, str(caller(context)))
        log.info("model put", model=entry.model, share=entry.share_id, owner=entry.owner)
        return party_pb2.PutModelReply()

    def ActivateModel(
        self, request: party_pb2.ActivateModelRequest, context: grpc.ServicerContext
    ) -> party_pb2.ActivateModelReply:
        with self._models.activating(request.share_id) as entry:
            return self._activate(request, entry, context)

    def _activate(
        self, request: party_pb2.ActivateModelRequest, entry: Entry, context: grpc.ServicerContext
    ) -> party_pb2.ActivateModelReply:
        if (entry.model, entry.owner) != (request.model, request.owner):
            raise NotAllowed("this sharing is of another model, or of another owner", peer=self._config.role)
        entry.check_description(request.description_digest, self._config.role)
        connect(self._dealer_channel, "dealer", self._config.connect_timeout_s)
        self._tell_dealer()
        ask = dealer_pb2.ModelSeedRequest(
            model=entry.model, share_id=entry.share_id, description=entry.description, digest=entry.share_digest
        )
        try:
            seed = self._dealer.ModelSeed(ask, timeout=60).seed
        except grpc.RpcError as error:
            raise from_rpc_error(error, "dealer") from None
        channel = self.link.open(check_id(request.attempt))
        reason = "activation failed"
        context.add_callback(lambda: channel.close(reason))
        try:
            self._models.activate(entry, seed, channel)
            reason = ""
        finally:
            channel.close(reason)
        log.info("model active", model=entry.model, share=entry.share_id, bytes_sent=channel.payload_sent)
        return party_pb2.ActivateModelReply()

    def CheckModel(
        self, request: party_pb2.CheckModelRequest, context: grpc.ServicerContext
    ) -> party_pb2.CheckModelReply:
        entry = self._store.entry(request.share_id)
        if entry.model != request.model:
            raise NotAllowed("this sharing is of another model", peer=self._config.role)
        entry.check_asks(request.client)
        entry.check_description(request.description_digest, self._config.role)
        return party_pb2.CheckModelReply(active=entry.active)

    def RemoveModel(
        self, request: party_pb2.RemoveModelRequest, context: grpc.ServicerContext
    ) -> party_pb2.RemoveModelReply:
        """Asked by the owner's client itself: a coordinator alone can make no party forget a model."""
        owner = str(caller(context))
        removed = self._models.remove(request.model, owner, self._chosen(request, owner))
        for share_id in removed:
            self._jobs.stock.forget(share_id)
            log.info("model dropped", model=request.model, share=short(share_id), owner=owner)
        self._tell_dealer()
        return party_pb2.RemoveModelReply(removed=len(removed))

    def _chosen(self, request: party_pb2.RemoveModelRequest, owner: str) -> Callable[[Entry], bool]:
        if request.keep:
            newest = self._models.entry(request.keep)
            if not newest.active or (newest.model, newest.owner) != (request.model, owner):
                raise ClusterError("the sharing to keep does not serve this model", peer=self._config.role)
            return lambda entry: entry.order < newest.order  # what is put later may serve by now
        return lambda entry: not request.only or entry.share_id == request.only

    def _tell_dealer(self) -> None:
        """What was dropped here. Without a dealer it is told the next time: best effort."""
        for share_id in self._models.untold():
            try:
                self._dealer.ForgetModel(dealer_pb2.ForgetModelRequest(share_id=share_id), timeout=5)
            except (grpc.RpcError, CertificateError) as error:
                reason = str(from_rpc_error(error, "dealer") if isinstance(error, grpc.RpcError) else error)
                log.warning("the dealer knows nothing of a drop yet", reason=reason)
                return
            self._models.told(share_id)

    def GrantModel(
        self, request: party_pb2.GrantModelRequest, context: grpc.ServicerContext
    ) -> party_pb2.GrantModelReply:
        owner, other = str(caller(context)), str(Identity("client", check_name(request.to)))
        self._models.grant(request.model, owner, other, request.revoke)
        log.info("grant", model=request.model, owner=owner, client=other, revoked=request.revoke)
        return party_pb2.GrantModelReply()

    def ListModels(
        self, request: party_pb2.PartyModelsRequest, context: grpc.ServicerContext
    ) -> party_pb2.PartyModelsReply:
        who = caller(context)
        asking = str(who)
        entries = self._store.entries()
        if who.role == "client":
            entries = [e for e in entries if e.may_ask(asking)]
        elif request.client:
            entries = [e for e in entries if e.active and e.may_ask(request.client)]
        models = [
            party_pb2.PartyModel(
                model=e.model, share_id=e.share_id, active=e.active, owner=e.owner,
                granted=e.granted if e.owner == asking else (), description_digest=digest_of(e.description),
                stock=self._stocked(e) if who.role == "coordinator" else (),
            )
            for e in entries
        ]  # fmt: skip
        given, after = page(
            models, lambda m: f"{m.model}/{m.share_id}", lambda m: m.ByteSize(), request.page_token, request.page_size
        )
        links = self._links.state() if request.links else ()
        return party_pb2.PartyModelsReply(
            models=given, peer_link=self.link.up, next_page_token=after, about=about(), links=links
        )

    def _stocked(self, entry: Entry) -> list[party_pb2.Stocked]:
        return [
            party_pb2.Stocked(plan=to_message(plan), count=count, bytes=nbytes)
            for plan, (count, nbytes) in self._jobs.stock.of(entry.share_id).items()
        ]

    # Jobs ---------------------------------------------------------------------------------------

    def Stock(self, request: party_pb2.StockRequest, context: grpc.ServicerContext) -> party_pb2.StockReply:
        connect(self._dealer_channel, "dealer", self._config.connect_timeout_s)
        return party_pb2.StockReply(bytes=self._laying.lay(request, context.add_callback))

    def OpenJob(self, request: party_pb2.OpenJobRequest, context: grpc.ServicerContext) -> party_pb2.OpenJobReply:
        connect(self._dealer_channel, "dealer", self._config.connect_timeout_s)
        self._jobs.open(request, received(context))
        return party_pb2.OpenJobReply()

    def Prepare(self, request: party_pb2.StepRequest, context: grpc.ServicerContext) -> party_pb2.StepReply:
        return self._step("offline", request, received(context))

    def Run(self, request: party_pb2.StepRequest, context: grpc.ServicerContext) -> party_pb2.StepReply:
        return self._step("online", request, received(context))

    def _step(self, phase: Phase, request: party_pb2.StepRequest, parent: Context | None) -> party_pb2.StepReply:
        job = self._jobs.get(request.job)
        try:
            reply = job.step(phase, request, time.monotonic() + self._config.step_timeout_s, parent)
        except Exception as error:
            code = error.code if isinstance(error, DittoError) else type(error).__name__
            self._jobs.close(request.job, f"{phase} work failed ({code})")
            raise
        self.metrics.seconds.labels(phase).observe(reply.seconds)
        log.debug("layer done", stage=request.stage, phase=phase, seconds=round(reply.seconds, 4))
        return reply

    def CloseJob(self, request: party_pb2.CloseJobRequest, context: grpc.ServicerContext) -> party_pb2.CloseJobReply:
        self._jobs.close(check_id(request.job), request.reason)
        return party_pb2.CloseJobReply()

    # The client's shares ------------------------------------------------------------------------

    def PutInput(
        self, request_iterator: Iterator[party_pb2.PutInputRequest], context: grpc.ServicerContext
    ) -> party_pb2.PutInputReply:
        first = next(request_iterator, party_pb2.PutInputRequest())
        if not first.HasField("header"):
            raise BadShare("an upload that does not begin with its header", peer=self._config.role)
        header = first.header
        structlog.contextvars.bind_contextvars(job=short(header.job))
        job = self._jobs.of_client(header.job, str(caller(context)))
        self._jobs.check_terms(header.job, header.terms)
        with job.span.child("input", stage=header.stage):  # part of the coordinator's trace, whatever the client names
            assembly: Assembly | None = job.input(header)
            for request in request_iterator:
                if assembly is None or not request.HasField("chunk"):
                    raise BadShare(f"{header.name}: more than was announced", peer=self._config.role)
                assembly.add(request.chunk.offset, request.chunk.data)
            if assembly is not None:
                job.set_input(header.stage, header.name, assembly.tensor())
        return party_pb2.PutInputReply()

    def FetchOutput(
        self, request: party_pb2.FetchOutputRequest, context: grpc.ServicerContext
    ) -> Iterator[party_pb2.TensorChunk]:
        job = self._jobs.of_client(request.job, str(caller(context)))
        stage = job.stage(request.stage)
        wire = stage.program.outputs.get(request.name)
        if stage.outputs is None:
            raise ClusterError(f"job {job.name} has no answer yet", peer=self._config.role)
        if wire is None:
            raise BadShare(f"{request.name!r} is no output of this program", peer=self._config.role)
        wire = answer_type(wire)
        with job.span.child("output", stage=request.stage):
            yield from pieces(request.name, wire, stage.outputs[request.name])
        stage.fetched.add(request.name)
        if job.left(request.stage):
            self._jobs.close(request.job)

    def close(self) -> None:
        self._jobs.close_all()
        if isinstance(self._store, Copies):
            self._store.close()
        self.link.stop()
        self._dealer_channel.close()
        if self._peer_channel is not None:
            self._peer_channel.close()
