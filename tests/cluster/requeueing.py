"""A job of a real Slurm that is told of its end, saves, and goes on under the same number."""

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.hosts import wait_until
from tests.cluster.jobs import LONGEST, Job
from tests.cluster.slurm import ENDED, Slurm


@dataclass(frozen=True, slots=True)
class Requeued:
    """What became of it.

    Attributes:
        state: Slurm's word for its end.
        restarts: how often it was requeued.
        said: all that the job has written.
    """

    job: Job
    state: str
    restarts: int
    said: str


def requeued(queue: Slurm, data: Path, name: str) -> Requeued:
    """Run what ``onward launch-script`` writes; Slurm's signal before the end comes in mid-step.

    It is sent by ``scancel``: time limits are whole minutes.
    """
    job = Job(queue.cluster, data, name)
    script = job.place / "job.sbatch"
    words = ["launch-script", str(job.recipe), "--nodes", "2", "--tasks-per-node", "1"]
    words += ["--output", str(script), "--set", f"output={job.log}"]
    first = queue.cluster.hosts[0]
    first.run([sys.executable, "-m", "launcher", *words], cwd=job.place).check_returncode()
    # A step that takes its time.
    fault = {"ONWARD_FAULT": "sleep@forward:step=6,seconds=10", "ONWARD_FAULT_LOG": str(job.struck)}
    own = job.place / ".deepspeed_env"
    own.write_text("".join(f"{key}={value}\n" for key, value in fault.items()))
    number = queue.submit(script)
    wait_until(job.struck.exists, LONGEST, "the sixth step")
    queue.do("scancel", "--batch", "--signal=USR1", number)
    wait_until(
        lambda: queue.facts(number)["Restarts"] == "1", LONGEST, "the job in the queue again"
    )
    own.unlink()
    state = queue.wait(number, ENDED, LONGEST)
    return Requeued(job, state, int(queue.facts(number)["Restarts"]), job.log.read_text())
