"""What the page is given to draw: answers, costs, the rounds of a job, and what the parties were sent. Plain JSON."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ditto.api.reading import chosen, is_score, probabilities, span, words
from ditto.client.sent import Counts, Elements, Input, Sent, entropy
from ditto.errors import Busy, DittoError
from ditto.report.drawing import Scale, Span, axis
from ditto.report.rounds import Layer, layers
from ditto.ring import packed, signed

if TYPE_CHECKING:
    import numpy.typing as npt

    from ditto.api.model import Model
    from ditto.models.tokenizer import Text, Tokenizer

GRID = 1500  # stretches of computing and waiting that the whole timeline is drawn with, at most
HEX = 512  # bytes of each share that are shown as they are
PICTURE = 2048  # numbers of each share that are shown as grey values
NUMBERS = 7  # of each share that are shown as numbers

TODO = {
    "BUSY": "Too much is under way, here or at the servers. The question was not computed.",
    "CERTIFICATE": "Look at the certificates: the same authority everywhere? the right role's pair? not expired?",
    "CLUSTER": "The message quotes the server's log. A model without a public part: its owner shares it again.",
    "CONFIG": "Correct the configuration that this daemon was started with, and start it again.",
    "EMPTY_TEXT": "Type something: a text without a token cannot be asked.",
    "INTEGRITY": "Ask again. If it stays, something between two processes changes messages: do not trust the answer.",
    "JOB_MISMATCH": "The model was shared again meanwhile: ask again. If it stays, do not trust the coordinator.",
    "LIMIT": "Ask less at once, or have the operator raise the limit that the message names.",
    "NOT_ALLOWED": "Ask the model's owner for `ditto model grant`.",
    "OUT_OF_RANGE": "The answer may be wrong. Calibrate the model on text nearer to yours.",
    "PEER_ABSENT": "Start what is missing (`ditto cluster up`; `ditto cluster status` says what), then ask again.",
    "PEER_LOST": "A process died or the network broke. Start it again (`ditto cluster up`), then ask again.",
    "TEXT_TOO_LONG": "Shorten the text.",
    "UNKNOWN_MODEL": "Reload the list of models: this one is no longer shared.",
    "USAGE": "Change the question as the message says.",
    "VERSION": "Install one version of ditto everywhere.",
}


def failure(error: DittoError) -> dict[str, Any]:
    """Code, message, what to do, and when to try again where that is known."""
    retry = error.retry_s if isinstance(error, Busy) else None
    todo = TODO.get(error.code, "Look at the log of the process that the message names.")
    return {"code": error.code, "message": str(error), "todo": todo, "retry_s": retry, "peer": error.peer}


# Answers ------------------------------------------------------------------------------------------


def answer(model: Model, tokenizer: Tokenizer, texts: list[Text], values: list[Any]) -> dict[str, Any]:
    """Of an encoder, from its values, one for each text: `kind` says which fields there are."""
    if model.kind == "vector":
        vectors = np.array(values, dtype=np.float64)
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        cosine = float(unit[0] @ unit[1]) if len(unit) == 2 else None
        return {"kind": "vector", "vectors": np.round(vectors, 5).tolist(), "cosine": cosine}
    [value], [text], d = values, texts, model.description.dimensions
    if model.kind == "labels":
        if is_score(d):
            return {"kind": "scores", "scores": [list(row) for row in zip(d.labels, value, strict=True)]}
        likely = probabilities(value, d)
        named = [{"label": label, "probability": p} for label, p in zip(d.labels, likely, strict=True)]
        found = list(chosen(likely, d))
        return {"kind": "labels", "chosen": found, "labels": sorted(named, key=lambda row: -float(row["probability"]))}
    pieces = tokenizer.pieces(text, len(value))
    if model.kind == "tokens":
        rows = words(text, pieces, value, d)
        return {"kind": "tokens", "tokens": [{"token": row.text, "label": row.label} for row in rows]}
    best = span(text, pieces, value)
    return {"kind": "span", "text": best.text, "first": best.first, "last": best.last}


# Costs --------------------------------------------------------------------------------------------


def cost(report: dict[str, Any]) -> dict[str, Any]:
    """A job's figures and its timeline, from its report (`ditto.client.client.InferResult`)."""
    total = {key: report[key] for key in ("job", "owner", "wall_seconds", "in_range", "stock", "online", "offline")}
    return total | {"timeline": _timeline(report)}


def _timeline(report: dict[str, Any]) -> dict[str, Any] | None:
    found = [layer for layer in layers(report) if layer.seconds > 0]
    if not found:
        return None
    start, end = min(layer.offline_start for layer in found), max(layer.end for layer in found)
    scale = Scale(start, end - start)
    return {
        "party": report["rounds_timeline"]["party"],
        "seconds": end - start,
        "ticks": [[tick.at, tick.anchor, tick.seconds] for tick in axis(start, end)],
        "rows": [_row(layer, scale) for layer in found],
    }


def _row(layer: Layer, scale: Scale) -> dict[str, Any]:
    offline = scale.span(layer.offline_start, layer.offline_start + layer.offline_seconds)
    return {
        "name": layer.name, "offline_seconds": layer.offline_seconds, "computing": layer.computing,
        "waiting": layer.waiting, "rounds": len(layer.openings), "bytes": sum(o.bytes_sent for o in layer.openings),
        "offline": _pair(offline), "online": _pair(scale.span(layer.start, layer.end)),
        "busy": [_pair(scale.span(a, b)) for a, b in _computing(layer, scale.full / GRID)],
    }  # fmt: skip


def _computing(layer: Layer, least: float) -> list[tuple[float, float]]:
    """When a layer computed. Rounds that together take less than `least` seconds are drawn as one: all their
    computing, then all their waiting."""
    stretches, since, computing = [], layer.start, 0.0
    for opening in layer.openings:
        computing += opening.computing
        if opening.end - since >= least:
            stretches.append((since, since + computing))
            since, computing = opening.end, 0.0
    return [*stretches, (since, since + computing + layer.end - layer.last)]


def _pair(span: Span) -> list[float]:
    return [round(span.at, 5), round(span.wide, 5)]


# What the parties were sent -----------------------------------------------------------------------


def seen(sent: Sent) -> dict[str, Any]:
    """The bytes of the question as they left this machine, and what they add up to."""
    zero, one = sent.deliveries
    largest = max(sent.inputs.values(), key=lambda i: (i.numbers, i.name))
    plan = sent.terms.plan
    return {
        "stages": sent.stages,
        "party0": {"messages": zero.messages, "bytes": zero.nbytes, "seed": largest.seed.hex(" ")},
        "party1": {
            "messages": one.messages, "bytes": one.nbytes, "first": largest.first[:HEX].hex(" "),
            "shares": _bytes(one.counts),
        },
        "input": {
            "name": largest.name, "bits": largest.ring, "shape": list(largest.shape), "numbers": largest.numbers,
            "inputs": len(sent.inputs),
        },
        "told": {
            "model": sent.terms.model, "owner": sent.terms.owner, "texts": plan.batch, "tokens": plan.seq,
            "new_tokens": plan.tokens,
        },
        "together": _together(largest),
    }  # fmt: skip


def _bytes(counts: Counts) -> dict[str, Any]:
    return {"total": int(counts.sum()), "entropy": round(entropy(counts), 5), "counts": counts.tolist()}


def _together(shared: Input) -> dict[str, Any] | None:
    """Both parties' shares of an input side by side, around its first number that is not 0 after those of the first
    token; what their sum's bytes would be. None where not all bytes were kept."""
    shares = shared.shares()
    if shares is None:
        return None
    both, row, bits = shares[2], shared.shape[-1], shared.ring
    places = np.flatnonzero(both)
    others = np.abs(_signed(both[places], bits))
    place = next((int(at) for at in places if at >= row), int(places[0]) if len(places) else 0)
    start = max(0, min(place - (PICTURE + 128) // 2, shared.numbers - PICTURE))  # rows of 128: in the middle of one
    near = max(0, min(place - NUMBERS // 2, shared.numbers - NUMBERS))
    shown, drawn = slice(near, near + NUMBERS), slice(start, start + PICTURE)
    zero, one, sums = (*(_unsigned(share[shown], bits) for share in shares[:2]), _signed(both[shown], bits))
    greys = [_grey(_unsigned(share[drawn], bits).astype(np.float64), 2.0**bits) for share in shares[:2]]
    sum_grey = _grey(np.abs(_signed(both[drawn], bits).astype(np.float64)), float(others.max(initial=1)))
    counts = np.bincount(np.frombuffer(_packed(both, bits), dtype=np.uint8), minlength=256)
    return {
        "start": start, "place": place, "ones": bool((others == 1).all()), "nonzero": len(places),
        "grey": [*greys, sum_grey], "sum": _bytes(counts),
        # as text: numbers of JavaScript have 53 bits
        "numbers": [[str(n) for n in row] for row in zip(count(near), zero, one, sums, strict=False)],
        "expanded": _packed(shares[0][:HEX], bits)[:HEX].hex(" "),
    }  # fmt: skip


def _unsigned(values: Elements, bits: int) -> npt.NDArray[np.uint64]:
    return values.astype(np.uint64) & np.uint64((1 << bits) - 1)


def _signed(values: Elements, bits: int) -> npt.NDArray[np.int64]:
    return signed(torch.from_numpy(values.astype(np.int64)), bits).numpy()


def _packed(values: Elements, bits: int) -> memoryview:
    return packed(torch.from_numpy(values), bits)


def _grey(values: npt.NDArray[np.float64], most: float) -> str:
    """A byte each, in hexadecimal digits: 0 for 0, 255 for `most`."""
    return bytes(np.ceil(values / most * 255).clip(0, 255).astype(np.uint8)).hex()
