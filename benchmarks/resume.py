"""D3: the first batch after a resume, at any depth of an epoch and for any number of ranks."""

import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks.environments import python_of
from benchmarks.peers.process import PeerProcess

TOKENS = {"general": 48_000_000, "domain": 12_000_000}
SHARD_TOKENS = 8_000_000
LENGTH, GLOBAL_BATCH, SEED = 512, 512, 11
DEPTHS = (0.01, 0.5, 0.9)
WORLDS = (1, 2, 8, 32)
PEERS = {
    "datasets iterable": ("datasets", "hf_datasets.py"),
    "litdata": ("litdata", "lit_data.py"),
    "mosaicml-streaming": ("mosaic", "mosaic.py"),
    "megatron GPTDataset": ("megatron", "megatron_core.py"),
}
REPEATS = 3
TARGET_MS = 50.0


def measure() -> dict[str, Any]:
    """Open the shards, take up a cursor, read the first batch of a rank; its worst wall time.

    Two sources mixed 4 to 1, packed by best fit, shuffled whole. Plans of rows are in the cache,
    as they are after a first run. Each trial is a process of its own that has imported all it
    needs. Every row of the epoch is counted: those before the cursor and those after it, by all
    ranks. Peers resume at the same depths on the same tokens, one source, without packing.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, name in enumerate(TOKENS):
            _write(folder / name, name, number)
        planned = _trial(folder, 0.5, 1)["ms"]
        # One world after another, so that a slow minute falls on all depths alike.
        details = [
            _repeated(folder, depth, world) | {"with planning_ms": planned}
            for world, depth in product(WORLDS, DEPTHS)
        ]
        rivals = _rivals(folder)
    value = max(line["ms"] for line in details)
    exact = all(line["exact"] for line in details)
    return {
        "id": "D3",
        "value": f"{value} ms, {'exact' if exact else 'NOT exact'}",
        "target": f"{TARGET_MS} ms, exact",
        "reached": value <= TARGET_MS and exact,
        "details": [*details, *rivals],
    }


def _write(folder: Path, name: str, number: int) -> None:
    """A source of documents as long as real ones."""
    from data_pipeline.shards import ShardWriter, TokenizerRecord

    rng = np.random.default_rng(number)
    record = TokenizerRecord(
        name="random",
        sha256="a" * 64,
        vocabulary_size=50_000,
        special={"pad": 0, "cls": 1, "sep": 2, "mask": 3},
        prefix=[1],
        suffix=[2],
    )
    left = TOKENS[name]
    with ShardWriter(folder, record, SHARD_TOKENS) as writer:
        while left > 0:
            lengths = np.maximum(1, rng.lognormal(5.5, 1, 5000)).astype(np.int32)
            tokens = rng.integers(5, 50_000, lengths.sum(), np.uint16)
            writer.write(tokens, lengths, np.ones(len(tokens), np.uint8))
            left -= len(tokens)
        writer.finish({})


def _repeated(folder: Path, depth: float, world: int) -> dict[str, Any]:
    trials = [_trial(folder, depth, world) for _ in range(REPEATS)]
    return trials[0] | {
        "ms": round(median(trial["ms"] for trial in trials), 1),
        "cpu_ms": round(median(trial["cpu_ms"] for trial in trials), 1),
        "exact": all(trial["exact"] for trial in trials),
    }


def _trial(folder: Path, depth: float, world: int) -> dict[str, Any]:
    asked = json.dumps({"folder": str(folder), "depth": depth, "world": world})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.resume", asked],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def resume(folder: Path, depth: float, world: int) -> dict[str, Any]:
    """One trial, in this process."""
    from data_pipeline.streaming import Cursor, DataConfig, TokenStream, slice_of_step

    sources = {
        name: {"shards": str(folder / name), "weight": weight}
        for name, weight in zip(TOKENS, (4, 1), strict=True)
    }
    config = DataConfig.model_validate({"length": LENGTH, "sources": sources})

    def open_stream() -> TokenStream:
        return TokenStream.open(config, Path, SEED, folder / "plans")

    path = folder / f"cursor-{depth}.json"
    if not path.exists():
        saved = open_stream()
        steps = int(depth * sum(saved.rows)) // GLOBAL_BATCH
        path.write_text(json.dumps(saved.cursor(steps * GLOBAL_BATCH).to_json()), encoding="utf-8")
        for trial in folder.glob("plans/*"):
            trial.unlink()
    rank = world // 2
    began, busy = perf_counter(), process_time()
    stream = open_stream()
    index = stream.resume(Cursor.from_json(json.loads(path.read_text(encoding="utf-8"))))
    rows = stream.examples(*slice_of_step(index // GLOBAL_BATCH, GLOBAL_BATCH, rank, world))
    taken, busy = perf_counter() - began, process_time() - busy
    return {
        "of the epoch": depth,
        "world": world,
        "ms": round(1000 * taken, 1),
        "cpu_ms": round(1000 * busy, 1),
        "rows": len(rows),
        "exact": _is_exact(stream, index, world) and _is_same(rows, open_stream(), index, world),
    }


def _is_exact(stream: Any, index: int, world: int) -> bool:
    """Whether one rank before the cursor and ``world`` after it read every row once an epoch."""
    from data_pipeline.streaming import slice_of_step

    steps = sum(stream.rows) // GLOBAL_BATCH + 1
    shares = [
        slice_of_step(step, GLOBAL_BATCH, rank, world)
        for step in range(index // GLOBAL_BATCH, steps)
        for rank in range(world)
    ]
    parts = [stream.order(np.arange(*share)) for share in ((0, index), *shares)]
    source, epoch, sample = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("source", "epoch", "sample")
    )
    for number, size in enumerate(stream.rows):
        own = source == number
        count = np.bincount(epoch[own] * size + sample[own])
        # One pass after another: what has been begun is read to its end before the next begins.
        whole = own.sum() // size * size
        if count.max() > 1 or not (count[:whole] == 1).all():
            return False
    return True


def _is_same(rows: Any, stream: Any, index: int, world: int) -> bool:
    """Whether the rows are those that one rank would have read there, token by token."""
    from data_pipeline.streaming import slice_of_step

    start, stop = slice_of_step(index // GLOBAL_BATCH, GLOBAL_BATCH, world // 2, world)
    whole = stream.examples(index, index + GLOBAL_BATCH)
    expected = np.asarray(whole.tokens)[start - index : stop - index]
    return np.array_equal(np.asarray(rows.tokens), expected)


def _rivals(folder: Path) -> list[dict[str, Any]]:
    """The peers that are there, each in a process of its own; others are named as not there."""
    from data_pipeline.shards import ShardedDataset

    data = ShardedDataset.open(folder / "domain")
    tokens = folder / "tokens.bin"
    np.concatenate([data.shard_tokens(at) for at in range(len(data.shards))]).tofile(tokens)
    np.save(folder / "lengths.npy", data.lengths)
    details = []
    for name, (environment, script) in PEERS.items():
        if python_of(environment) is None:
            details.append({"peer": name, "ms": "not installed: python -m benchmarks peers"})
            continue
        files = {"tokens": str(tokens), "folder": str(folder)}
        if environment == "megatron":
            files["lengths"] = str(folder / "lengths.npy")
        try:
            with PeerProcess(environment, script) as peer:
                peer.ask("write", **files)
                for depth in DEPTHS:
                    # The first time makes what a run would have left: a state, an index.
                    peer.ask("resume", folder=str(folder), fraction=depth)
            for depth in DEPTHS:
                with PeerProcess(environment, script) as peer:
                    answer = peer.ask("resume", folder=str(folder), fraction=depth)
                ms = round(1000 * answer.wall_s, 1)
                details.append({"peer": name, "of the epoch": depth, "ms": ms})
        except (RuntimeError, OSError) as error:
            details.append({"peer": name, "ms": f"failed: {str(error).splitlines()[-1][:120]}"})
    return details


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    # What a training process has imported long before its first batch.
    import pyarrow.compute  # noqa: F401

    import data_pipeline.packing
    import data_pipeline.streaming  # noqa: F401

    print(json.dumps(resume(Path(given["folder"]), given["depth"], given["world"])))
