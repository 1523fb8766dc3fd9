"""Traces: what a caller may name, what a process without telemetry does, what stands in a span, a collector that fails.

That a job of real servers is one trace is in `test_metrics.py`, whose cluster it shares.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from collector import Collector, collecting, parsed

from ditto.errors import Busy, ConfigError
from ditto.net import telemetry
from ditto.net.certs import init_certs
from ditto.net.config import ClientConfig, DealerConfig, Peers, Telemetry, Tls, load_config
from ditto.net.telemetry import tracing_of
from ditto.net.tracing import OFF, Claims, Context, Span, parse, received

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"
HOSTILE = [
    "", "00", "-", "x" * 8000, HEADER[:-1], HEADER + "0", HEADER + "\n", " " + HEADER, HEADER.upper(),
    HEADER.replace("00-", "ff-", 1), HEADER.replace("00-", "01-", 1) + "-more", f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-0g", "00-" + "٣" * 32 + f"-{SPAN}-01", HEADER.encode(),
]  # fmt: skip


class Call:
    def __init__(self, *headers: Any) -> None:
        self._headers = headers

    def invocation_metadata(self) -> Any:
        return [("other", "1"), *(("traceparent", value) for value in self._headers)]


def test_a_header_is_read_and_written_alike() -> None:
    assert parse(HEADER) == Context(TRACE, SPAN, "01") and Context(TRACE, SPAN).header == HEADER
    assert received(Call(HEADER)) == Context(TRACE, SPAN)  # type: ignore[arg-type]


@pytest.mark.parametrize("header", HOSTILE)
def test_anything_else_counts_as_none(header: Any) -> None:
    assert parse(header) is None and received(Call(header)) is None  # type: ignore[arg-type]


def test_several_headers_or_none_count_as_none() -> None:
    assert received(Call()) is None and received(Call(HEADER, HEADER)) is None  # type: ignore[arg-type]


def test_a_trace_is_its_first_clients() -> None:
    claims, context = Claims(most=2), Context(TRACE, SPAN)
    assert claims.of(None, "client/bob") is None
    assert claims.of(context, "client/alice") == context
    assert claims.of(context._replace(span="1" * 16), "client/bob") is None
    assert claims.of(context, "client/alice") == context
    for digit in "123":  # what is remembered is bounded
        assert claims.of(Context(digit * 32, SPAN), "client/bob")
    assert claims.of(context, "client/bob") == context


def test_without_telemetry_a_trace_is_passed_on() -> None:
    context = Context(TRACE, SPAN, "00")
    with OFF.start("job", context, job="1") as span, span.child("part", phase="online") as part:
        assert span.carried == part.carried == {"metadata": (("traceparent", f"00-{TRACE}-{SPAN}-00"),)}
    assert Span().carried == {} == OFF.start("job").carried  # nothing of it on the wire


# Recorded ---------------------------------------------------------------------------------------


def config(endpoint: Any, role: type[Any] = ClientConfig, **changes: Any) -> Any:
    tls = Tls(ca=Path("ca"), cert=Path("cert"), key=Path("key"))
    if role is DealerConfig:
        changes |= {"listen": "127.0.0.1:0", "data_dir": Path("data")}
    return role(
        role="dealer" if role is DealerConfig else "client", tls=tls, peers=Peers(), telemetry=endpoint, **changes
    )


def exported(collector: Collector) -> dict[str, Any]:
    return {span.name: span for span in collector.spans()}


def test_spans_have_parents_times_and_codes_of_errors() -> None:
    with collecting() as collector:
        tracing = tracing_of(config(collector.endpoint, DealerConfig))
        with pytest.raises(Busy), tracing.start("job", Context(TRACE, SPAN, "00"), model="m") as job:
            with job.child("measured", layer=3) as measured:
                measured.end(seconds=1.5)
            with job.child("theirs", Context(TRACE, "1" * 16)):
                pass
            with job.child("forged", Context("2" * 32, "1" * 16)):
                pass
            raise Busy("whatever it quotes")
        tracing.close()
        found = exported(collector)
        assert b"quotes" not in b"".join(collector.bodies)
    root = found["job"]
    assert (root.trace, root.parent, root.error) == (TRACE, SPAN, "BUSY")  # though the caller says: not sampled
    assert root.attributes == {"ditto.model": "m"} and root.service == "dealer"
    assert found["measured"].seconds == 1.5 and found["measured"].attributes == {"ditto.layer": 3}
    assert (found["theirs"].trace, found["theirs"].parent) == (TRACE, "1" * 16)
    assert (found["forged"].trace, found["forged"].parent) == (TRACE, root.span)
    assert found["theirs"].within(root)


def test_a_job_of_many_parts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "SPANS", 3)
    with collecting() as collector:
        tracing = tracing_of(config(collector.endpoint))
        with tracing.start("job") as job:
            for stage in range(10):
                with job.child("token", stage=stage) as token:
                    assert token.context is not None and job.context is not None
                    assert token.context.trace == job.context.trace
        tracing.close()
        spans = collector.spans()
    assert len(spans) == 4
    assert next(span for span in spans if span.name == "job").attributes == {"ditto.spans_omitted": 7}


def test_an_applications_trace_goes_on_in_the_client_only() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with collecting() as collector, TracerProvider().get_tracer("app").start_as_current_span("request") as around:
        client, server = tracing_of(config(collector.endpoint)), tracing_of(config(collector.endpoint, DealerConfig))
        client.start("ask").end()
        server.start("job").end()
        client.close(), server.close()
        found = exported(collector)
        own = around.get_span_context()
    assert (found["ask"].trace, found["ask"].parent) == (f"{own.trace_id:032x}", f"{own.span_id:016x}")
    assert found["job"].trace != found["ask"].trace and found["job"].parent == ""


def test_a_collector_that_does_not_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"CLOSE_S": 0.2, "EXPORT_S": 1.0, "QUEUE": 64, "BATCH": 16}.items():
        monkeypatch.setattr(telemetry, name, value)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, says nothing
        tracing = tracing_of(config(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        for _ in range(3 * telemetry.QUEUE):
            tracing.start("job").end()
        tracing.close()
        assert any(thread.name == "telemetry-end" for thread in threading.enumerate())  # still waits; we do not


def test_a_collector_by_tls_and_both_show_certificates(tmp_path: Path) -> None:
    for name in ("ours", "others"):
        init_certs(tmp_path / name, [])
    ours = tmp_path / "ours"
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(ours / "ca.pem"))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(ours / "party0.pem", ours / "party0.key")
    with collecting(tls) as collector:
        for name, directory in (("ask", ours), ("refused", tmp_path / "others")):
            files = {"ca": directory / "ca.pem", "cert": directory / "client.pem", "key": directory / "client.key"}
            tracing = tracing_of(config({"endpoint": collector.endpoint, **files}))
            tracing.start(name).end()
            tracing.close()
        assert [span.name for span in collector.spans()] == ["ask"]


def test_an_export_goes_to_the_configured_collector_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as own, collecting() as other:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", other.endpoint)
        monkeypatch.setenv("HTTP_PROXY", other.endpoint)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=somewhere")
        tracing = tracing_of(config(own.endpoint))
        tracing.start("ask").end()
        tracing.close()
        assert [span.name for span in own.spans()] == ["ask"] and not other.bodies
        assert b"somewhere" not in own.bodies[0] and len(list(parsed(own.bodies[0]))) == 1


# Configuration ------------------------------------------------------------------------------------


def written(path: Path, **fields: Any) -> Path:
    tls = {"ca": "ca.pem", "cert": "client.pem", "key": "client.key"}
    path.write_text(yaml.safe_dump({"role": "client", "tls": tls, **fields}))
    return path


def test_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "client.yaml"
    assert load_config(written(path), ClientConfig).telemetry is None
    assert tracing_of(load_config(path, ClientConfig)) is OFF
    found = load_config(written(path, telemetry={"endpoint": "https://c.example/otlp", "ca": "c.pem"}), ClientConfig)
    assert found.telemetry == Telemetry(endpoint="https://c.example/otlp", ca=tmp_path / "c.pem")
    with pytest.raises(ConfigError, match=r"cannot read .*c\.pem"):
        tracing_of(found)
    written(path, telemetry="$DITTO_TELEMETRY")
    with pytest.raises(ConfigError, match=r"telemetry\.endpoint"):  # not set at all
        load_config(path, ClientConfig)
    for value, meant in (("", None), ("http://[::1]:4318", Telemetry(endpoint="http://[::1]:4318"))):
        monkeypatch.setenv("DITTO_TELEMETRY", value)
        assert load_config(path, ClientConfig).telemetry == meant


@pytest.mark.parametrize(
    "value",
    [
        "localhost:4318", "ftp://c", "http://user:word@c", "http://c?key=1", "http://c/ x", 3,
        {"endpoint": "http://c", "ca": "x"}, {"endpoint": "https://c", "cert": "x"},
        {"endpoint": "https://c", "headers": {}}, {},
    ],
)  # fmt: skip
def test_a_wrong_configuration_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="telemetry"):
        load_config(written(tmp_path / "client.yaml", telemetry=value), ClientConfig)


def test_a_missing_extra_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"not installed .*\[telemetry\]"):
        tracing_of(config("http://127.0.0.1:1"))
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ConfigError, match="not installed"):
        tracing_of(config("http://127.0.0.1:1"))


def test_opentelemetry_is_not_imported_unless_it_is_configured() -> None:
    code = "import sys, ditto.net.telemetry; sys.exit(bool({'opentelemetry', 'requests'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], check=True)
