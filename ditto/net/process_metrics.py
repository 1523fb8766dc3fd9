"""What a server says of its own process when Prometheus reads its counters: memory, its limit, until when its
certificates are valid."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil
from cryptography import x509
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from ditto.errors import CertificateError
from ditto.net.config import Tls
from ditto.net.tls import parse_certificate


class OwnProcess(Collector):
    def __init__(self, tls: Tls) -> None:
        self._tls, self._process = tls, psutil.Process()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield GaugeMetricFamily(
            "ditto_memory_bytes", "Resident memory of this process.", value=self._process.memory_info().rss
        )
        yield GaugeMetricFamily("ditto_memory_limit_bytes", "Memory that this process may take.", value=memory_limit())
        expiry = GaugeMetricFamily(
            "ditto_certificate_expiry_timestamp_seconds",
            "Until when the certificates in this process's files are valid.",
            labels=["certificate"],
        )
        for name, path in {"own": self._tls.cert, "authority": self._tls.ca}.items():
            with contextlib.suppress(OSError, CertificateError):  # in the middle of a renewal: the next time
                found: x509.Certificate = parse_certificate(path.read_bytes(), path)
                expiry.add_metric([name], found.not_valid_after_utc.timestamp())
        yield expiry


def memory_limit(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the least of the machine's and those of the control groups (version 2) that this process is in."""
    limits = [int(psutil.virtual_memory().total)]
    group = root
    with contextlib.suppress(OSError):
        own = next((line for line in proc.read_text().splitlines() if line.startswith("0::/")), "0::/")
        group = root / own.removeprefix("0::/")
    for place in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((place / "memory.max").read_text()))  # "max": none
    return min(limits)
