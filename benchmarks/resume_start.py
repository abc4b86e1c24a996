"""P11: from the start of the processes to the first step, resuming against beginning anew."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter, process_time, time
from typing import Any

import yaml

from benchmarks.checkpoint_model import SHAPE
from benchmarks.checkpoint_save import FOLDER
from benchmarks.faults import scene
from benchmarks.faults.draw import Setup

PAIRS, TARGET = 3, 1.10
SAVED, MORE = 4, 20
SETUP = Setup(
    "bert", 1, "bf16", 2, "plain", 8, 2, SAVED + MORE, SAVED, keep=10, mode="sync", guard=False
)


def measure() -> dict[str, Any]:
    """CPU time until the first step is taken, both ranks, A B B A; median of the pairs.

    Each trial is two new processes that run the product's worker on a stage of 28 million
    parameters. A resumed one takes up the checkpoint of step 4; to the cold start is added what
    reading those files costs, each by one of two processes. Wall times stand beside.
    ``losses_equal``: a resumed run's next 20 losses are those of the run that went on.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get(FOLDER)) as place:
        folder = Path(place)
        prepared = scene.prepare(folder)
        whole = _start(folder, "whole", prepared, None)
        saved = folder / "whole" / scene.STAGE / "checkpoints" / f"step-{SAVED}"
        seen: dict[str, list[dict[str, float]]] = {"cold": [], "resumed": []}
        for turn in range(PAIRS):
            order = ["cold", "resumed"]
            for name in order if turn % 2 else order[::-1]:
                target = folder / f"{name}-{turn}"
                if name == "resumed":
                    _as_killed(folder / "whole", target)
                seen[name].append(_start(folder, target.name, prepared, 1))
                shutil.rmtree(target)
        read = [_read(saved) for _ in range(3)]
        _as_killed(folder / "whole", folder / "again")
        again = _start(folder, "again", prepared, None)
        equal = _losses(folder / "whole") == _losses(folder / "again")
    return _told(seen, read, equal=equal and whole["first"] == 1 and again["first"] == SAVED + 1)


def _told(
    seen: dict[str, list[dict[str, float]]], read: list[dict[str, float]], *, equal: bool
) -> dict[str, Any]:
    reading = {key: median(each[key] for each in read) for key in ("cpu", "wall")}
    ratios: dict[str, list[float]] = {"cpu": [], "wall": []}
    for cold, resumed in zip(seen["cold"], seen["resumed"], strict=True):
        for key, found in ratios.items():
            found.append(resumed[key] / (cold[key] + reading[key]))
    line: dict[str, Any] = {"losses_equal": equal}
    for key in ("cpu", "wall"):
        line[f"cold_{key}_s"] = round(median(each[key] for each in seen["cold"]), 2)
        line[f"resumed_{key}_s"] = round(median(each[key] for each in seen["resumed"]), 2)
        line[f"read_{key}_s"] = round(reading[key], 3)
    line |= {"lowest": round(min(ratios["cpu"]), 3), "highest": round(max(ratios["cpu"]), 3)}
    line["wall_ratio"] = round(median(ratios["wall"]), 3)
    value = round(median(ratios["cpu"]), 3)
    return {
        "id": "P11",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET and equal,
        "details": [line],
    }


def _as_killed(whole: Path, target: Path) -> None:
    """What a run leaves that was killed after its first checkpoint."""
    shutil.copytree(whole, target)
    stage = target / scene.STAGE
    shutil.rmtree(stage / "export")
    for folder in (stage / "checkpoints").glob("step-*"):
        if folder.name != f"step-{SAVED}":
            shutil.rmtree(folder)
    status = json.loads((stage / "status.json").read_bytes())
    status |= {"state": "running", "fingerprint": None, "finished": None}
    (stage / "status.json").write_text(json.dumps(status), encoding="utf-8")


def _start(folder: Path, name: str, prepared: Path, steps: int | None) -> dict[str, float]:
    """Two new processes; with ``steps`` they leave when so many are taken."""
    run = folder / name
    run.mkdir(exist_ok=True)
    now = scene.Now(SETUP.world, SETUP.stage)
    values = scene.recipe(prepared, run, SETUP, now)
    shape = {key: value for key, value in SHAPE.items() if key != "vocab_size"}
    values["stages"][scene.STAGE]["model"]["shape"] = shape
    (run / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    answers = [run / f"answer-{rank}.json" for rank in range(SETUP.world)]
    port = _free_port()
    with (run / "ranks.log").open("wb") as log:
        began = time()
        ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.resume_start", run, answer, str(steps)],
                env=scene.environment() | _of_rank(rank, port),
                cwd=scene.ROOT,
                stdout=log,
                stderr=log,
            )
            for rank, answer in enumerate(answers)
        ]
        codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise RuntimeError((run / "ranks.log").read_text(encoding="utf-8")[-4000:])
    found = [json.loads(answer.read_bytes()) for answer in answers]
    return {
        "cpu": sum(each["cpu"] for each in found),
        "wall": max(each["at"] for each in found) - began,
        "first": found[0]["first"],
    }


def _of_rank(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(SETUP.world),
        "LOCAL_SIZE": str(SETUP.world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _free_port() -> int:
    from launcher.ports import free_port

    return free_port("127.0.0.1")


def _losses(run: Path) -> list[tuple[int, float]]:
    path = run / scene.STAGE / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def _read(checkpoint: Path) -> dict[str, float]:
    """What two processes take to read the files' bytes, shared out between them."""
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    began, busy = perf_counter(), process_time()
    parts = [sum(len(path.read_bytes()) for path in files[rank::2]) for rank in range(2)]
    cpu, wall = process_time() - busy, perf_counter() - began
    assert sum(parts) > 0
    return {"cpu": cpu, "wall": wall / 2}


def on_rank(run: str, answer: str, steps: str) -> None:
    """The product's worker; notes when the first step is taken, and leaves then if asked to."""
    import engine.loop
    from launcher import worker

    taken = engine.loop.train_step
    noted: list[int] = []

    def first(run_: Any, step: int) -> Any:
        record = taken(run_, step)
        if not noted:
            noted.append(step)
            found = {"cpu": process_time(), "at": time(), "first": step + 1}
            Path(answer).write_text(json.dumps(found), encoding="utf-8")
            if steps != "None":
                os._exit(0)
        return record

    engine.loop.train_step = first
    worker.main([f"{run}/recipe.yaml", scene.STAGE, "--report_to", f"{run}/{scene.STAGE}/launch"])


if __name__ == "__main__":
    on_rank(*sys.argv[1:4])
