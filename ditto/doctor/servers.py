"""The servers, as one of them or a client sees them: the way there, what they say of themselves and of each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ditto
from ditto.client import said
from ditto.client.said import About, Link, Said
from ditto.doctor.finding import STEP_S, Finding, Verdict, aside, failed, ok, warning
from ditto.doctor.probe import Way
from ditto.errors import DittoError, PeerAbsent, VersionMismatch
from ditto.names import PARTIES, SERVERS
from ditto.net.config import ClientConfig, Peers, Tls
from ditto.net.tls import load_tls
from ditto.net.transport import PROTOCOL_VERSION

APART_S = 5.0  # of two clocks from which it is said
UPDATE = "install one version of ditto everywhere"


def reach(peers: Peers, tls: Tls, me: str, roles: tuple[str, ...]) -> dict[str, Way]:
    """All of them at the same time. Raises CertificateError for bad files of this side."""
    pems = load_tls(tls, me)
    ways = {role: Way(role, peers.of(role), tls, me) for role in roles}

    def going(way: Way) -> Callable[[], Way]:
        return lambda: way.go(pems)

    running = [aside(going(way)) for way in ways.values()]
    for result in running:
        result(None)  # each step has an end of its own
    return ways


def of_client(config: ClientConfig) -> Iterator[Finding]:
    """What a client may know."""
    ways = reach(config.peers, config.tls, "client", SERVERS)
    try:
        yield from _of_ways(ways)
    finally:
        for way in ways.values():
            way.close()


def _of_ways(ways: dict[str, Way]) -> Iterator[Finding]:
    asked = {role: aside(_asking(way)) for role, way in ways.items() if role != "dealer" and way.channel}
    answers: dict[str, Said | DittoError] = {}
    for role, result in asked.items():
        try:
            answers[role] = result(2 * STEP_S)  # two calls
        except DittoError as error:
            answers[role] = error
        except TimeoutError:
            answers[role] = PeerAbsent(f"{role} did not answer in time", peer=role)
    main = answers.get("coordinator")
    for role, way in ways.items():
        answer = answers.get(role)
        if role == "dealer":
            yield from _dealer(way, main)
            continue
        yield from way.findings
        if isinstance(answer, DittoError):
            yield failed(role, "answers", answer, UPDATE if isinstance(answer, VersionMismatch) else "see its log")
        elif answer is not None:
            yield from _about(role, answer.about, _offset(answer, way.round_trip))
            yield from _links(role, answer)
    if isinstance(main, Said) and main.workers:
        up = [name for name, serving in main.workers.items() if serving]
        text = f"besides the keepers {len(up)} of {len(main.workers)} that it lists answer: {', '.join(up) or 'none'}"
        yield ok("coordinator", "workers", text)
    if isinstance(main, Said):
        for fault in main.faults:
            yield warning("coordinator", "models", fault, "share that model again")


def _asking(way: Way) -> Callable[[], Said]:
    """Twice: the first answer comes at once, so that it says what the time is; a party's second says how far others
    are."""

    def ask() -> Said:
        assert way.channel is not None
        if way.role not in PARTIES:
            return said.coordinator(way.channel, STEP_S)
        first = said.party(way.channel, way.role, False, STEP_S)
        if first.about is None:
            return first
        links = said.party(way.channel, way.role, True, STEP_S)
        return Said(first.at, first.about, links.links, first.peer_link)

    return ask


def _offset(answer: Said, round_trip: float) -> float | None:
    """Seconds by which a server's clock is ahead of this machine's, to half a round trip."""
    return None if answer.about is None else answer.about.time + round_trip / 2 - answer.at


def _dealer(way: Way, main: Said | DittoError | None) -> Iterator[Finding]:
    """A client never calls the dealer, and may be kept from it: then the coordinator's word counts."""
    served = isinstance(main, Said) and any(link.role == "dealer" and not link.error for link in main.links)
    for finding in way.findings:
        elsewhere = finding.verdict is Verdict.failed and way.stopped in ("name", "port") and served
        yield finding.as_fine("clients do not call it, and the coordinator reaches it") if elsewhere else finding
    if isinstance(main, Said) and main.about and main.dealer:
        here = _offset(main, 0.0)
        offset = None if here is None else main.dealer.time - main.about.time + here
        yield from _about("dealer", main.dealer, offset)


def _about(role: str, about: About | None, offset: float | None) -> Iterator[Finding]:
    from ditto.models.description import FORMAT

    if about is None:
        yield warning(role, "version", f"protocol {PROTOCOL_VERSION}, of an earlier version: it says no more", UPDATE)
        return
    text = f"ditto {about.version}, protocol {PROTOCOL_VERSION}, descriptions of format {about.description_format}"
    if about.description_format != FORMAT:
        wrong = VersionMismatch(f"{text}; here: format {FORMAT}", peer=role)
        yield failed(role, "version", wrong, UPDATE)
    elif about.version != ditto.__version__:
        yield warning(role, "version", f"{text}; here: ditto {ditto.__version__}", UPDATE)
    else:
        yield ok(role, "version", text)
    if offset is not None:
        apart = f"{abs(offset):.2f} s {'ahead' if offset > 0 else 'behind'}"
        if abs(offset) > APART_S:
            yield warning(role, "clock", apart, "set both clocks by a time service: certificates go by them")
        else:
            yield ok(role, "clock", apart)
    if about.kernels:
        kernels = ", ".join(f"{bits} bits {name}" for bits, name in sorted(about.kernels.items()))
        yield ok(role, "kernels", f"{kernels}, by {about.threads} thread(s)")


def _links(role: str, answer: Said) -> Iterator[Finding]:
    for link in answer.links:
        yield _link(role, link)
    if answer.peer_link is False:
        error = PeerAbsent(f"{role}: no stream to the other party stands", peer=role)
        yield failed(role, "peer link", error, "start the other party; party 1 has to reach party 0")


def _link(role: str, link: Link) -> Finding:
    check = f"to {link.role}"
    if link.error:
        error = PeerAbsent(f"{role} does not reach {link.role}: {link.error}", peer=link.role)
        return failed(role, check, error, f"start {link.role}, or open its port for {role}")
    parts = [f"a call takes {1e3 * link.round_trip:.1f} ms"] if link.round_trip else []
    if link.received:
        parts.append(f"{link.received / 1e6:,.0f} MB/s and more came from there")
    return ok(role, check, "; ".join(parts) or "no large message came from there yet")
