"""Some clients of the load run in one process: threads that ask one job after another, each over its own connections.

    python -m benchmarks.load_client CONFIGURATION FIRST COUNT

A line on stdin says how many of them ask from then on (an empty one: all); they end when it closes. Each job is a line
on stdout: `client`, `began`, `ended` (time.monotonic, which all processes of a machine share), `asked` (when the
attempt began that was not refused), `busy` (how often it was refused, honestly), `outcome` as in asking.py. A client
that is told when to try again does so then.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.asking import Question, model
from ditto.client.client import Client, Outputs
from ditto.errors import Busy, DittoError
from ditto.net.config import ClientConfig, load_config

QUESTIONS = 8  # different ones; their answers are computed once


@cache
def question(seed: int) -> tuple[Question, list[Outputs]]:
    asked = Question("bert", seed)
    return asked, asked.answers()


class Clients:
    def __init__(self, config: ClientConfig) -> None:
        self._config, self._lock = config, threading.Lock()
        self.ended = threading.Event()
        self._asking, self._changed = 0, threading.Condition()

    def say(self, line: dict[str, Any]) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()

    def ask(self, count: int) -> None:
        """So many of them from now on, the first ones."""
        with self._changed:
            self._asking = count
            self._changed.notify_all()

    def end(self) -> None:
        self.ended.set()
        with self._changed:
            self._changed.notify_all()

    def _may_ask(self, place: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.ended.is_set() or place < self._asking)
        return not self.ended.is_set()

    def ask_until_ended(self, place: int, number: int) -> None:
        draws = random.Random(number)
        with Client(self._config) as client:
            while self._may_ask(place):
                self._ask(client, number, draws)

    def _ask(self, client: Client, number: int, draws: random.Random) -> None:
        asked, answers = question(draws.randrange(QUESTIONS))
        began, busy = time.monotonic(), 0
        while True:
            attempt = time.monotonic()
            try:
                outcome = "right" if asked.right(asked.ask(client), answers) else "wrong"
                message = ""
            except Busy as error:
                busy += 1
                # not before the time that it was told; a little later, so that all do not come at once
                if not self.ended.wait(error.retry_s * draws.uniform(1, 1.25)):
                    continue
                return
            except DittoError as error:
                outcome, message = error.code, str(error)
            except Exception as error:
                outcome, message = type(error).__name__, str(error)[:500]
            line = {"client": number, "began": began, "asked": attempt, "ended": time.monotonic(), "busy": busy}
            self.say(line | {"outcome": outcome, "message": message})
            return


def main() -> None:
    torch.set_num_threads(1)
    first, count = map(int, sys.argv[2:])
    clients = Clients(load_config(Path(sys.argv[1]), ClientConfig))
    model("bert")
    for seed in range(QUESTIONS):
        question(seed)
    clients.say({"ready": True})
    threads = [threading.Thread(target=clients.ask_until_ended, args=(i, first + i)) for i in range(count)]
    for thread in threads:
        thread.start()
    for line in sys.stdin:
        clients.ask(int(line.strip() or count))
    clients.end()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
