"""Which rank is slow: each one's own share of the steps, compared at every logged step."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.protocols import Backend, Hook, Progress, StepRecord

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
SLOW = 1.5
"""A rank that takes so many times the median is worth a warning."""
WINDOWS = 3
"""After so many windows in a row."""


class Stragglers(Hook):
    """Writes ``stragglers.jsonl``: a line every ``every`` steps and after step ``steps``.

    A rank's own time is its wait for data and the forward passes of its micro-batches: what it does
    before it waits for the others. At ZeRO stage 3 a forward pass gathers weights from all ranks,
    and waits for them, too; there a slow rank shows less. On a GPU passes are timed by events that
    are read when they have passed: no step waits for the device.

    A line: step, ``slowest`` (rank, host, ratio to the median) and the ``median`` and ``slowest``
    seconds a step. It is for runs of several ranks, and an observer of the loop besides.
    """

    name = "stragglers"

    def __init__(
        self,
        path: Path,
        hosts: Sequence[str],
        every: int,
        steps: int,
        sinks: Sequence[Sink] = (),
    ) -> None:
        """Set up; ``hosts``: of each rank, by rank."""
        self._lines = JsonLines(path)
        self._hosts = list(hosts)
        self._every = every
        self._steps = steps
        self._sinks = tuple(sinks)
        self._clock = _Clock()
        self._taken = 0
        self._slow: tuple[int, int] = (-1, 0)

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins a phase: what is timed begins or ends."""
        del step
        if phase == "data":
            self._clock.waits()
        elif phase == "reduce":
            self._clock.has_waited()
        elif phase == "forward":
            self._clock.begins()
        elif phase == "backward":
            self._clock.ends()

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint."""
        if backend.device.type == "cuda":
            self._clock = _DeviceClock()
        if backend.rank == 0:
            self._lines.cut_after(progress.step or BEFORE_ALL)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """At a logged step compare all ranks; a warning if one has been slow for a while."""
        del record
        self._taken += 1
        if progress.step % self._every == 0 or progress.step == self._steps:
            self._compare(backend, progress.step)

    def _compare(self, backend: Backend, step: int) -> None:
        import torch

        own = torch.zeros(backend.world, dtype=torch.float64)
        own[backend.rank] = self._clock.taken() / self._taken
        self._taken = 0
        seconds = backend.sum_over_ranks(own).tolist()
        if backend.rank != 0:
            return
        numbers = self._numbers(seconds)
        self._lines.append({"step": step, **numbers})
        for sink in self._sinks:
            sink.write("stragglers", step, _without_host(numbers))
        self._warn(step, numbers["slowest"])

    def _numbers(self, seconds: Sequence[float]) -> dict[str, Any]:
        slowest = max(range(len(seconds)), key=seconds.__getitem__)
        usual = median(seconds)
        ratio = seconds[slowest] / usual if usual else 1.0
        named = {"rank": slowest, "host": self._hosts[slowest], "ratio": ratio}
        return {"slowest": named, "seconds": {"median": usual, "slowest": seconds[slowest]}}

    def _warn(self, step: int, slowest: dict[str, Any]) -> None:
        rank = slowest["rank"] if slowest["ratio"] > SLOW else -1
        self._slow = (rank, self._slow[1] + 1 if rank == self._slow[0] else 1)
        if rank >= 0 and self._slow[1] == WINDOWS:
            logger.warning(
                "step %d: rank %d on %s takes %.1f times as long as the median rank, for %d logged "
                "windows now; all others wait for it",
                step,
                rank,
                slowest["host"],
                slowest["ratio"],
                WINDOWS,
            )


def _without_host(numbers: dict[str, Any]) -> dict[str, Any]:
    """What a curve can be made of."""
    slowest = {key: value for key, value in numbers["slowest"].items() if key != "host"}
    return {**numbers, "slowest": slowest}


class _Clock:
    """Adds up waits and passes by the wall clock: on the CPU a pass ends when it returns."""

    def __init__(self, now: Callable[[], float] = perf_counter) -> None:
        self._now = now
        self._began = 0.0
        self._seconds = 0.0

    def waits(self) -> None:
        self._began = self._now()

    def has_waited(self) -> None:
        self._seconds += self._now() - self._began

    def begins(self) -> None:
        self._began = self._now()

    def ends(self) -> None:
        self._seconds += self._now() - self._began

    def taken(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class _DeviceClock(_Clock):
    """Passes by events on the device, which goes on by itself when a pass returns."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def begins(self) -> None:
        import torch

        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        self._pairs.append((first, last))

    def ends(self) -> None:
        self._pairs[-1][1].record()
        # Those that have passed are read now, so that few are kept.
        while len(self._pairs) > 1 and self._pairs[0][1].query():
            self._read()

    def taken(self) -> float:
        """Seconds since the last call; waits for the last pass, which logging has done already."""
        while self._pairs:
            self._pairs[0][1].synchronize()
            self._read()
        return super().taken()

    def _read(self) -> None:
        first, last = self._pairs.popleft()
        self._seconds += first.elapsed_time(last) / 1000
