"""D1: shuffled, mixed and packed rows of 512 tokens against a plain gather from a memory map."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import corpus
from benchmarks.peers.process import PeerProcess

if TYPE_CHECKING:
    from data_pipeline.streaming import TokenStream

TOKENS = {"domain": 48_000_000, "general": 12_000_000}
WEIGHTS = {"domain": 0.8, "general": 0.2}
MEANS = {130: 4.37, 400: 5.49}
"""Tokens a document on average, and the mean of their logarithms; these have deviation 1."""
BATCH, BATCHES, ROUNDS, SEED = 1024, 48, 7, 3
TARGET = 0.5
PEER_ROWS = 10_000
PEERS = {
    "megatron IndexedDataset": ("megatron", "megatron_core.py", "read_documents"),
    "megatron GPTDataset": ("megatron", "megatron_core.py", "read"),
    "litdata TokensLoader": ("litdata", "lit_data.py", "read"),
    "datasets, Arrow map-style": ("datasets", "hf_datasets.py", "read"),
    "datasets, iterable": ("datasets", "hf_datasets.py", "read_iterable"),
    "mosaicml-streaming py1e": ("mosaic", "mosaic.py", "read"),
}
"""Environment, script and trial of each."""


def measure() -> dict[str, Any]:
    """Tokens a CPU second of ours over those of the gather; the worst without annotations counts.

    The bound holds the same tokens as rows that lie ready in one file, and takes 1024 of them by
    shuffled numbers: no mixture, no packing, no special tokens, no order to find. What is read is
    in memory for both. With annotations, the bound takes them from a second file.
    """
    details = []
    for mean, mean_log in MEANS.items():
        with tempfile.TemporaryDirectory() as place:
            details += _corpus(Path(place), mean, mean_log)
            if mean == max(MEANS):
                rivals = _rivals(Path(place))
    value = min(line["ratio"] for line in details if not line["annotations"])
    return {
        "id": "D1",
        "value": value,
        "target": TARGET,
        "reached": value >= TARGET,
        "details": [*details, *rivals],
    }


def _corpus(folder: Path, mean: int, mean_log: float) -> list[dict[str, Any]]:
    from data_pipeline.streaming import TokenStream

    for seed, (name, tokens) in enumerate(TOKENS.items()):
        corpus.write(folder, name, seed, tokens, mean_log)
    config = corpus.mixture(folder, WEIGHTS, verify="sizes")
    stream = TokenStream.open(config, Path, SEED, folder / "plans")
    return [_compared(folder, stream, mean, asked) for asked in (False, True)]


def _compared(folder: Path, stream: "TokenStream", mean: int, asked: bool) -> dict[str, Any]:  # noqa: FBT001
    """A B B A, after one turn of each that counts for nothing: it maps the pages."""
    ours, bound = _ours(stream, annotations=asked), _bound(folder, annotations=asked)
    for _ in range(4):
        ours(), bound()
    seen: dict[Callable[[], float], list[float]] = {ours: [], bound: []}
    for turn in range(ROUNDS):
        for who in (ours, bound, bound, ours) if turn % 2 else (bound, ours, ours, bound):
            seen[who].append(who())
    ratios = [b / a for a, b in zip(seen[ours], seen[bound], strict=True)]
    million = BATCHES * BATCH * corpus.LENGTH / 1e6
    return {
        "mean_document": mean,
        "annotations": asked,
        "ours_mtok_per_s": round(million / median(seen[ours])),
        "memmap_mtok_per_s": round(million / median(seen[bound])),
        "ratio": round(median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }


def _rivals(folder: Path) -> list[dict[str, Any]]:
    """Other loaders on the same tokens, in turn with ours and the bound; one source, no packing.

    Those that are not installed are told as such.
    """
    from data_pipeline.streaming import TokenStream

    config = corpus.mixture(folder, WEIGHTS, verify="sizes")
    stream = TokenStream.open(config, Path, SEED, folder / "plans")
    million = BATCHES * BATCH * corpus.LENGTH / 1e6
    ours, bound = _ours(stream, annotations=False), _bound(folder, annotations=False)
    trials: dict[str, Callable[[int], float]] = {
        "memmap gather": lambda _: million / bound(),
        "ours": lambda _: million / ours(),
    }
    absent = []
    for name, (environment, script, do) in PEERS.items():
        try:
            process = PeerProcess(environment, script)
        except FileNotFoundError as error:
            absent.append({"loader": name, "absent": str(error)})
            continue
        trials[name] = _rival(process, do, folder)
    seen: dict[str, list[float]] = {name: [] for name in trials}
    for turn in range(ROUNDS):
        for name in list(trials) if turn % 2 else list(trials)[::-1]:
            seen[name].append(trials[name](turn))
    lines = [
        {
            "loader": name,
            "mtok_per_s": round(median(speeds), 1),
            "ratio": round(
                median(a / b for a, b in zip(speeds, seen["memmap gather"], strict=True)), 4
            ),
        }
        for name, speeds in seen.items()
    ]
    return [*lines, *absent]


def _rival(process: PeerProcess, do: str, folder: Path) -> Callable[[int], float]:
    made = {"tokens": str(folder / "joined.bin"), "folder": str(folder)}
    if process.script == "megatron_core.py":
        made["lengths"] = str(_lengths(folder))
    process.ask("write", **made)
    process.ask(do, folder=str(folder), rows=PEER_ROWS, seed=0)
    return lambda turn: (
        process.ask(do, folder=str(folder), rows=PEER_ROWS, seed=turn).mtok_per_cpu_s
    )


def _lengths(folder: Path) -> Path:
    """Of all documents, in the order of the joined file."""
    from data_pipeline.shards import ShardedDataset

    path = folder / "lengths.npy"
    np.save(path, np.concatenate([ShardedDataset.open(folder / name).lengths for name in TOKENS]))
    return path


def _ours(stream: "TokenStream", *, annotations: bool) -> Callable[[], float]:
    """CPU seconds of the next batches, through as many epochs as it takes."""
    at = 0

    def read() -> float:
        nonlocal at
        begun = process_time()
        for _ in range(BATCHES):
            rows = stream.examples(at, at + BATCH)
            if annotations:
                rows.annotations  # noqa: B018
            at += BATCH
        return process_time() - begun

    return read


def _bound(folder: Path, *, annotations: bool) -> Callable[[], float]:
    """CPU seconds of taking as many rows by shuffled numbers from a memory map."""
    maps = [_joined(folder, ".bin", np.dtype("<u2"))]
    if annotations:
        maps.append(_joined(folder, ".ann", np.dtype(np.uint8)))
    order = np.random.default_rng(SEED).permutation(len(maps[0]))
    at = 0

    def read() -> float:
        nonlocal at
        begun = process_time()
        for _ in range(BATCHES):
            chosen = order[at : at + BATCH]
            for each in maps:
                each[chosen]
            at = (at + BATCH) % (len(order) - BATCH)
        return process_time() - begun

    return read


def _joined(folder: Path, suffix: str, dtype: np.dtype[Any]) -> Any:
    """All shards' files as one, mapped: [rows, length]."""
    path = folder / f"joined{suffix}"
    if not path.exists():
        with path.open("wb") as stream:
            for name in TOKENS:
                for part in sorted((folder / name).glob(f"*{suffix}")):
                    stream.write(part.read_bytes())
    mapped = np.memmap(path, dtype, "r")
    return mapped[: len(mapped) // corpus.LENGTH * corpus.LENGTH].reshape(-1, corpus.LENGTH)
