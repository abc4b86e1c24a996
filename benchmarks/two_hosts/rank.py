"""What each rank does in its host: every case at every rate, in one process."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.two_hosts.cases import CASES, FREE, LARGE, LENGTH, RATES, Case, learner, micro_batch
from benchmarks.two_hosts.hosts import sent_bytes, shape

FIRST, ROUNDS = 3, 5
"""Steps that do not count, as stage 3 traces the model in them; and visits to each rate."""
_SMALL, _SMALLS = 1, 10
_PAUSE = 0.1


@dataclass
class Seen:
    """Of one case at one rate, from all visits; all but ``sent`` in seconds.

    Attributes:
        steps: each step.
        large: all-reduces of 4 MB.
        small: all-reduces of 4 bytes.
        sent: bytes that left this host, of each step.
    """

    steps: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)


def main(answer: Path) -> None:
    """All cases; rank 0 writes what it saw."""
    import torch

    from engine import distributed

    os.sched_setaffinity(0, _own_core(int(os.environ["RANK"])))
    is_first = _goes_first()
    torch.set_num_threads(1)
    with distributed.joined():
        found = [_case(case) for case in CASES]
        if distributed.rank() == 0:
            told = {"goes_first": is_first, "cases": found}
            answer.write_text(json.dumps(told), encoding="utf-8")
        distributed.barrier()


def _own_core(rank: int) -> set[int]:
    cores = sorted(os.sched_getaffinity(0))
    return {cores[rank % len(cores)]}


def _goes_first() -> bool:
    """Ask the scheduler for this process before whatever else runs; whether it was granted.

    Whoever waits for the cable is let in at once and whoever computes is not, where others want
    the core, too: a step over the free cable would seem to compute more.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        return False
    return True


def _case(case: Case) -> dict[str, Any]:
    """The rates in turn, there and back, so that whatever drifts meets all of them alike."""
    from engine import distributed
    from engine.backends.deepspeed_zero import DeepSpeedZero
    from engine.hooks.throughput import training_cost
    from engine.optimization import AdamW

    trained = learner()
    cost = training_cost(trained.backbone, "masked_lm", LENGTH)
    batches = [micro_batch(trained.objective, n) for n in range(case.accumulation)]
    values = case.deepspeed(distributed.world())
    made = DeepSpeedZero(config=values).build(trained, AdamW(lr=1e-4))
    seen = {rate: Seen() for rate in (FREE, *RATES)}
    turn = [each for rate in RATES for each in (FREE, rate)]
    shape(None)
    _take(made, batches, FIRST, Seen())
    for number in range(ROUNDS):
        for rate in turn if number % 2 else reversed(turn):
            shape(None if rate == FREE else rate)
            distributed.barrier()
            _gauge(seen[rate])
            if rate == FREE:
                # The others wait for their cable before a step.
                sleep(_PAUSE)
            distributed.barrier()
            _take(made, batches, 1, seen[rate])
    shape(None)
    made.close()
    gc.collect()
    flops = cost.token * batches[0].tokens + cost.target * batches[0].count
    return {
        "case": case.to_json(),
        "flops": flops * case.accumulation,
        "seen": {rate: vars(each) for rate, each in seen.items()},
    }


def _take(backend: Any, batches: list[Any], steps: int, seen: Seen) -> None:
    """Steps of the engine's own loop, timed from one to the next."""
    from engine.loop import train
    from engine.optimization.schedules import Linear
    from engine.protocols import Hook, Progress, Run

    class Timed(Hook):
        def on_start(self, backend: Any, progress: Any) -> None:
            del backend, progress
            self.sent, self.began = sent_bytes(), perf_counter()

        def after_step(self, backend: Any, progress: Any, record: Any) -> None:
            del backend, progress, record
            now, sent = perf_counter(), sent_bytes()
            seen.steps.append(now - self.began)
            seen.sent.append(float(sent - self.sent))
            self.sent, self.began = sent, perf_counter()

    def forever() -> Iterator[list[Any]]:
        while True:
            yield batches

    train(Run(backend, forever(), Linear(), 1e-4, steps, seed=1, hooks=[Timed()]), Progress(0))


def _gauge(seen: Seen) -> None:
    """The cable by itself: what all-reduces take on it, large and small."""
    import torch

    from engine import distributed

    for size, times, into in ((_SMALL, _SMALLS, seen.small), (LARGE, 1, seen.large)):
        tensor = torch.zeros(size)
        for _ in range(times):
            began = perf_counter()
            distributed.all_reduce(tensor)
            into.append(perf_counter() - began)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
