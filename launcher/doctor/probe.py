"""One host's witness: answers questions, one JSON object a line, until nobody asks any more.

``python -m launcher.doctor.probe`` runs on every host, through ssh. It imports no torch; what has
to count GPUs is a process of its own. Shells greet on the same stream: answers have a mark.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launcher.doctor.facts import machine, network, software, storage

MARK = "onward-doctor:"


class Witness:
    """What is asked for, by name; keeps sockets and locks between questions."""

    def __init__(self) -> None:
        self._network = network.Network()
        self._lock = storage.Lock()
        self._answers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "clock": lambda _: {"time": time.time()},
            "machine": lambda _: machine.facts(),
            "devices": lambda _: machine.devices(),
            "software": lambda _: software.facts(),
            "network": lambda q: self._network.facts(
                q["master"], q["port"], is_first=q["is_first"]
            ),
            "way": lambda q: network.way_to(q["target"]),
            "calls": lambda q: network.call(q["peers"], q["patience"]),
            "storage": lambda q: storage.facts(Path(q["folder"])),
            "written": lambda q: storage.write(Path(q["folder"]), q["name"], q["text"]),
            "read": lambda q: storage.read(Path(q["folder"]), q["tokens"], q["patience"]),
            "speed": lambda q: storage.speed(Path(q["folder"]), q["name"]),
            "lock": lambda q: self._lock.take(Path(q["folder"])),
            "release": lambda _: self._lock.release(),
        }

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """To one question; what it is about stands under ``ask``."""
        return self._answers[question["ask"]](question)


def main() -> None:
    """Until the one who asks has closed the line."""
    witness = Witness()
    for line in sys.stdin:
        answer = witness.answer(json.loads(line))
        sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")
        sys.stdout.flush()
    # A thread may hang in a file system that does not answer.
    os._exit(0)


if __name__ == "__main__":
    main()
