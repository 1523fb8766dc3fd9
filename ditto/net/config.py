"""One YAML file configures one process; unknown keys are refused."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WrapValidator,
    model_validator,
)  # fmt: skip
from pydantic_core import ErrorDetails

from ditto.errors import ClusterError, ConfigError
from ditto.names import NAME, Role
from ditto.net.documents import read_yaml
from ditto.net.emulation import Network, network
from ditto.net.processor import threads_here

DEFAULT_PORTS = {"coordinator": 50050, "party0": 50051, "party1": 50052, "dealer": 50053}
_ADDRESS = r"^[^\s:/]+:\d{1,5}$|^\[[0-9a-fA-F:]+\]:\d{1,5}$"
Address = Annotated[str, StringConstraints(pattern=_ADDRESS)]

MOST = 5  # keys that one message names


def _profile(value: Any) -> Any:
    """A network may also be named: by its profile, or by a `$VARIABLE` of the environment that holds the name."""
    return network(os.path.expandvars(value)) if isinstance(value, str) else value


def _variable(value: Any) -> Any:
    """A `$VARIABLE` of the environment may stand for an address: none, where it is empty."""
    return (os.path.expandvars(value) or None) if isinstance(value, str) else value


def _collector(value: Any) -> Any:
    """The endpoint alone, or a `$VARIABLE` that holds it, may stand for the mapping."""
    endpoint = _variable(value)
    return {"endpoint": endpoint} if isinstance(endpoint, str) else endpoint


def check_address(text: str) -> str:
    """HOST:PORT, as a configuration may have it. Raises ClusterError."""
    if len(text) > 300 or not re.fullmatch(_ADDRESS, text):
        raise ClusterError(f"{text[:100]!r} is no address")
    return text


def _several(value: Any) -> Any:
    """One address may stand for a list of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _number(value: Any) -> Any:
    """A `$VARIABLE` of the environment may stand for a number: 0, where it is empty."""
    return (os.path.expandvars(value) or 0) if isinstance(value, str) else value


Seconds = Annotated[float, Field(gt=0, le=1e7)]  # four months: what waits for longer overflows the clock
MOST_THREADS = 1024
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
COMPUTING = ("dealer", "party0", "party1")  # servers that multiply
AUTO = 0  # threads: as many as a server finds to be its share
ServerThreads = Annotated[Threads, WrapValidator(lambda value, check: AUTO if value == "auto" else check(value))]
MOST_WORKERS = 64
Workers = Annotated[tuple[Address, ...], Field(min_length=1, max_length=MOST_WORKERS), BeforeValidator(_several)]
Emulated = Annotated[Network | None, BeforeValidator(_profile)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tls(_Strict):
    """PEM files; relative paths are relative to the YAML file."""

    ca: Path
    cert: Path
    key: Path
    crl: Path | None = None  # the authority's list of revoked certificates: whom to refuse, as server and as caller


class Peers(_Strict):
    """A party may be several workers: then its address is a list, worker 0, its keeper, first. Worker k of one party
    works with worker k of the other."""

    coordinator: Address = "127.0.0.1:50050"
    party0: Workers = ("127.0.0.1:50051",)
    party1: Workers = ("127.0.0.1:50052",)
    dealer: Address = "127.0.0.1:50053"

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if len(self.party0) != len(self.party1):
            counts = f"{len(self.party0)} of party0 and {len(self.party1)} of party1"
            raise ValueError(f"workers go in pairs; here are {counts}")
        return self

    def workers(self, role: str) -> tuple[str, ...]:
        """All addresses of a role."""
        found = getattr(self, role)
        return (found,) if isinstance(found, str) else tuple(found)

    def of(self, role: str, worker: int = 0) -> str:
        return self.workers(role)[worker]


class Telemetry(_Strict):
    """Where this process sends traces (`ditto.net.telemetry`): its own operator's collector, OTLP over HTTP."""

    endpoint: Annotated[
        str, StringConstraints(pattern=r"^https?://[A-Za-z0-9._~\[\]:-]+(/[A-Za-z0-9._~/-]*)?$", max_length=2048)
    ]  # /v1/traces is added
    ca: Path | None = None  # who signed the collector's certificate; None: the usual authorities
    cert: Path | None = None  # what this process shows the collector, PEM
    key: Path | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")
        if not self.endpoint.startswith("https:") and (self.ca or self.cert):
            raise ValueError("ca, cert and key are for an https endpoint")
        return self


class _Common(_Strict):
    role: Role
    peers: Peers = Peers()
    tls: Tls
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    max_message_mb: int = Field(default=4, ge=2, le=64)
    connect_timeout_s: Seconds = 5.0
    silence_s: Annotated[float, Field(ge=1, le=1e7)] = 7.0  # after which a connection that answers no ping is given up
    step_timeout_s: Seconds = 600.0  # one layer, or the activation of a model
    telemetry: Annotated[Telemetry | None, BeforeValidator(_collector)] = None


class Limits(_Strict):
    """What a server admits, whoever asks. Models and jobs beyond them are refused before they take memory."""

    max_description_kb: int = Field(default=512, ge=1)
    max_layers: int = Field(default=64, ge=1)  # of a model: what compiling it takes time for
    max_model_mb: int = Field(default=4096, ge=1)  # a share of all weights, in memory
    max_batch: int = Field(default=512, ge=1)  # texts of a job
    max_tokens: int = Field(default=65_536, ge=1)  # of a job: all texts, what is generated included
    max_job_mb: int = Field(default=4096, ge=1)  # what a job holds at once beside the weights, as estimated
    jobs_mb: int | None = Field(default=None, ge=1)  # what all jobs hold at once, likewise; None: max_job_mb
    hold_mb: int = Field(default=256, ge=1, le=65_536)  # correlations that a party holds at once; alike everywhere
    max_models: int = Field(default=256, ge=1)  # of one identity
    max_sharings: int = Field(default=10_000, ge=1)  # that one identity ever puts: a party remembers each for good
    max_uploads: int = Field(default=16, ge=1)  # under way, of one identity and one kind
    upload_idle_s: Seconds = 20.0  # in which its next piece (1 MB at most) has to come
    upload_min_kb_s: float = Field(default=8.0, ge=0)  # of an upload, over each minute of waiting for it

    @property
    def all_jobs(self) -> int:
        """Bytes that all jobs may hold at once beside the weights."""
        return (self.max_job_mb if self.jobs_mb is None else self.jobs_mb) << 20


class _Server(_Common, Limits):
    listen: Address
    metrics: Annotated[Address | None, BeforeValidator(_variable)] = None  # serve counters there over plain HTTP
    data_dir: Path
    storage: Literal["encrypted", "plaintext"] = "encrypted"  # what is kept in data_dir
    storage_key: Path | None = None  # a file of 64 hexadecimal digits; None: the environment's
    threads: ServerThreads = 1
    idle_timeout_s: Seconds = 120.0  # a job on which nothing happens

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.storage == "plaintext" and self.storage_key is not None:
            raise ValueError("storage: plaintext takes no storage_key")
        return self

    @property
    def thread_count(self) -> int:
        """Of torch's: as configured, or an even share of the cores that this process may use."""
        if self.threads != AUTO:
            return self.threads
        if self.role not in COMPUTING:
            return 1
        computing = [address for role in COMPUTING for address in self.peers.workers(role)]
        return threads_here(self.peers.of(self.role, self.number), computing)

    @property
    def number(self) -> int:
        """Which of its role's servers this is."""
        return 0


class PartyConfig(_Server):
    role: Literal["party0", "party1"]
    worker: Annotated[int, Field(ge=0, lt=MOST_WORKERS), BeforeValidator(_number)] = 0  # its place in `peers`
    keeper: Annotated[Address | None, BeforeValidator(_variable)] = None  # of a worker: if it is not the first of peers
    network: Emulated = None  # what its link to the other party emulates
    record: int = Field(default=0, ge=0)  # jobs whose view is kept for `ditto audit`; 0: none is recorded
    record_mb: int = Field(default=4096, ge=1)  # all that is kept of them; a job beyond it is not recorded
    max_stock_mb: int = Field(default=16_384, ge=0)  # of correlations in stock, on the disk; 0: none
    max_client_stock_mb: int = Field(default=4096, ge=0)  # of these, what one identity had dealt

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.worker >= len(self.peers.workers(self.role)):
            count = len(self.peers.workers(self.role))
            raise ValueError(f"worker: {self.worker}, and peers names {count} of {self.role}, from 0 on")
        return self

    @property
    def number(self) -> int:
        return self.worker

    @property
    def keeper_address(self) -> str:
        return self.keeper or self.peers.of(self.role)

    @property
    def index(self) -> int:
        return int(self.role[-1])

    @property
    def peer(self) -> str:
        return f"party{1 - self.index}"


class DealerConfig(_Server):
    role: Literal["dealer"] = "dealer"
    ahead_mb: int = Field(default=32, ge=2)  # correlations held for each party before they are sent
    network: Emulated = None  # what its link to each party emulates


class CoordinatorConfig(_Server):
    role: Literal["coordinator"] = "coordinator"
    jobs_at_once: int = Field(default=4, ge=1, le=64)  # jobs and registrations that run, as far as jobs_mb allows
    queue_limit: int = Field(default=128, ge=1)  # jobs and registrations that wait
    max_jobs: int = Field(default=64, ge=1)  # of one identity, those that run included
    max_public_mb: int = Field(default=32, ge=1, le=4096)  # a model's tokenizer, which those who may ask it get
    give_way_s: Seconds = 2.0  # after which a job without its client's next inputs lets others go first
    start_timeout_s: Seconds = 30.0  # for those inputs, when others wait and the job cannot stand aside
    stock: tuple[StockLevel, ...] = ()  # laid down at the parties while no job runs
    max_deal: int = Field(default=1000, ge=1)  # jobs that one request has laid down


class StockLevel(_Strict):
    """How much of one model is kept in stock for one kind of job, as `ditto deal` has it."""

    model: Annotated[str, StringConstraints(pattern=NAME)]
    seq: int = Field(ge=1, le=65_536)
    batch: int = Field(default=1, ge=1, le=4096)
    tokens: int = Field(default=1, ge=1, le=65_536)
    argmax: bool = False
    narrow_from: int = Field(default=0, ge=0)
    every: bool = False
    guard: bool = True
    count: int = Field(ge=1, le=100_000)  # jobs


class ClientConfig(_Common):
    role: Literal["client"] = "client"
    data_dir: Path | None = None
    threads: Threads = 1
    network: Emulated = None  # what the servers emulate: only for reports, the client's links are not shaped


ServerConfig = PartyConfig | DealerConfig | CoordinatorConfig
AnyConfig = ServerConfig | ClientConfig
C = TypeVar("C", PartyConfig, DealerConfig, CoordinatorConfig, ClientConfig)


def in_words(kind: type[BaseModel], wrong: ErrorDetails) -> str:
    """What is wrong with one key of a configuration, for who wrote it."""
    at = [*map(str, wrong["loc"])]
    key = ".".join(at)[:100]
    if wrong["type"] == "missing":
        return f"{key} is missing"
    if wrong["type"] != "extra_forbidden":
        return f"{key}: {wrong['msg']}"
    known = Tls.model_fields if at[0] == "tls" else kind.model_fields
    close = difflib.get_close_matches(at[-1][:100], known, 1)
    return f"no key {key} here" + (f": {close[0]}?" if close else "")


def load_config(path: Path, kind: type[C]) -> C:
    """Read one YAML file; paths in it become absolute. ConfigError says what is wrong and where."""
    raw = read_yaml(path)
    try:
        config = kind.model_validate(raw)
    except ValidationError as error:
        said = [in_words(kind, wrong) for wrong in error.errors()]
        more = f"; and {len(said) - MOST} more" if len(said) > MOST else ""
        raise ConfigError(f"{path}: " + "; ".join(said[:MOST]) + more) from None
    base = path.resolve().parent
    changes: dict[str, Any] = {"tls": Tls(**{k: base / v for k, v in dict(config.tls).items() if v is not None})}
    if config.telemetry is not None:
        files = {k: base / v for k, v in dict(config.telemetry).items() if isinstance(v, Path)}
        changes["telemetry"] = config.telemetry.model_copy(update=files)
    if config.data_dir is not None:
        changes["data_dir"] = base / config.data_dir
    if not isinstance(config, ClientConfig) and config.storage_key is not None:
        changes["storage_key"] = base / config.storage_key
    return config.model_copy(update=changes)
