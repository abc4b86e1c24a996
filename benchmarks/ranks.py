"""Groups of ranks for the benchmarks, forked from a process that has imported everything."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

SECONDS = 560
"""The most that one call may take."""


class Call(Protocol):
    """Calls ``package.module:function`` of the arguments on each of ``world`` new ranks."""

    def __call__(self, function: str, arguments: dict[str, Any], world: int) -> None:
        """RuntimeError with the ranks' last words if one of them fails."""
        ...


@contextmanager
def ready(folder: Path) -> Iterator[Call]:
    """Ranks with one thread each, on the CPU; ``folder``: for their logs."""
    from launcher import jit
    from tests.warm import WarmWorkers

    settle(2)
    jit.build_operators()

    with WarmWorkers({}, folder / "warm") as workers:

        def call(function: str, arguments: dict[str, Any], world: int) -> None:
            ended = workers.run(function, arguments, world=world, timeout=SECONDS)
            if any(each.code for each in ended):
                raise RuntimeError("\n".join(each.text[-3000:] for each in ended))

        yield call


def settle(processes: int) -> None:
    """The environment that the product gives its workers on this host, without its GPUs."""
    from launcher.environment import cores, worker_environment

    given = {**os.environ, "DS_ACCELERATOR": "cpu"}
    os.environ.update(worker_environment(given, processes, 0, cores()))


def answered(call: Call, function: str, arguments: dict[str, Any], world: int = 1) -> Any:
    """What rank 0 of such a call left in the file that its argument ``answer`` names."""
    call(function, arguments, world)
    return json.loads(Path(arguments["answer"]).read_bytes())
