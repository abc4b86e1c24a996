"""F15: a rank that is stopped, one that holds Python's lock, and one that is slow."""

import ctypes
import json
import time
from pathlib import Path
from types import SimpleNamespace

from benchmarks.faults.rows.row import Figure, Measured, Row
from benchmarks.faults.rows.stage import WORKER, Trial, start, strikes, trial, until
from engine import faults
from engine.watchdog import VERDICT
from launcher import worker
from tests.launcher.pretraining import STAGE

LIMIT = 5.0
_LATER = 2.0
"""Seconds after the limit within which it must have been noticed."""
HOLD = "benchmarks.faults.rows.f15:hold"
CASES = ("stopped", "holds Python's lock", "slow")


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat is the next case, on rank 0 and rank 1 in turn."""
    held, notes, noticed = 0, [], []
    with trial(folder) as made:
        for number in range(repeats):
            case, rank = CASES[number % len(CASES)], number // len(CASES) % 2
            trouble, seconds = _slow(made, rank) if case == "slow" else _mute(made, case, rank)
            held += not trouble
            notes += [f"rank {rank} {case}: {trouble}"] * bool(trouble)
            noticed += [seconds] * (seconds > 0)
    figures: dict[str, Figure] = {"limit, seconds": LIMIT}
    if noticed:
        figures["seconds until it was noticed, at most"] = round(max(noticed), 1)
    return Measured(held, repeats, figures, tuple(notes))


def _mute(made: Trial, case: str, rank: int) -> tuple[str, float]:
    """What was not kept, and the seconds from the strike to the verdict."""
    launches = made.launches(hang_after=LIMIT)
    is_held = case != "stopped"
    fault = f"stop@forward:rank={rank},step=3"
    if is_held:
        fault = f"sleep@forward:rank={rank},step=3,seconds=60"
    handle = start(launches, fault, HOLD if is_held else WORKER)
    # Looked for again and again: a rank that wakes later writes it once more.
    is_noticed = until((launches.folder / VERDICT).exists)
    noticed = time.time()
    try:
        ended = handle.wait(60.0)
    except TimeoutError:
        return "the others did not end", 0.0
    if ended[1 - rank].code != 5 or not is_noticed:
        return f"exit code {ended[1 - rank].code} of the other rank", 0.0
    seconds = noticed - strikes(launches)[-1]["time"]
    said = str(launches.explained(ended))
    state = "it is alive, but its Python does not run" if is_held else "it is stopped (state T)"
    if f"rank {rank} (process {handle.pids[rank]} on " not in said or state not in said:
        return f"not named: {said[:300]}", seconds
    if seconds > LIMIT + _LATER:
        return f"noticed after {seconds:.1f} s", seconds
    return "", seconds


def _slow(made: Trial, rank: int) -> tuple[str, float]:
    """It must be named on rank 0's log and in the numbers, and end nothing."""
    launches = made.launches(steps=8)
    fault = ";".join(f"sleep@forward:rank={rank},step={n},seconds=0.5" for n in range(1, 8))
    ended = start(launches, fault).wait(60.0)
    if [each.code for each in ended] != [0, 0]:
        return f"exit codes {[each.code for each in ended]}", 0.0
    folder = launches.output / STAGE
    lines = [json.loads(line) for line in (folder / "stragglers.jsonl").read_text().splitlines()]
    if [line["slowest"]["rank"] for line in lines[1:]] != [rank] * (len(lines) - 1):
        return "another rank is called the slowest", 0.0
    if f"rank {rank} on " not in (folder / "logs/rank-0.log").read_text():
        return "no warning names it", 0.0
    return "", 0.0


def hold(arguments: list[str]) -> None:
    """A rank whose sleep is that of C code which never lets go of the interpreter."""
    asleep = ctypes.PyDLL(None).sleep
    faults.time = SimpleNamespace(  # type: ignore[assignment]  # in the place of the module
        sleep=lambda seconds: asleep(int(seconds)), time=time.time
    )
    worker.main(arguments)


ROW = Row(
    id="F15",
    fault="a rank is stopped, holds Python's lock, or is slow",
    promise=f"noticed within the limit and {_LATER:g} s, the right rank named; a slow one is named "
    "and the run goes on",
    measure=measure,
    repeats=3,
)
