"""Jobs of a real Slurm that are told of their end, or lose a host, and go on under their number."""

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
    # A step that takes its time.
    job, number = _at_sixth_step(queue, data, name, "sleep@forward:step=6,seconds=10")
    queue.do("scancel", "--batch", "--signal=USR1", number)
    _wait_for_requeue(queue, number)
    return _at_its_end(queue, job, number)


def lost_and_requeued(queue: Slurm, data: Path, name: str) -> Requeued:
    """The same, but the second host loses its power in mid-step, and comes back."""
    fault = "sleep@forward:rank=1,step=6,seconds=600"
    job, number = _at_sixth_step(queue, data, name, fault)
    second = queue.cluster.hosts[1]
    second.power_off()
    _wait_for_requeue(queue, number)
    second.boot()
    return _at_its_end(queue, job, number)


def _at_sixth_step(queue: Slurm, data: Path, name: str, fault: str) -> tuple[Job, str]:
    """A job whose fault strikes once, and its number."""
    job = Job(queue.cluster, data, name)
    script = job.place / "job.sbatch"
    words = ["launch-script", str(job.recipe), "--nodes", "2", "--tasks-per-node", "1"]
    words += ["--output", str(script), "--set", f"output={job.log}"]
    first = queue.cluster.hosts[0]
    first.run([sys.executable, "-m", "launcher", *words], cwd=job.place).check_returncode()
    own = job.place / ".deepspeed_env"
    own.write_text(f"ONWARD_FAULT={fault}\nONWARD_FAULT_LOG={job.struck}\n")
    number = queue.submit(script)
    wait_until(job.struck.exists, LONGEST, "the sixth step")
    own.unlink()
    return job, number


def _wait_for_requeue(queue: Slurm, number: str) -> None:
    wait_until(
        lambda: queue.facts(number)["Restarts"] == "1", LONGEST, "the job in the queue again"
    )


def _at_its_end(queue: Slurm, job: Job, number: str) -> Requeued:
    state = queue.wait(number, ENDED, LONGEST)
    return Requeued(job, state, int(queue.facts(number)["Restarts"]), job.log.read_text())
