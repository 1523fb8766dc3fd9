"""Whose turn it is: several jobs run at once, as many as there are slots and as their memory allows; the others wait.

One `Turns` stands for two parties, or the pairs of their workers, and the dealer. It knows names, identities and
predicted bytes, and calls nobody: who asked looks for its `place` until that is 0.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple, NoReturn

from ditto.errors import Busy, ClusterError

ASIDE = 4  # jobs that stand aside, one of a client: each keeps what it has begun in the parties' memory
PASSES = 8  # jobs that may go before one for which there is no room yet: then they wait until there is
REMEMBERED = 4096  # identities that had a turn, and when


class Need(NamedTuple):
    """Bytes of a job, as predicted: at a party while it runs, at a party while it waits for its client, at the dealer.

    The dealer does not learn when a job stands aside, and deals on until its bounded queues are full.
    """

    party: int = 0
    waiting: int = 0
    dealer: int = 0


class State(NamedTuple):
    running: tuple[str, ...]  # in the order of their turns
    waiting: int
    aside: int


@dataclass
class _Asked:
    who: str
    need: Need
    alone: bool  # of its kind: activations run beside jobs, never beside each other
    pair: int | None = None  # on which it runs, or ran before it stood aside
    passed: int = 0  # jobs that went before it since there was no room


class Turns:
    """Turns that are granted by identity; waiters can see their place and can leave.

    1. At most `slots` run on a pair, and what they hold stays within `memory` bytes, at each of its parties and, of all
       pairs, at the dealer. What stands aside counts with what it keeps. Of the `pairs` that are up, a job gets the one
       that runs the fewest; it stays there. Activations are of the first, whose parties keep the models.
    2. The next turn is of the client that runs the fewest, and of these of the one whose last turn is the longest ago.
       A client's own come in the order in which they were asked for.
    3. Where there is no room for whose turn it is, others may use what there is, PASSES of them at most.
    4. At most `limit` wait, and `each` of one caller are there in all; `pace` says how many seconds pass between two
       ends, for hints when to try again.
    5. Who has to wait for its client steps aside, and comes back before those who never had a turn. Each of those that
       stand aside can come back when nothing else runs, so that none waits for another.
    """

    def __init__(
        self,
        slots: int,
        memory: int,
        limit: int,
        each: int | None = None,
        pace: Callable[[], float] = lambda: 1.0,
        pairs: Callable[[], Sequence[int]] = lambda: (0,),
    ) -> None:
        """`pairs`: those that are up, one at least. When there are others, `look` grants what they have room for."""
        self._changed = threading.Condition()
        self._slots, self._memory, self._pairs = slots, memory, pairs
        self._waiting: dict[str, _Asked] = {}  # in order
        self._back: dict[str, _Asked] = {}  # those that stood aside and want to go on, in order
        self._running: dict[str, _Asked] = {}
        self._aside: dict[str, _Asked] = {}
        self._turns = itertools.count()
        self._last: dict[str, int] = {}  # by identity: its last turn; the longest ago first
        self._order: list[str] = []  # of those that wait
        self._limit, self._each, self._pace = limit, each or limit + slots, pace

    # Asking -------------------------------------------------------------------------------------

    def enter(
        self, name: str, who: str = "", need: Need = Need(), alone: bool = False, pair: int | None = None
    ) -> None:
        """Ask for a turn, on a `pair` or on any. `need` beyond `memory` counts as all of it: it runs when nothing else
        does. With `alone` it never runs beside another such, and on the first pair. Raises Busy."""
        with self._changed:
            present = [asked for of in self._all() for asked in of.values()]
            if len(self._waiting) + len(self._back) >= self._limit:
                self._refuse(f"the queue is full: {self._limit} wait (queue_limit)", len(present))
            own = sum(asked.who == who for asked in present)
            if own >= self._each:
                self._refuse(f"{who or 'this client'} has {own} jobs waiting or running (max_jobs)", own)
            most = Need(*(min(part, self._memory) for part in need))
            self._waiting[name] = _Asked(who, most, alone, 0 if alone else pair)
            self._grant()

    def _all(self) -> tuple[dict[str, _Asked], ...]:
        return self._running, self._back, self._waiting, self._aside

    def _refuse(self, why: str, count: int) -> NoReturn:
        retry = max(1.0, round(self._pace() * count / 2))  # half of them are gone by then
        raise Busy(f"coordinator: {why}; try again in {retry:.0f} s", peer="coordinator", retry_s=retry)

    def place(self, name: str, timeout: float = 0.0) -> int:
        """0: it is this one's turn. Else one more than how many wait before it; waits up to `timeout` for 0."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._running, timeout)
            return 0 if name in self._running else self._order.index(name) + 1

    def pair(self, name: str) -> int:
        """Of one whose turn it is."""
        with self._changed:
            return self._running[name].pair or 0

    def look(self) -> None:
        """Other pairs are up than before."""
        with self._changed:
            self._grant()

    def leave(self, name: str) -> None:
        """It has ended, or does not want its turn any more. Harmless for a name that is not there."""
        with self._changed:
            for of in self._all():
                of.pop(name, None)
            self._grant()

    def state(self) -> State:
        with self._changed:
            return State((*self._running,), len(self._waiting) + len(self._back), len(self._aside))

    # Standing aside -----------------------------------------------------------------------------

    def step_aside(self, name: str) -> bool:
        """Let another have the turn. False if nobody waits, if ASIDE others stand aside already, or if what all of them
        keep would be too much. Raises ClusterError if one of the same caller stands aside: who sends nothing for many
        jobs costs others little, too."""
        with self._changed:
            asked = self._running[name]
            if not self._order:
                return False
            if any(asked.who == other.who for other in self._aside.values()):
                raise ClusterError("others wait, and another job of this client waits for its inputs already")
            kept = [asked, *self._aside.values(), *self._back.values()]
            if len(self._aside) >= ASIDE or not self._can_all_come_back(kept):
                return False
            self._aside[name] = self._running.pop(name)
            self._grant()
            return True

    def _can_all_come_back(self, all_kept: list[_Asked]) -> bool:
        kept: Counter[int | None] = Counter()
        for asked in all_kept:
            kept[asked.pair] += asked.need.waiting
        return (
            all(kept[a.pair] - a.need.waiting + a.need.party <= self._memory for a in all_kept)
            and sum(a.need.dealer for a in all_kept) <= self._memory
        )

    def come_back(self, name: str) -> None:
        """Line up again, before those who never had a turn."""
        with self._changed:
            self._back[name] = self._aside.pop(name)
            self._grant()

    def holds_up(self, name: str) -> bool:
        """Do others wait for this one? While it runs: anybody who waits. While it stands aside: the next, if there is
        no room for it beside what those that stand aside keep."""
        with self._changed:
            if not self._order:
                return False
            if name in self._running:
                return True
            mine = self._aside.get(name)
            first, pair = self._find(self._order[0]), (mine.pair if mine else None) or 0
            return (
                first.pair in (None, pair)
                and self._free(pair)
                and self._room(self._order[0], first) is None
                and self._fits(self._order[0], first, pair, beside_aside=False)
            )

    # Granting -----------------------------------------------------------------------------------

    def _find(self, name: str) -> _Asked:
        return (self._back if name in self._back else self._waiting)[name]

    def _grant(self) -> None:
        """Whoever's turn it is and fits; after every change. The caller holds the lock."""
        while found := self._next():
            name, pair = found
            asked = self._running[name] = (self._back if name in self._back else self._waiting).pop(name)
            asked.pair = pair
            self._last.pop(asked.who, None)
            self._last[asked.who] = next(self._turns)
            if len(self._last) > REMEMBERED:
                del self._last[next(iter(self._last))]
        self._order = [*self._in_order()]
        self._changed.notify_all()

    def _next(self) -> tuple[str, int] | None:
        """Who is next, and on which pair."""
        if len(self._running) >= self._slots and not any(map(self._free, self._pairs())):
            # without a slot nobody is passed; one who comes back to a pair that is not up waits for that of another
            return None
        before: list[_Asked] = []
        closed: set[int | None] = set()  # pairs that wait until there is room for one that was passed
        for name in self._in_order():
            asked = self._find(name)
            if any(asked.who == other.who for other in before):  # behind one of its own
                continue
            if (pair := self._room(name, asked, closed)) is not None:
                for other in before:
                    other.passed += other.pair in (None, pair)
                return name, pair
            if asked.passed >= PASSES:
                if asked.pair is None:
                    return None
                closed.add(asked.pair)
            before.append(asked)
        return None

    def _in_order(self) -> Iterator[str]:
        """Those that wait, as they would have their turns if there were room for each."""
        yield from self._back
        own: dict[str, deque[str]] = {}
        for name, asked in self._waiting.items():
            own.setdefault(asked.who, deque()).append(name)
        runs, last = Counter(asked.who for asked in self._running.values()), dict(self._last)
        turns = itertools.count(max(last.values(), default=-1) + 1)
        heap = [(runs[who], last.get(who, -1), number, who) for number, who in enumerate(own)]
        heapify(heap)
        while heap:
            count, _, number, who = heappop(heap)
            yield own[who].popleft()
            if own[who]:
                heappush(heap, (count + 1, next(turns), number, who))

    def _free(self, pair: int) -> bool:
        return sum(other.pair == pair for other in self._running.values()) < self._slots

    def _room(self, name: str, asked: _Asked, closed: Collection[int | None] = ()) -> int | None:
        """The pair that has a slot and room for it: its own, or the one that runs the fewest."""
        if asked.alone and any(other.alone for other in self._running.values()):
            return None
        runs = Counter(other.pair for other in self._running.values())
        pairs = self._pairs() if asked.pair is None else (asked.pair,)
        for pair in sorted(pairs, key=lambda pair: runs[pair]):
            if pair not in closed and self._free(pair) and self._fits(name, asked, pair):
                return pair
        return None

    def _fits(self, name: str, asked: _Asked, pair: int, beside_aside: bool = True) -> bool:
        runs = [*self._running.values()]
        kept = [other for n, other in self._back.items() if n != name]
        if beside_aside:
            kept += self._aside.values()
        party = sum(other.need.party for other in runs if other.pair == pair)
        party += sum(other.need.waiting for other in kept if other.pair == pair)
        dealer = sum(other.need.dealer for other in (*runs, *kept))
        return party + asked.need.party <= self._memory and dealer + asked.need.dealer <= self._memory
