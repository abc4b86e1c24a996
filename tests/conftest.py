"""What several packages' tests share: DeepSpeed's operator for the CPU, and warm workers."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.environment import cores, worker_environment
from tests.warm import WarmWorkers

ROOT = Path(__file__).parents[1]
# Under nohup, or behind a shell's `&`, they would be ignored here and in all that tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes first: a long one at the end would leave a core without work."""
    long = {item.path for item in items if item.get_closest_marker("processes")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def operators() -> dict[str, str]:
    """What processes that compute on the CPU find DeepSpeed's operators by; they are built.

    In the folder that set-up builds into, by the launcher's own builder, which lets one process
    at a time build. In a process of its own: this one imports no DeepSpeed.
    """
    cache = os.environ.get("ONWARD_CACHE", str(ROOT / ".cache"))
    given = {**os.environ, "ONWARD_CACHE": cache, "DS_ACCELERATOR": "cpu"}
    made = worker_environment(given, processes=1, gpus_here=0, core_count=cores())
    done = subprocess.run(
        [sys.executable, "-m", "launcher.jit"],
        env=made,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: made[name] for name in ("ONWARD_CACHE", "DS_ACCELERATOR", "TORCH_EXTENSIONS_DIR")}


@pytest.fixture(scope="session")
def warm(operators: dict[str, str]) -> Iterator[WarmWorkers]:
    """Starts ranks that have imported everything; see tests/warm.py."""
    with WarmWorkers(operators) as workers:
        yield workers
