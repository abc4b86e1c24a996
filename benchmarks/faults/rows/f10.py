"""F10: asked again before the state is saved, or no time left to save it."""

import signal
import time
from pathlib import Path

from benchmarks.faults.rows.row import Figure, Measured, Row
from benchmarks.faults.rows.stage import Trial, codes, damaged, start, strikes, trial, until
from launcher.interruption import ONE_REQUEST
from tests.launcher.pretraining import saved

_GRACE = 2.0
CASES = {
    "the grace ends in a step": "term@optimizer:step=5;sleep@forward:step=6,seconds=60",
    "the grace ends in a save": "term@forward:step=5;sleep@checkpoint.half:step=7,seconds=60",
    "a second signal in a step": "sleep@forward:step=6,seconds=60",
    "a second signal in a save": "sleep@checkpoint.half:step=10,seconds=60",
}


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat is the next case; all of them end and leave the checkpoint of step 5 whole."""
    held, notes, seconds = 0, [], []
    with trial(folder) as made:
        for number in range(repeats):
            case = list(CASES)[number % len(CASES)]
            trouble, taken = _try(made, case)
            held += not trouble
            notes += [f"{case}: {trouble}"] * bool(trouble)
            seconds.append(taken)
    figures: dict[str, Figure] = {
        "seconds from the last word to the end, at most": round(max(seconds), 1)
    }
    return Measured(held, repeats, figures, tuple(notes))


def _try(made: Trial, case: str) -> tuple[str, float]:
    launches = made.launches()
    is_repeated = case.startswith("a second")
    handle = start(launches, CASES[case], grace=60.0 if is_repeated else _GRACE)
    if not until(lambda: strikes(launches)):
        handle.kill()
        handle.wait()
        return "the ranks did not come so far", 0.0
    if is_repeated:
        time.sleep(0.5)
        handle.kill(signal.SIGTERM)
        time.sleep(ONE_REQUEST + 0.5)
        handle.kill(signal.SIGTERM)
    began = time.monotonic()
    try:
        found = codes(handle.wait(60.0))
    except TimeoutError:
        return "the ranks did not end", 60.0
    if found != [128 + signal.SIGTERM] * 2:
        return f"exit codes {found}", 0.0
    if saved(launches.output) != [5] or damaged(launches):
        return f"checkpoints {saved(launches.output)}, {damaged(launches)}", 0.0
    return "", time.monotonic() - began


ROW = Row(
    id="F10",
    fault="a second signal, or the grace over, in a step and in a save",
    promise="the save is broken off, 128+n, the checkpoint before it is whole",
    measure=measure,
    repeats=4,
)
