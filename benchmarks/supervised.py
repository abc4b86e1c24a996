"""P16: useful time under random kills with automatic resume, against the ideal."""

import os
import random
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import sleep, time
from typing import Any

from benchmarks import faults
from benchmarks.killed_run import POLL, KilledRun, lines_of
from tests.launcher.pretraining import DEEPSPEED, STAGE, make_data, write_recipe

STEPS, EVERY, BATCH, RANKS, SEED = 800, 50, 256, 2, 16
BETWEEN_KILLS = 45.0
"""Mean seconds: hundreds of times as often as machines fail, so that minutes show it."""
TARGET = 0.95
_STARTING = f"{STAGE}: starting "


@dataclass(frozen=True, slots=True)
class Kill:
    """A rank's end by SIGKILL: when, and what stood then."""

    time: float
    step: int


def measure() -> dict[str, Any]:
    """Wall time of an ideal supervisor, over the one that was needed: for the same kills.

    A rank, drawn at random, is killed after random (exponential) times, whatever it is doing, until
    the run is done. The ideal notices each kill at once, waits for nothing, and starts up again as
    fast as a run that was never hit; steps after the newest checkpoint are lost to it, too. So the
    difference is what the launcher, the supervisor and a resumed start add. ``useful`` is what the
    steps of the result take at their median time, over all the time that was needed.
    """
    with tempfile.TemporaryDirectory() as place, faults.operators():
        data = make_data(Path(place))
        calm, _ = _run(data, Path(place) / "calm", None)
        hit, kills = _run(data, Path(place) / "hit", random.Random(SEED))
        same = _model(calm) == _model(hit)
        startup, steps = calm.startups(_STARTING)[0], _step_seconds(hit) * STEPS
        wall, calm_wall = _wall(hit), _wall(calm)
        away = _away(hit, kills)
        slower = [seconds - startup for seconds in hit.startups(_STARTING)[1:]]
    ideal = wall - sum(away) - sum(slower)
    value = ideal / wall
    return {
        "id": "P16",
        "value": round(value, 3),
        "target": TARGET,
        "reached": value >= TARGET and same,
        "details": [
            {
                "kills": len(kills),
                "mean_between_s": BETWEEN_KILLS,
                "wall_s": round(wall, 1),
                "ideal_s": round(ideal, 1),
                "without_kills_s": round(calm_wall, 1),
                "useful": round(steps / wall, 3),
                "useful_of_ideal": round(steps / ideal, 3),
                "useful_without_kills": round(steps / calm_wall, 3),
                "against_no_kills": round(calm_wall / wall, 3),
                "from_kill_to_new_start_s": round(median(away), 2) if away else 0.0,
                "start_up_s": round(startup, 2),
                "start_up_again_s": round(median(hit.startups(_STARTING)[1:] or [startup]), 2),
                "lost_steps": sum(kill.step % EVERY for kill in kills),
                "same_model": same,
            }
        ],
    }


def _run(data: Path, output: Path, draw: random.Random | None) -> tuple[KilledRun, list[Kill]]:
    """To its end, hit or not."""
    rows = {"train_batch_size": BATCH, "train_micro_batch_size_per_gpu": BATCH // RANKS}
    changes = {
        "steps": STEPS,
        "checkpoint": {"every": EVERY},
        "validation": None,
        "backend": {"name": "deepspeed", "config": DEEPSPEED | rows},
    }
    recipe = write_recipe(data, output, **changes)
    # By chance several kills may fall into start-ups, one after the other.
    options = ["--processes", str(RANKS), "--supervise", "--restarts", "20"]
    kills: list[Kill] = []
    with KilledRun(recipe, output, options, OMP_NUM_THREADS="1") as run:
        at = time() + draw.expovariate(1 / BETWEEN_KILLS) if draw else float("inf")
        while not run.ended:
            run.look()
            alive = run.ranks() if time() >= at else []
            if draw and alive:
                step = run.step
                os.kill(draw.choice(alive).pid, signal.SIGKILL)
                kills.append(Kill(time(), step))
                at = time() + draw.expovariate(1 / BETWEEN_KILLS)
                _let_it_be_seen(run, len(kills))
    if run.process.returncode:
        raise RuntimeError(run.text)
    return run, kills


def _let_it_be_seen(run: KilledRun, kills: int) -> None:
    """Until the next start: a second kill of the same launch would be none."""
    while not run.ended and len(run.times_of(_STARTING)) <= kills:
        sleep(POLL)


def _wall(run: KilledRun) -> float:
    """From the first start to the end."""
    return run.said[-1][0] - run.times_of(_STARTING)[0]


def _away(run: KilledRun, kills: list[Kill]) -> list[float]:
    """Seconds from each kill to the start that follows it."""
    starts = run.times_of(_STARTING)[1:]
    return [start - kill.time for start, kill in zip(starts, kills, strict=False)]


def _step_seconds(run: KilledRun) -> float:
    found = lines_of(run.output / STAGE / "metrics.jsonl")
    return median(float(line["step_seconds"]) for line in found)


def _model(run: KilledRun) -> bytes:
    return (run.output / STAGE / "export" / "model.safetensors").read_bytes()
