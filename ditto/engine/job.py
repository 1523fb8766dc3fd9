"""Running a program: the dealer, a party, and the plain interpreter walk the same steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import torch

from ditto.engine.channel import Channel, compare_transcripts
from ditto.engine.ledger import LayerTimes, Ledger, Round
from ditto.engine.opening import Kind, Openings
from ditto.engine.program import Program, Step, Wire
from ditto.engine.sharing import common_key, rerandomised
from ditto.engine.weights import EXPANDED, DealerWeights, ExpandedShare, PartyWeights
from ditto.errors import BadShare, ReuseError
from ditto.ops import Masked, Op, Open, Together, WeightShare
from ditto.ops.base import Correlations, Given, Opened, Shared
from ditto.ring import cast, packed, unpack
from ditto.ring.prg import Prg, derive, new_seed
from ditto.transcript import digest

Tensor = torch.Tensor


class Source(Protocol):
    """Correlation bytes from the dealer, consumed strictly in order."""

    def take(self, nbytes: int) -> bytes | bytearray | memoryview: ...


def step_prg(seed: bytes, job: str, index: int) -> Prg:
    """Randomness of one (job, operation index)."""
    return Prg(derive(seed, "step", job, index))


# ---------------------------------------------------------------- the dealer


class _DealerContext:
    def __init__(self, seeds: tuple[bytes, bytes], job: str, index: int, seeded: int) -> None:
        self._of = seeds, job, index
        self._seeded = seeded
        self._prgs: list[Prg | None] = [None, None]
        self.corrections: list[tuple[int, memoryview]] = []  # by party

    def _prg(self, party: int) -> Prg:
        """A party's stream of this step: most steps need none or one, and a key costs more than they do."""
        found = self._prgs[party]
        if found is None:
            seeds, job, index = self._of
            found = self._prgs[party] = step_prg(seeds[party], job, index)
        return found

    def mask(self, of: Shared) -> Tensor:
        first, second = (self._prg(party).ring(of.shape, of.bits) for party in (0, 1))
        return first.bitwise_xor_(second) if of.packed else first.add_(second)

    def drawn(self, of: Shared) -> Tensor:
        return torch.stack([self._prg(party).ring(of.shape, of.bits) for party in (0, 1)])

    def share(self, x: Tensor, of: Shared) -> None:
        if isinstance(of, Given):
            whole = packed(x, of.bits)
            self.corrections += [(0, whole), (1, whole)]
            return
        share, x = self._prg(self._seeded).ring(of.shape, of.bits), cast(x, of.bits)
        rest = torch.bitwise_xor(x, share, out=share) if of.packed else torch.sub(x, share, out=share)
        self.corrections.append((1 - self._seeded, packed(rest, of.bits)))


class DealerJob:
    """Correlations of one job or of one stage of it, in program order, dealt once: a second `deal` raises ReuseError.

    `first` is how many steps the job's earlier stages had; `carried` holds the masks that they kept, and takes those
    that this one keeps.
    """

    def __init__(
        self,
        program: Program,
        job: str,
        seeds: tuple[bytes, bytes],
        weights: DealerWeights,
        first: int = 0,
        carried: dict[str, Tensor] | None = None,
    ) -> None:
        self._program, self._job, self._seeds, self._weights = program, job, seeds, weights
        self._first, self._carried = first, {} if carried is None else carried
        self._dealt = False

    @torch.inference_mode()
    def deal(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (party, correlation bytes)."""
        if self._dealt:
            raise ReuseError(f"job {self._job}: its correlations were dealt already")
        self._dealt = True
        masks: dict[str, Any] = {n: self._carried[n] for n in self._program.carried if n in self._carried}
        frees = self._program.frees(self._program.kept.values())
        steps = zip(self._program.steps, self._program.seeded, frees, strict=True)
        for index, (step, seeded, done) in enumerate(steps):
            context = _DealerContext(self._seeds, self._job, self._first + index, seeded)
            inputs = [self._weights[n] if n in self._program.weights else masks.get(n) for n in step.inputs]
            outputs = step.op.deal(context, *inputs)
            masks.update((n, m) for n, m in zip(step.outputs, outputs, strict=False) if m is not None)
            for name in done:
                masks.pop(name, None)
            yield from context.corrections
        self._carried.update((n, masks[w.name]) for n, w in self._program.kept.items() if w.name in masks)


# ---------------------------------------------------------------- a party


class _PartyContext:
    """What a step's operation may ask for; entered anew for every step."""

    def __init__(
        self,
        party: int,
        job: str,
        seed: bytes | None,
        source: Source,
        channel: Channel,
        draw: Callable[[], bytes] = new_seed,
    ) -> None:
        self.party, self._draw = party, draw
        self._job, self._seed, self._source, self._channel = job, seed, source, channel
        self.openings = Openings(channel)

    def enter(self, index: int, label: str, seeded: bool = False) -> None:
        """`seeded`: this party expands what is dealt from its seed."""
        self._index, self._label, self._seeded = index, label, seeded
        self._prg: Prg | None = None
        self.received = 0

    def draw(self) -> bytes:
        self.openings.finish()  # so that events have one order, whenever messages arrive
        return self._draw()

    def _fresh(self) -> Prg:
        if self._seed is None:
            raise ReuseError(f"{self._job}/{self._index}: correlations belong to the offline phase")
        if self._prg is None:  # most steps need no randomness, and a key costs more than they do
            self._prg = step_prg(self._seed, self._job, self._index)
        return self._prg

    def mask(self, of: Shared) -> Tensor:
        return self._fresh().ring(of.shape, of.bits)

    def dealt(self, of: Shared) -> Tensor:
        prg = self._fresh()
        if self._seeded and not isinstance(of, Given):
            return prg.ring(of.shape, of.bits)
        nbytes = of.nbytes
        self.received += nbytes
        data, label = memoryview(self._source.take(nbytes)), f"{self._index}/{self._label} {Kind(of.shape, of.bits)}"
        self._channel.transcript.add("dealt", label, digest(label, data))
        return unpack(data, of.bits, of.shape)

    def open_bits(self, words: Tensor) -> Tensor:
        return self.open([], [], [], [words])[1][0]

    def open(self, shares: list[Tensor], masks: list[Tensor], bits: list[int], words: list[Tensor]) -> Opened:
        return self.openings.open((self._index, self._label), shares, masks, bits, words)


@cache
def _prepares(kind: type[Op]) -> bool:
    """Has the operation an offline part?"""
    return any(getattr(kind, face) is not getattr(Op, face) for face in ("opens", "dealt", "output_masks"))


def _openers(program: Program) -> list[int | None]:
    """For each step the next one of its layer that opens something, if there is one."""
    found: list[int | None] = []
    following: int | None = None
    for index in range(len(program.steps) - 1, -1, -1):
        step = program.steps[index]
        if found and program.steps[index + 1].layer != step.layer:
            following = None
        found.append(following)
        if type(step.op).opens is not Op.opens:
            following = index
    return found[::-1]


def _offers(program: Program, openers: Sequence[int | None]) -> list[int | None]:
    """For each step the opening of which something can be sent after it: the next one of its layer, if the step gave
    what is opened there, or is the first one since the opening before."""
    found: list[int | None] = []
    before: int | None = None
    for step, opener in zip(program.steps, openers, strict=True):
        opens = opener is not None and isinstance(program.steps[opener].op, Open | Together)
        gave = opener is not None and not set(program.steps[opener].inputs).isdisjoint(step.outputs)
        found.append(opener if opens and (opener != before or gave) else None)
        before = opener
    return found


@dataclass
class Carried:
    """What the stages of a job leave to later ones, by name: one party's values, and the masks of opened ones.

    Masks are there as soon as a stage is prepared, values once it has run. `key` is the job's common key
    (`ditto.engine.sharing.common_key`), agreed upon when the first stage is prepared.
    """

    values: dict[str, Any] = field(default_factory=dict)
    masks: dict[str, Tensor] = field(default_factory=dict)
    key: bytes = b""
    terms: str = ""  # what the job is, for the agreement on that key


class PartyJob:
    """One party's side of one job, or of one stage of it: `prepare` and `run` each layer once, in order.

    A layer runs once it is prepared; later ones may be prepared meanwhile, by another thread. All that the two share is
    written before the layer runs, or by one of them alone.
    `first` is how many steps the job's earlier stages had; `draw` gives the party's own randomness.
    """

    def __init__(
        self,
        program: Program,
        party: int,
        job: str,
        seed: bytes,
        weights: PartyWeights,
        channel: Channel,
        source: Source,
        ledger: Ledger,
        first: int = 0,
        carried: Carried | None = None,
        draw: Callable[[], bytes] = new_seed,
    ) -> None:
        self.program, self.party, self.job, self.ledger = program, party, job, ledger
        self._draw = draw
        self._first, self._carried = first, carried or Carried()
        self._seed, self._weights, self._channel, self._source = seed, weights, channel, source
        self._values: dict[str, Any] = {}
        self._masks: dict[str, Tensor] = {}
        self._prepared: dict[int, Correlations] = {}
        self._waiting: dict[int, _PartyContext] = {}  # of steps whose shares this party expands when they are read
        self._masks_free = program.frees(program.kept.values())
        self._values_free = program.frees([*program.outputs.values(), *program.kept.values()])
        self._layers: list[list[tuple[int, Step]]] = [[] for _ in program.layers]
        for index, step in enumerate(program.steps):
            self._layers[step.layer].append((index, step))
        self._openers = _openers(program)
        self._offers = _offers(program, self._openers)
        self._ahead: dict[str, WeightShare] = {}  # expanded for the steps to come
        self._next = {"prepare": 0, "run": 0}
        self.ended = 0  # layers that have run
        self._offline: dict[int, tuple[float, float]] = {}  # by layer: (start, seconds), absolute
        self._origin = 0.0  # when the first layer began online

    def set_input(self, name: str, share: Tensor) -> None:
        """Take the share of an input. Raises BadShare for an unknown name, a wrong shape or a second share."""
        wire = self.program.inputs.get(name)
        if wire is None or tuple(share.shape) != wire.shape:
            expected = wire.shape if wire else "no such input"
            raise BadShare(f"input {name}: shape {tuple(share.shape)}, expected {expected}")
        if name in self._values:
            raise BadShare(f"input {name}: a share is there already")
        self._values[name] = cast(share, wire.ring)

    def _enter(self, phase: str, layer: int) -> None:
        if layer != self._next[phase]:
            raise ReuseError(f"job {self.job}: {phase} of layer {layer} out of order (each layer once)")
        self._next[phase] += 1

    @torch.inference_mode()  # a tenth less overhead of small operations
    def prepare(self, layer: int) -> None:
        """Offline: take this layer's correlations and do the work that no input enters."""
        self._enter("prepare", layer)
        began = time.perf_counter()
        if layer == 0:
            self._carried.key = self._carried.key or common_key(
                self._channel, self.party, self.job, self._draw, self._carried.terms
            )
            self._masks.update((n, self._carried.masks[n]) for n in self.program.carried if n in self._carried.masks)
        context = self._offline_context()
        for index, step in self._layers[layer]:
            start = time.perf_counter()
            if _prepares(type(step.op)):  # type: ignore[arg-type]
                what = self._first + index, step.label, self.program.seeded[index] == self.party
                context.enter(*what)
                masks = [self._mask_of(name) for name in step.inputs]
                if step.op.waits and what[2]:
                    self._waiting[index], k = self._offline_context(), dict[str, Tensor]()
                    self._waiting[index].enter(*what)
                else:
                    k = self._prepared[index] = step.op.prepare(context, *masks)
                outputs = step.op.prepared_masks(k, *masks)
                self._masks.update((n, m) for n, m in zip(step.outputs, outputs, strict=False) if m is not None)
                seconds = time.perf_counter() - start
                self.ledger.add("offline", layer, step.label, seconds=seconds, bytes_from_dealer=context.received)
            for name in self._masks_free[index]:
                self._masks.pop(name, None)
        if layer == len(self.program.layers) - 1:
            kept = self.program.kept.items()
            self._carried.masks.update((n, self._masks[w.name]) for n, w in kept if w.name in self._masks)
        self._offline[layer] = began, time.perf_counter() - began

    def _offline_context(self) -> _PartyContext:
        return _PartyContext(self.party, self.job, self._seed, self._source, self._channel, self._draw)

    def _mask_of(self, name: str) -> Any:
        if name in self.program.weights:
            weight = self._weights[name]
            return weight.mask if isinstance(weight, Masked) else weight
        return self._masks.get(name)

    @torch.inference_mode()
    def run(self, layer: int) -> None:
        """Online: this layer's openings and local work. After the last one both parties compare their transcripts:
        raises IntegrityError."""
        self._enter("run", layer)
        missing = self.program.inputs.keys() - self._values.keys() if layer == 0 else ()
        if missing:
            raise BadShare(f"input {sorted(missing)[0]}: no share received")
        if layer not in self._offline:
            raise ReuseError(f"job {self.job}: layer {layer} runs before it is prepared")
        began = time.perf_counter()
        if layer == 0:
            self._origin = began
            self._values.update((n, self._carried.values[n]) for n in self.program.carried)
        prepared, offline_seconds = self._offline.pop(layer)
        times = LayerTimes(prepared - self._origin, offline_seconds, began - self._origin)
        self.ledger.times[layer] = times
        context = _PartyContext(self.party, self.job, None, self._source, self._channel, self._draw)
        openings, steps = context.openings, self._layers[layer]
        for index, step in steps:
            start, waited = time.perf_counter(), openings.waiting
            context.enter(self._first + index, step.label)
            openings.meanwhile = partial(self._expand, index)
            self._expand_dealt(index)
            inputs = [self._input(name) for name in step.inputs]
            outputs = step.op.online(context, self._prepared.pop(index, {}), *inputs)
            self._values.update(zip(step.outputs, outputs, strict=True))
            if (opener := self._offers[index]) is not None:
                opening, k = self.program.steps[opener], self._prepared.get(opener, {})
                openings.offer(self._first + opener, opening, k, self._values)
            elif index == steps[-1][0]:
                openings.finish()
            for name in self._values_free[index]:
                self._values.pop(name, None)
            self.ledger.add(
                "online",
                layer,
                step.label,
                seconds=time.perf_counter() - start,
                waiting=openings.waiting - waited,
                rounds=len(sent := openings.take_sent()),
                bytes_sent=sum(opening.nbytes for opening in sent),
            )
            for o in openings.take_done():
                times.rounds.append(Round(o.name, o.start - self._origin, o.waiting, o.nbytes))
        times.seconds = time.perf_counter() - began
        self.ended += 1
        if layer == len(self.program.layers) - 1:
            self._carried.values.update((n, self._values[w.name]) for n, w in self.program.kept.items())
            compare_transcripts(self._channel, self.party, f"step {self._first + len(self.program.steps)}")

    def _input(self, name: str) -> Any:
        if name not in self.program.weights:
            return self._values[name]
        return self._ahead.pop(name, None) or self._weights[name]

    def _expand(self, index: int) -> None:
        """While an opening is under way: expand what was dealt to the steps up to the next one, and shares of weights
        that they multiply by, if all of these are small enough to be held at once."""
        layer = self._layers[self.program.steps[index].layer]
        end = self._openers[index] or layer[-1][0] + 1
        steps = self.program.steps[index + 1 : end]
        names = [name for step in steps for name in step.inputs if name in self.program.weights]
        found = {name: weight for name in names if isinstance(weight := self._weights[name], WeightShare)}
        shares = {name: w.share for name, w in found.items() if isinstance(w.share, ExpandedShare)}
        if sum(share.nbytes for share in shares.values()) <= EXPANDED:
            self._ahead |= {name: WeightShare(share.expanded(), found[name].masked) for name, share in shares.items()}
        for following in range(index + 1, end):
            self._expand_dealt(following)

    def _expand_dealt(self, index: int) -> None:
        """This party's shares for a step, if it expands them from its seed and has not yet."""
        if (context := self._waiting.pop(index, None)) is not None:
            self._prepared[index] = self.program.steps[index].op.prepare(context)

    def outputs(self) -> dict[str, Tensor]:
        """This party's shares of the outputs, for the client alone: shared anew, an opened one by its mask."""

        def anew(name: str, wire: Wire) -> Tensor:
            value = self._values[wire.name]
            if isinstance(value, Masked):
                value = value.value - value.mask if self.party == 0 else -value.mask
            return rerandomised(value, self.party, self._carried.key, self._first, name, wire)

        return {name: anew(name, wire) for name, wire in self.program.outputs.items()}
