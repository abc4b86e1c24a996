"""The fault campaign: real runs that are hit at random, and whether they end as if they were not.

``python -m benchmarks.faults --runs 500 --seed 1``; each run is a pure function of the seed and its
number. ``draw`` says what is run and what hits it, ``scene`` makes texts and recipes, ``rank`` is
what each process does, ``supervise`` starts them again until they finish, ``damage`` spoils
checkpoints, ``judge`` compares with a run that nothing hit, ``report`` writes the table.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def operators() -> Iterator[None]:
    """This process's environment is that of a worker on the CPU, whose operator is built."""
    from launcher import jit
    from launcher.environment import cores, worker_environment

    os.environ.update(worker_environment({**os.environ, "DS_ACCELERATOR": "cpu"}, 1, 0, cores()))
    jit.build_operators()
    yield
