"""F09: signals to the launcher, to one rank and to all, wherever the ranks are."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.faults.rows.row import Figure, Measured, Row
from benchmarks.faults.rows.stage import (
    Trial,
    codes,
    damaged,
    draws,
    start,
    strikes,
    trial,
    until,
)
from configs.errors import Preempted
from launcher.environment import PROJECT
from launcher.watch import STOP
from tests.launcher.pretraining import Launches, processes_of, saved

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
TARGETS = ("one rank", "all ranks", "launcher")
PHASES = {
    "start-up": "start",
    "waiting for data": "data:step=5",
    "forward": "forward:step=5",
    "backward": "backward:step=5",
    "update": "optimizer:step=5",
    "validation": "validation:step=4",
    "save": "checkpoint.half:step=5",
}
_FIRST = {"validation": 4, "waiting for data": 3}
"""The earliest step that is saved, where it is not 5: batches are made ahead."""
_HELD = 1.0
"""Seconds that ranks stay at a point, so that the signal finds them there."""
_STEPS_LATER = 2
"""A request is agreed on beside a step that is under way: it ends after that one or the next."""


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat draws signal, target and phase; the launching command is signalled besides."""
    held, of, notes, seconds = 0, 0, [], []
    with trial(folder) as made:
        for number, drawn in draws(repeats, "F09"):
            phase = list(PHASES)[number % len(PHASES)]
            trouble, taken = _try(made, drawn, phase)
            of, held = of + 1, held + (not trouble)
            notes += [trouble] * bool(trouble)
            seconds.append(taken)
    for drawn_signal in SIGNALS[: max(1, repeats // len(PHASES))][::-1]:
        trouble = _try_command(folder / f"command-{drawn_signal.name}", drawn_signal)
        of, held = of + 1, held + (not trouble)
        notes += [trouble] * bool(trouble)
    figures: dict[str, Figure] = {
        "seconds from the signal to the last rank's end, at most": round(max(seconds), 1)
    }
    return Measured(held, of, figures, tuple(notes))


def _try(made: Trial, drawn: random.Random, phase: str) -> tuple[str, float]:
    """What was not kept, empty if all was; and the seconds it took."""
    number, target = drawn.choice(SIGNALS), drawn.choice(TARGETS)
    what = f"{number.name} to {target} in {phase}"
    launches = made.launches()
    point = PHASES[phase]
    handle = start(launches, f"sleep@{point}{',' if ':' in point else ':'}seconds={_HELD}")
    if not until(lambda: strikes(launches)):
        handle.kill()
        handle.wait()
        return f"{what}: the ranks did not come so far", 0.0
    began = time.monotonic()
    if target == "launcher":
        # What `onward run` does with a signal; ranks of other hosts hear of it so, too.
        (launches.folder / STOP).write_text(number.name)
    else:
        handle.kill(number, drawn.randrange(2) if target == "one rank" else None)
    try:
        ended = handle.wait(60.0)
    except TimeoutError:
        return f"{what}: the ranks did not end within 60 s", 60.0
    return _judged(what, launches, codes(ended), phase), time.monotonic() - began


def _judged(what: str, launches: Launches, found: list[int | None], phase: str) -> str:
    if found != [75, 75] and not (phase == "start-up" and set(found) <= {129, 130, 138, 143}):
        return f"{what}: exit codes {found}"
    if problems := damaged(launches):
        return f"{what}: {problems[0]}"
    if phase == "start-up":
        return ""
    steps, first = saved(launches.output), _FIRST.get(phase, 5)
    if not steps or not first <= steps[-1] <= 5 + _STEPS_LATER:
        return f"{what}: checkpoints {steps}"
    return ""


def _try_command(folder: Path, number: signal.Signals) -> str:
    """A signal to a launching command whose ranks heed none: nobody is left after five seconds."""
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: toy\noutput: {folder}/run\nstages:\n  crew: {{kind: crew, act: wait}}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launcher.toy_run", str(recipe)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    pids = [folder / f"run/crew/pid-{rank}" for rank in range(2)]
    came = until(lambda: all(path.exists() and path.read_text() for path in pids))
    process.send_signal(number if came else signal.SIGKILL)
    try:
        code = process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    gone = until(lambda: not processes_of(folder), 5.0)
    if not came or code != 128 + number or not gone:
        return f"{number.name} to the command: exit code {code}, left over: {processes_of(folder)}"
    return ""


ROW = Row(
    id="F09",
    fault="SIGTERM, SIGUSR1, SIGINT or SIGHUP to the launcher, one rank or all; in any phase",
    promise=f"{Preempted.exit_code} with a checkpoint of the step under way or the next, 128+n "
    "where there is no state; nobody is left after 5 s",
    measure=measure,
    repeats=7,
)
