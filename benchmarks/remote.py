"""Shards in another place: the first pass by way of an empty local copy, against other loaders."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import numpy as np

from benchmarks import corpus
from benchmarks.peers.process import PeerProcess

TOKENS, ROUNDS, SEED = 24_000_000, 4, 9
ROWS_AT_ONCE = 512
PEERS = {"litdata": "lit_data.py", "mosaicml-streaming": "mosaic.py"}
ENVIRONMENTS = {"litdata": "litdata", "mosaicml-streaming": "mosaic"}


def measure() -> dict[str, Any]:
    """CPU time of everybody over ours, in one interleaved run; the worst is the value.

    The other place is another folder, so that no network is measured: ours reads it as a
    ``file://`` URL, checks sha256 and size of every file, packs and shuffles (a window of 2
    shards). The bound copies the file, hashes it and gathers rows of 512 tokens. Peers read rows
    of 512 made beforehand, shuffled by their own means; they check no digests by default.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        corpus.write(folder, "all", 0, TOKENS)
        tokens = _flat(folder)
        rivals = {name: _rival(name, tokens, folder) for name in PEERS}
        trials: dict[str, Callable[[int], tuple[int, float, float]]] = {
            "ours": lambda turn: _timed(lambda: _ours(folder, turn)),
            "copy, hash, gather": lambda turn: _timed(lambda: _bound(tokens, folder, turn)),
            **rivals,
        }
        seen: dict[str, list[tuple[int, float, float]]] = {name: [] for name in trials}
        for turn in range(ROUNDS):
            names = list(trials) if turn % 2 else list(trials)[::-1]
            for name in names:
                seen[name].append(trials[name](turn))
    details = [_line(name, runs, seen["ours"]) for name, runs in seen.items()]
    peers = [line["times_ours"] for line in details if line["loader"] in PEERS]
    return {
        "id": "remote",
        "value": min(peers),
        "target": 1.0,
        "reached": min(peers) >= 1.0,
        "details": details,
    }


def _line(name: str, runs: list[Any], ours: list[Any]) -> dict[str, Any]:
    per_token = [cpu / tokens for tokens, cpu, _ in runs]
    own = [cpu / tokens for tokens, cpu, _ in ours]
    ratios = [theirs / mine for theirs, mine in zip(per_token, own, strict=True)]
    return {
        "loader": name,
        "mtok_per_cpu_s": round(1e-6 / median(per_token), 1),
        "mtok_per_wall_s": round(median(tokens / wall for tokens, _, wall in runs) / 1e6, 1),
        "times_ours": round(median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }


def _timed(work: Callable[[], int]) -> tuple[int, float, float]:
    cpu, wall = process_time(), perf_counter()
    tokens = work()
    return tokens, process_time() - cpu, perf_counter() - wall


def _rival(name: str, tokens: Path, folder: Path) -> Callable[[int], tuple[int, float, float]]:
    process = PeerProcess(ENVIRONMENTS[name], PEERS[name])
    process.ask("write", tokens=str(tokens), folder=str(folder))

    def trial(turn: int) -> tuple[int, float, float]:
        rows = TOKENS // corpus.LENGTH
        answer = process.ask("read_remote", folder=str(folder), rows=rows, seed=turn)
        return answer.tokens, answer.cpu_s, answer.wall_s

    return trial


def _ours(folder: Path, turn: int) -> int:
    from data_pipeline.streaming import DataConfig, TokenStream

    with tempfile.TemporaryDirectory(dir=folder) as cache:
        config = DataConfig.model_validate(
            {
                "length": corpus.LENGTH,
                "sources": {"all": {"shards": f"file://{folder}/all"}},
                "shuffle": {"name": "window", "shards": 2},
                "verify": "sizes",
                "cache": {"folder": cache, "bytes": 1 << 30},
            }
        )
        stream = TokenStream.open(config, Path, turn)
        return sum(
            stream.examples(at, min(at + ROWS_AT_ONCE, stream.rows[0])).tokens.size
            for at in range(0, stream.rows[0], ROWS_AT_ONCE)
        )


def _bound(tokens: Path, folder: Path, turn: int) -> int:
    with tempfile.TemporaryDirectory(dir=folder) as local:
        copy = Path(local) / "tokens.bin"
        shutil.copyfile(tokens, copy)
        with copy.open("rb") as stream:
            hashlib.file_digest(stream, "sha256")
        rows = np.memmap(copy, "<u2", "r")
        rows = rows[: len(rows) // corpus.LENGTH * corpus.LENGTH].reshape(-1, corpus.LENGTH)
        order = np.random.default_rng(turn).permutation(len(rows))
        return sum(
            rows[order[at : at + ROWS_AT_ONCE]].size for at in range(0, len(order), ROWS_AT_ONCE)
        )


def _flat(folder: Path) -> Path:
    path = folder / "tokens.bin"
    with path.open("wb") as out:
        for part in sorted((folder / "all").glob("*.bin")):
            out.write(part.read_bytes())
    return path
