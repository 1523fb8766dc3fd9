"""How a party lays down a job's correlations before anybody asks for it: what `stock.py` keeps, from the dealer."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from ditto.errors import ClusterError
from ditto.net.config import PartyConfig
from ditto.net.messages import plan_of
from ditto.net.metrics import PartyMetrics
from ditto.net.transport import short
from ditto.service.copies import Copies
from ditto.service.limits import admit_job, dealt_to
from ditto.service.model_store import ModelStore
from ditto.service.source import DealerSource, correlations
from ditto.service.stock import Header, Stock
from ditto.wire import dealer_pb2_grpc, party_pb2

log = structlog.get_logger()


class Laying:
    """The checks are those of a job's opening."""

    def __init__(
        self, config: PartyConfig, store: ModelStore | Copies, stock: Stock, dealer: dealer_pb2_grpc.DealerStub,
        metrics: PartyMetrics, check_fresh: Callable[[str], None],
    ) -> None:  # fmt: skip
        """`check_fresh` raises for a name that is, or was, a job's."""
        self._config, self._store, self._stock, self._dealer = config, store, stock, dealer
        self._metrics, self._check_fresh = metrics, check_fresh

    def lay(self, request: party_pb2.StockRequest, leaving: Callable[[Callable[[], None]], bool]) -> int:
        """Have a later job's correlations dealt, and keep them; the bytes of their file. `leaving` takes what is called
        when the coordinator wants them no more, as grpc's `add_callback`.

        The name is refused if it is, or was, any job's that is known here; so is what finds no room.
        """
        self._check_fresh(request.job)
        entry = self._store.entry(request.share_id)
        if request.client:
            entry.check_asks(request.client)
        entry.check_description(request.description_digest, self._config.role)
        if not entry.active:
            raise ClusterError(f"the sharing of {entry.model} was never activated; share the model again")
        plan = plan_of(request.plan)
        admit_job(entry.description, plan, request.fingerprint, self._config, self._config.role)
        header = Header(
            job=request.job, share_id=entry.share_id, plan=plan, fingerprint=request.fingerprint, client=request.client
        )
        payload = dealt_to(entry.description, plan, self._config.index)
        with self._stock.claiming(header, payload):
            source = DealerSource(self._dealer, correlations(request), self._config.step_timeout_s, self._metrics)
            try:
                if not leaving(source.close):
                    raise ClusterError("the coordinator wants it no more", peer=self._config.role)
                seed = source.seed()
                header = header.model_copy(update={"dealing": source.dealing})
                nbytes = self._stock.lay(header, seed, source.rest(), payload)
            finally:
                source.close("the stock is laid down, or not wanted")
        log.info("stock laid down", job=short(request.job), model=entry.model, bytes=nbytes, **vars(plan))
        return nbytes
