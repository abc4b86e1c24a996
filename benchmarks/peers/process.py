"""A peer's process, asked one question at a time."""

import contextlib
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.environments import python_of


@dataclass(frozen=True, slots=True)
class Answer:
    """What a trial gave: tokens handed over, CPU and wall seconds of it."""

    tokens: int
    cpu_s: float
    wall_s: float

    @property
    def mtok_per_cpu_s(self) -> float:
        """Million tokens a CPU second."""
        return self.tokens / self.cpu_s / 1e6


class PeerProcess:
    """Runs ``benchmarks/peers/SCRIPT`` with the Python of an environment; a context manager."""

    def __init__(self, environment: str, script: str) -> None:
        python = python_of(environment)
        if python is None:
            msg = f"{environment}: not installed; make it by `python -m benchmarks peers`"
            raise FileNotFoundError(msg)
        self.script = script
        # A pipe that nobody reads would fill up with progress bars, and stop the peer.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed with the process
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).parent / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # A script imports what lies beside it.
            env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        )

    def ask(self, do: str, **values: Any) -> Answer:
        """Do one trial; RuntimeError with the peer's last words when it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Of one that has ended the log says more.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do} | values) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            msg = f"{self._process.args}: {self._log.read()[-2000:]}"
            raise RuntimeError(msg)
        return Answer(**json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()
