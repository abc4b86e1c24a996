"""P9: a synchronous checkpoint against raw writes of the same bytes and fsync, two ranks."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

from benchmarks.checkpoint_model import backend, trials

PAIRS, TARGET = 12, 1.15
FOLDER = "ONWARD_BENCHMARK_FOLDER"
"""Environment variable: where the checkpoints go; without it, the folder for temporary files."""


def measure() -> dict[str, Any]:
    """Wall time of a save over that of the raw writes beside it, A B B A; median of the pairs.

    Both begin when both ranks are there and end when both are done. The save verifies nothing, as
    a save does; it digests what it writes, gathers the index, seals it and renames the folder. The
    raw side writes each rank's values from the same memory into one file and syncs it.
    """
    with tempfile.TemporaryDirectory(dir=os.environ.get(FOLDER)) as place:
        answer = Path(place) / "answer.json"
        arguments = {"folder": place, "pairs": PAIRS, "answer": str(answer)}
        trials("benchmarks.checkpoint_save:on_rank", arguments, Path(place))
        found: dict[str, Any] = json.loads(answer.read_bytes())
    ours, raw = found["save"], found["raw"]
    ratios = sorted(a["wall"] / b["wall"] for a, b in zip(ours, raw, strict=True))
    value = round(median(ratios), 3)
    line = {
        "megabytes": round(found["bytes"] / 1e6),
        "save_s": round(median(each["wall"] for each in ours), 3),
        "raw_s": round(median(each["wall"] for each in raw), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "save_cpu_s": round(median(each["cpu"] for each in ours), 3),
        "raw_cpu_s": round(median(each["cpu"] for each in raw), 3),
    }
    return {
        "id": "P9",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET,
        "details": [line],
    }


def on_rank(folder: str, pairs: int, answer: str) -> None:
    """All trials, on one rank; rank 0 leaves the answer."""
    from engine import distributed
    from engine.checkpoint import save
    from engine.protocols import Progress

    seen: dict[str, list[dict[str, float]]] = {"save": [], "raw": []}
    with backend() as (made, _):
        size = sum(f.tensor.numel() * f.tensor.element_size() for f in made.fragments())
        root, raw = Path(folder) / "checkpoints", Path(folder) / "raw"

        def ours() -> None:
            save(root, Progress(1), made, {}, "benchmark")

        def theirs() -> None:
            _write_raw(raw / str(made.rank), made)

        for turn in range(-1, pairs):
            order = [("save", ours), ("raw", theirs)]
            for name, action in order if turn % 2 else order[::-1]:
                raw.mkdir(exist_ok=True)
                found = _timed(action)
                # The first turn warms the file system's caches up.
                if turn >= 0:
                    seen[name].append(found)
                distributed.barrier()
                if made.rank == 0:
                    shutil.rmtree(root, ignore_errors=True)
                    shutil.rmtree(raw, ignore_errors=True)
                distributed.barrier()
        total = sum(distributed.all_gather_object(size))
        if made.rank == 0:
            Path(answer).write_text(json.dumps(seen | {"bytes": total}), encoding="utf-8")


def _timed(action: Callable[[], None]) -> dict[str, float]:
    """Wall time until both ranks are done, and the CPU time of both."""
    from engine import distributed

    distributed.barrier()
    began, busy = perf_counter(), process_time()
    action()
    busy = process_time() - busy
    distributed.barrier()
    wall = perf_counter() - began
    return {"wall": wall, "cpu": sum(distributed.all_gather_object(busy))}


def _write_raw(path: Path, source: Any) -> None:
    with path.open("wb", buffering=0) as file:
        for fragment in source.fragments():
            rest = memoryview(fragment.tensor.detach().numpy()).cast("B")
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    handle = os.open(path.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
