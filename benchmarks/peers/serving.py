"""The loop of a peer's process: one JSON question a line, one JSON answer a line."""

import json
import os
import sys
from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any

Trial = Callable[..., int]
"""Does the work and returns how many tokens it handed over."""


def serve(trials: dict[str, Trial]) -> None:
    """Answer until stdin ends; what a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        work = trials[asked.pop("do")]
        cpu, wall = _cpu(), perf_counter()
        tokens = work(**asked)
        taken = {"cpu_s": _cpu() - cpu, "wall_s": perf_counter() - wall}
        answers.write(json.dumps({"tokens": tokens} | taken) + "\n")
        answers.flush()
    os._exit(0)


def _cpu() -> float:
    """CPU seconds of this process and of those it has waited for."""
    children = os.times()
    return process_time() + children.children_user + children.children_system
