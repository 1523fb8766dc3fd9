"""`ditto doctor`: what is well and what is not, and what to do."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from ditto.cli.common import Json, emit, hanging, one_line, out

if TYPE_CHECKING:
    from ditto.doctor.finding import Finding

STYLES = {"ok": "green", "warning": "bold yellow", "failed": "bold red"}


def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", envvar="DITTO_CONFIG", help="The client's YAML file; default: the local cluster's."),
    ] = None,
    server: Annotated[
        Path | None, typer.Option("--server", help="Look at this server's YAML file instead, on its machine.")
    ] = None,
    json: Json = False,
) -> None:
    """Check this machine, certificates, servers and the links between them, and say what to do."""
    from ditto.doctor.finding import Verdict, exit_code, verdict

    findings: list[Finding] = []
    subject = ""
    for finding in _findings(config, server):
        findings.append(finding)
        if not json:
            if finding.subject != subject:
                subject = finding.subject
                out.print(Text(one_line(subject), style="bold"))
            _show(finding)
    worst, code = verdict(findings), exit_code(findings)
    if json:
        emit({"verdict": worst.value, "exit_code": code, "findings": [finding.document() for finding in findings]})
    else:
        counts = ", ".join(f"{sum(f.verdict is v for f in findings)} {v.value}" for v in Verdict)
        out.print(f"\n{counts}")
    if code:
        raise typer.Exit(code)


def _findings(config: Path | None, server: Path | None) -> "Iterator[Finding]":
    from ditto.client.home import home
    from ditto.doctor import machine
    from ditto.doctor.finding import Verdict

    packages = machine.packages()
    yield packages
    if packages.verdict is Verdict.failed:
        return  # nothing else would load
    yield machine.processor()
    yield machine.kernels()
    yield machine.memory()
    yield machine.descriptors()
    if server is not None:
        from ditto.doctor.own import of_server

        yield from of_server(server)
        return
    from ditto.doctor.client import of_client

    yield from machine.directory(machine.ME, "DITTO_HOME", home())
    yield from of_client(config)


def _show(finding: "Finding") -> None:
    mark = Text(f"  {finding.verdict.value:<8}", style=STYLES[finding.verdict.value])
    out.print(Text.assemble(mark, hanging(f"{finding.check}: {one_line(finding.found)}", 10)))
    if finding.advice:
        out.print(f"          -> {hanging(one_line(finding.advice), 13)}")
