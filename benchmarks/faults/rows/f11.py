"""F11: Slurm tells a job of its end and requeues it."""

from pathlib import Path
from time import monotonic

from benchmarks.faults.rows.row import Measured, Row
from tests.cluster.hosts import cluster
from tests.cluster.jobs import Job
from tests.cluster.requeueing import requeued
from tests.cluster.slurm import slurm
from tests.launcher.pretraining import make_data


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat: a job on two hosts under a real Slurm, signalled in mid-step, requeued."""
    held, notes, seconds = 0, [], []
    with cluster(2, folder / "hosts") as two, slurm(two) as queue:
        data = make_data(two.folder / "data")
        control = Job(two, data, "control")
        control.alone(two.hosts[0], 2).check_returncode()
        for number in range(repeats):
            began = monotonic()
            told = requeued(queue, data, f"job-{number}")
            seconds.append(monotonic() - began)
            same = told.state == "COMPLETED" and told.job.numbers() == control.numbers()
            if same and told.restarts == 1:
                held += 1
            else:
                notes.append(f"{told.state}, {told.restarts} restarts: {told.said[-300:]}")
    return Measured(held, repeats, {"seconds a job, most": round(max(seconds), 1)}, tuple(notes))


ROW = Row(
    "F11",
    "Slurm signals a job before its end and requeues it (real Slurm, two hosts)",
    "saved in mid-run; goes on under the same number without an argument, to the same bits",
    measure,
    repeats=1,
)
