"""F31: processes that are killed, run out of memory or raise, under a supervisor."""

import os
import resource
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any

import yaml

from benchmarks.faults import scene
from benchmarks.faults.rows.row import Figure, Measured, Row
from benchmarks.killed_run import POLL, KilledRun, living
from tests.launcher.pretraining import make_data, write_recipe

_SUPERVISED = ("--processes", "2", "--supervise")
_EACH_BLOCK_ANEW = {"MALLOC_MMAP_THRESHOLD_": "16384"}
"""glibc then gives larger blocks back at once, so that a limit is felt at the next step."""


@dataclass
class Seen:
    """What did not come out as promised, and what was measured."""

    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)

    def expect(self, run: KilledRun, code: int, kinds: Iterable[str], *said: str) -> None:
        """Exit code, the restarts' kinds, words that were said, and that nobody is left."""
        found = [line["kind"] for line in run.restarts]
        if run.process.returncode != code:
            self.wrong.append(f"exit code {run.process.returncode}, not {code}: {run.text[-600:]}")
        if found != list(kinds):
            self.wrong.append(f"restarts after {found}, not {list(kinds)}")
        self.wrong += [f"not said: {words}" for words in said if words not in run.text]
        if left := living(run.output):
            self.wrong.append(f"still there: {left}")


def measure(repeats: int, folder: Path) -> Measured:
    """One of the scenarios at each repeat, in turn."""
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    held = 0
    for number in range(repeats):
        scenario = _SCENARIOS[number % len(_SCENARIOS)]
        place = folder / str(number)
        place.mkdir()
        seen = scenario(place)
        held += not seen.wrong
        notes += [f"{scenario.__name__.strip('_')}: {what}" for what in seen.wrong]
        figures |= seen.figures
    return Measured(held, repeats, figures, tuple(notes))


def _training(folder: Path, options: Iterable[str] = (), **more: str) -> KilledRun:
    recipe = write_recipe(
        make_data(folder), folder / "run", steps=400, checkpoint={"every": 5}, log_every=1
    )
    words = [*_SUPERVISED, *options]
    return KilledRun(recipe, folder / "run", words, OMP_NUM_THREADS="1", **more)


def _killed_then_out_of_memory(folder: Path) -> Seen:
    """SIGKILL, as the kernel's own when memory runs out; then a rank that is given no more."""
    seen = Seen()
    with _training(folder, **_EACH_BLOCK_ANEW) as run:
        killed = run.wait_for_rank(step=7, rank=1)
        if killed:
            os.kill(killed, signal.SIGKILL)
        step = run.step
        starved = run.wait_for_rank(step + 5, rank=0, starts=2)
        if starved:
            _starve(starved)
        run.process.wait(timeout=300)
    seen.expect(run, 0, ["killed", "memory"], f"process {killed} on", "killed by SIGKILL")
    told = [line["message"] for line in run.restarts]
    if not any("memory" in message for message in told[1:]):
        seen.wrong.append(f"out of memory is not named: {told}")
    for line in run.restarts:
        seen.figures[f"seconds until it was started again: {line['kind']}"] = line["waited_seconds"]
    return seen


def _starve(pid: int) -> None:
    """From now on the process may have no more than it had at the leanest moment of some steps."""
    most = min(_address_space(pid) for _ in range(100))
    resource.prlimit(pid, resource.RLIMIT_AS, (most, most))


def _address_space(pid: int) -> int:
    """Bytes."""
    sleep(0.005)
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _exception(folder: Path) -> Seen:
    """The same one at the same step again: of no use to try a third time."""
    seen = Seen()
    with _training(folder, ONWARD_FAULT="error@backward:rank=1,step=7") as run:
        run.process.wait(timeout=300)
    seen.expect(run, 1, ["crash"], "rank 1 (process", "RuntimeError: injected at backward",
                "the same exception at the same step, twice", "The traceback is in")  # fmt: skip
    return seen


def _data_worker(folder: Path) -> Seen:
    """One of the processes that prepare the corpora is killed; what it did is not done twice."""
    seen = Seen()
    recipe = _preparing(folder)
    with KilledRun(recipe, folder / "run", ["--supervise"], OMP_NUM_THREADS="1") as run:
        worker = 0
        while not run.ended and not worker:
            worker = _child_of(run.process.pid)
            sleep(POLL)
        if worker:
            os.kill(worker, signal.SIGKILL)
        run.process.wait(timeout=300)
    seen.expect(run, 0, ["resource"], "one of 2 processes was lost")
    return seen


def _child_of(pid: int) -> int:
    """A worker of a pool of that process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            words = path.with_name("cmdline").read_bytes()
        except OSError:
            continue
        if parent == pid and b"spawn_main" in words:
            return int(path.parts[2])
    return 0


def _preparing(folder: Path) -> Path:
    """A recipe that prepares two corpora by two processes."""
    values: dict[str, Any] = scene.preparing(folder, folder / "run")
    values["stages"]["prepare"]["processes"] = 2
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


_SCENARIOS: tuple[Callable[[Path], Seen], ...] = (
    _killed_then_out_of_memory,
    _exception,
    _data_worker,
)
ROW = Row(
    id="F31",
    fault="a rank killed (SIGKILL), out of memory (RLIMIT_AS), raising; a data worker killed",
    promise="named; started again and finished, or ended where it would come again",
    measure=measure,
)
