"""A training run of a few seconds on hosts, as its user starts it, and what it comes to."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.hosts import Cluster, ClusterHost, Started, wait_until
from tests.launcher.pretraining import DEEPSPEED, STAGE, numbers, write_recipe

STEPS = 12
LONGEST = 200.0
"""Seconds in which any launch here must have come to its end, on a machine with much else to do."""
# A batch for one, two and three hosts; fp32, so that sums in another order stay close.
_BATCH = {**DEEPSPEED, "train_batch_size": 12, "bf16": {"enabled": False}}


class Job:
    """One run folder, and the launches that are tried on it."""

    def __init__(self, cluster: Cluster, data: Path, name: str, **changes: Any) -> None:
        self.cluster = cluster
        self.place = cluster.folder / name
        self.output = self.place / "run"
        self.stage = self.output / STAGE
        backend = {"name": "deepspeed", "config": _BATCH}
        every = {"checkpoint": {"every": 4}, "hang_after": 15, **changes}
        self.recipe = write_recipe(data, self.output, backend=backend, **every)
        self.struck = self.place / "struck"

    def command(self, hosts: Sequence[ClusterHost], *more: str) -> list[str]:
        """``onward run`` on these hosts, one rank on each."""
        file = self.cluster.hostfile(hosts=hosts)
        words = ["run", str(self.recipe), "--hostfile", str(file), *more]
        return [sys.executable, "-m", "launcher", *words]

    def _prepare(self, fault: str) -> dict[str, str]:
        """A fault: to ranks on other hosts by the user's own file, to those here by what is set."""
        self.struck.unlink(missing_ok=True)
        told = {"ONWARD_FAULT": fault, "ONWARD_FAULT_LOG": str(self.struck)} if fault else {}
        lines = "".join(f"{name}={value}\n" for name, value in told.items())
        (self.place / ".deepspeed_env").write_text(lines)
        return told

    def run(
        self,
        hosts: Sequence[ClusterHost],
        *more: str,
        start_on: ClusterHost | None = None,
        fault: str = "",
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """To its end, from the first of the hosts or another."""
        environment |= self._prepare(fault)
        command = self.command(hosts, *more)
        start = start_on or hosts[0]
        return start.run(command, LONGEST, cwd=self.place, **environment)

    def start(
        self,
        hosts: Sequence[ClusterHost],
        *more: str,
        start_on: ClusterHost | None = None,
        fault: str = "",
        **environment: str,
    ) -> Started:
        """Begin one; what it says goes to ``log``."""
        environment |= self._prepare(fault)
        command = self.command(hosts, *more)
        return (start_on or hosts[0]).start(command, self.log, cwd=self.place, **environment)

    def alone(self, host: ClusterHost, processes: int) -> subprocess.CompletedProcess[str]:
        """On one host without a hostfile."""
        self._prepare("")
        words = ["run", str(self.recipe), "--processes", str(processes)]
        return host.run([sys.executable, "-m", "launcher", *words], LONGEST, cwd=self.place)

    @property
    def log(self) -> Path:
        """What the last one that was begun said."""
        return self.place / "said"

    def wait_for_strike(self, started: Started) -> None:
        """Until a rank has come to where its fault is; RuntimeError if the launch ends first."""
        wait_until(lambda: self.struck.exists() or started.poll() is not None, LONGEST, "a fault")
        if not self.struck.exists():
            raise RuntimeError(self.log.read_text())

    def numbers(self) -> dict[str, Any]:
        """Losses, measurements and weights of the finished run."""
        return numbers(self.output)

    def losses(self) -> dict[int, float]:
        """Of each step that is written down."""
        lines = (self.stage / "metrics.jsonl").read_text().splitlines()
        return {line["step"]: line["loss"] for line in map(json.loads, lines)}

    def saved(self) -> list[int]:
        """The steps of its checkpoints."""
        folders = (self.stage / "checkpoints").glob("step-*")
        return sorted(int(folder.name.removeprefix("step-")) for folder in folders)
