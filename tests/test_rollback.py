"""A server's directory that is put back to an older copy: no mask hides a second W, whichever servers forget."""

from __future__ import annotations

import contextlib
import itertools
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine import both
from tiny import small_model

from ditto.engine.channel import MemoryChannel
from ditto.engine.sharing import share
from ditto.errors import ClusterError, DittoError, NotAllowed
from ditto.models.compiled import weights_of
from ditto.names import PARTIES
from ditto.net.config import DealerConfig, Tls
from ditto.net.identity import Identity
from ditto.ring import pack
from ditto.ring.prg import new_seed
from ditto.service import dealer_service
from ditto.service.dealer_service import DealerService
from ditto.service.model_store import ModelStore
from ditto.wire import dealer_pb2, party_pb2

Weights = dict[str, torch.Tensor]
ROLES = ("dealer", *PARTIES)
ID = secrets.token_hex(16)


class Servers:
    """Both parties' stores and the dealer, as processes that have just started on these directories."""

    def __init__(self, root: Path) -> None:
        tls = Tls(ca=root / "ca", cert=root / "cert", key=root / "key")
        self.dealer = DealerService(DealerConfig(listen="127.0.0.1:0", data_dir=root / "dealer", tls=tls))
        self.stores = [ModelStore(root / role, party) for party, role in enumerate(PARTIES)]
        self.seeds: list[bytes] = [b"", b""]  # what the dealer gave for the last activation
        self.tell()

    def tell(self) -> None:
        for role, store in zip(PARTIES, self.stores, strict=True):
            for share_id in store.untold():
                self.dealer.ForgetModel(dealer_pb2.ForgetModelRequest(share_id=share_id), _by(role))
                store.told(share_id)

    def bring(self, text: str, weights: Weights) -> None:
        """The owner's upload under ID; a party that refuses leaves it to the others."""
        seed = new_seed()
        for party, store in enumerate(self.stores):
            header = party_pb2.ModelHeader(model="m", share_id=ID, description=text)
            parts = [party_pb2.PutModelRequest(header=header)]
            if party == 0:
                header.seed = seed
                parts = [party_pb2.PutModelRequest(header=header)]
            for name, wire in weights_of(text).items() if party else ():
                data = pack(share(name, weights[name], wire, seed), wire.ring)
                chunk = party_pb2.TensorChunk(
                    name=name, ring=wire.ring, shape=wire.shape, offset=0, total=len(data), data=data
                )
                parts.append(party_pb2.PutModelRequest(chunk=chunk))
            with contextlib.suppress(DittoError):
                store.put(iter(parts), "client/alice")

    def activate(self, *parties: int) -> None:
        """As `PartyService.ActivateModel`, where a party has an inactive sharing. Raises what the dealer says."""
        entries = [store.entry(ID) for store in self.stores]
        if any(entry.active for entry in entries):
            raise ClusterError("active already")
        for party in parties:
            ask = dealer_pb2.ModelSeedRequest(
                model="m", share_id=ID, description=entries[party].description, digest=entries[party].share_digest
            )
            self.seeds[party] = self.dealer.ModelSeed(ask, _by(PARTIES[party])).seed
        if len(parties) == 2:
            channels = MemoryChannel.pair()
            both(lambda party: self.stores[party].activate(entries[party], self.seeds[party], channels[party]))


def _by(role: str) -> Any:
    return SimpleNamespace(role=role)


@pytest.fixture(scope="module")
def model() -> tuple[str, Weights]:
    return small_model()


MOMENTS = ("before", "brought", "half", "active", "dropped")


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, model: tuple[str, Weights]) -> Iterator[tuple[Path, list[bytes]]]:
    """The directories at each moment of one sharing's life, and the mask seeds of it."""
    root = tmp_path_factory.mktemp("history")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealer_service, "caller", lambda context: Identity(context.role))
        now = root / "now"
        servers = Servers(now)
        shutil.copytree(now, root / "before")
        servers.bring(*model)
        shutil.copytree(now, root / "brought")
        servers.activate(0)  # one party's digest is bound
        shutil.copytree(now, root / "half")
        servers.activate(0, 1)
        shutil.copytree(now, root / "active")
        seeds = list(servers.seeds)
        for store in servers.stores:
            store.drop(ID)
        servers.tell()
        now.rename(root / "dropped")
        yield root, seeds


@pytest.mark.parametrize("dealer", MOMENTS)
def test_no_mask_hides_a_second_share(
    dealer: str, history: tuple[Path, list[bytes]], model: tuple[str, Weights], tmp_path: Path
) -> None:
    """Each server is put back to any moment and started; then other weights come under the same identifier.

    Somebody refuses, but where both parties and the dealer have forgotten that it ever was: then masks are drawn anew.
    """
    root, before = history
    text, weights = model
    others = {name: weight + 1 for name, weight in weights.items()}
    accepted = []
    for moments in itertools.product(MOMENTS, repeat=2):
        home = tmp_path / "-".join(moments)
        for role, moment in zip(ROLES, (dealer, *moments), strict=True):
            shutil.copytree(root / moment / role, home / role)
        servers = Servers(home)
        servers.bring(text, others)
        try:
            servers.activate(0, 1)
        except DittoError:
            continue
        accepted.append(moments)
        assert not {*servers.seeds} & {*before}, f"{moments}: a mask was used again"
    assert accepted == ([("before", "before")] if dealer in ("before", "brought") else [])


def test_a_dealer_that_forgot_a_sharing_draws_other_masks(
    history: tuple[Path, list[bytes]], tmp_path: Path, model: tuple[str, Weights]
) -> None:
    """What a party's operator gets of it alone: a seed that hides nothing that was ever opened."""
    root, before = history
    shutil.copytree(root / "before", tmp_path / "s")
    servers = Servers(tmp_path / "s")
    for party, role in enumerate(PARTIES):
        ask = dealer_pb2.ModelSeedRequest(model="m", share_id=ID, description=model[0], digest=64 * "0")
        assert servers.dealer.ModelSeed(ask, _by(role)).seed != before[party]


def test_a_grant_that_comes_back_at_one_party_opens_nothing(history: tuple[Path, list[bytes]], tmp_path: Path) -> None:
    """Each party holds a client against its own word; both have to be put back before a grant that was taken back
    holds again."""
    root, _ = history
    for role in ROLES:
        shutil.copytree(root / "active" / role, tmp_path / "now" / role)
    servers = Servers(tmp_path / "now")
    for store in servers.stores:
        store.grant("m", "client/alice", "client/bob", revoke=False)
    shutil.copytree(tmp_path / "now" / "party0", tmp_path / "copy")
    for store in servers.stores:
        store.grant("m", "client/alice", "client/bob", revoke=True)
    shutil.rmtree(tmp_path / "now" / "party0")
    (tmp_path / "copy").rename(tmp_path / "now" / "party0")
    again = Servers(tmp_path / "now")
    again.stores[0].entry(ID).check_asks("client/bob")
    with pytest.raises(NotAllowed):
        again.stores[1].entry(ID).check_asks("client/bob")


def test_the_test_would_see_a_mask_used_again(
    history: tuple[Path, list[bytes]], tmp_path: Path, model: tuple[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dealer that binds no digests, on a directory from when the sharing was active, gives the same masks again."""
    root, before = history
    for role in ROLES:
        shutil.copytree(root / ("active" if role == "dealer" else "before") / role, tmp_path / role)
    load = dealer_service.load_entry
    monkeypatch.setattr(dealer_service, "load_entry", lambda *of: load(*of).model_copy(update={"digests": {}}))
    servers = Servers(tmp_path)
    servers.bring(*model)
    servers.activate(0, 1)
    assert servers.seeds == before
