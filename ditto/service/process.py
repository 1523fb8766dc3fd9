"""What the three mains share: configuration, JSON logs, a server, an orderly end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar, cast

import grpc
import structlog
import torch
from prometheus_client import CollectorRegistry

from ditto import files
from ditto.errors import ClusterError, DittoError
from ditto.net.config import COMPUTING, CoordinatorConfig, DealerConfig, PartyConfig, ServerConfig, load_config
from ditto.net.metrics import Metrics, serve
from ditto.net.process_metrics import OwnProcess
from ditto.net.telemetry import tracing_of
from ditto.net.tracing import Tracing
from ditto.net.transport import short
from ditto.ring.kernels import measure
from ditto.ring.malloc import tune_memory
from ditto.service.leftovers import collect
from ditto.service.storage import storage_of
from ditto.service.stored import use

C = TypeVar("C", PartyConfig, DealerConfig, CoordinatorConfig)


class Service(Protocol):
    @property
    def metrics(self) -> Metrics: ...

    def close(self) -> None: ...


_IDENTIFIER = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


def shorten(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """No log holds a whole identifier, not even in a message or a traceback."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _IDENTIFIER.sub(lambda found: short(found[0]), value)
    return event


class _Lines:
    """Standard error. Where it is a file on a full disk, lines are lost, and nothing else: no call fails of them."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def setup_logs(level: str, role: str) -> None:
    """One JSON object a line on standard error, each with the role. Only names, sizes and times are ever logged."""

    def name(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["role"] = role
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            shorten,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Lines())),
        cache_logger_on_first_use=True,
    )


def _raise_descriptors(wanted: int = 65_536) -> None:
    """Each connection takes one, of strangers too until their handshake fails: what the system lets it have is not the
    usual 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


@contextlib.contextmanager
def alone(config: ServerConfig, patience: float = 5.0) -> Iterator[None]:
    """No other process works on this server's directory, until the block ends or this process does.

    `patience`: seconds for one that is about to end. Raises ClusterError.
    """
    files.make_directory(config.data_dir, 0o700)
    try:
        with files.locked(config.data_dir / "lock", patience, lambda: None):
            yield
    except TimeoutError:
        raise ClusterError(f"{config.role} runs on {config.data_dir} already: stop it first") from None


def main(kind: type[C], start: Callable[[C, Tracing], tuple[grpc.Server, int, Service]]) -> int:
    """Run one process until SIGTERM or SIGINT; returns its exit code."""
    parser = argparse.ArgumentParser(description="One process of a Ditto cluster.")
    parser.add_argument("config_file", nargs="?", type=Path, help="YAML configuration")
    parser.add_argument("--config", type=Path, help="the same, as an option")
    args = parser.parse_args()
    path = args.config or args.config_file
    if path is None:
        parser.error("a configuration file is needed")
    os.umask(0o077)
    _raise_descriptors()
    tune_memory()
    held = contextlib.ExitStack()  # until the process ends
    try:
        config = load_config(path, kind)
        setup_logs(config.log_level, config.role)
        torch.set_num_threads(config.thread_count)
        if config.role in COMPUTING:  # with the threads that it has from here on
            measure()
        held.enter_context(alone(config))
        use(storage_of(config))
        collect(config.data_dir, age=None)
        registry = CollectorRegistry()  # served first: once the server's own port is bound, it must not fail any more
        end_metrics = serve(config.metrics, config.role, registry)
        tracing = tracing_of(config)
        server, port, service = start(config, tracing)
        registry.register(service.metrics.registry)
        registry.register(OwnProcess(config.tls))
    except DittoError as error:
        sys.stderr.write(f"{path}: {error}\n")
        return error.exit_code
    log = structlog.get_logger()
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    server.start()
    log.info("serving", port=port, metrics=config.metrics)
    stop.wait()
    log.info("stopping")
    end_metrics()
    ended = server.stop(grace=1.0)
    service.close()
    ended.wait(3.0)
    tracing.close()
    held.close()
    return 0
