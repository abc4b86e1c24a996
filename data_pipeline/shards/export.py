"""The same tokens in a dtype that other readers understand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import RecipeError
from data_pipeline.disk import disk_errors
from data_pipeline.shards.layout import index_bytes
from data_pipeline.shards.manifest import FILE, Manifest, ShardRecord
from data_pipeline.shards.output import HashedOutput
from data_pipeline.shards.read import Shard, ShardedDataset

BLOCK_TOKENS = 1 << 22


def export_shards(folder: Path | str, out: Path, dtype: str) -> Manifest:
    """Write the ``.bin`` and ``.idx`` of a shard folder again, with int32 tokens.

    All digests of the folder are verified. The copies have a manifest of their own, and no
    annotations, which no other reader knows.

    Raises:
        RecipeError: another dtype, or ``out`` is not empty.
        DataError: damaged shards.
        ResourceError: the place cannot be written to.
    """
    if dtype != "int32":
        why = (
            "its code in the index is 8 to Megatron and its kin, but 6 to DeepSpeed, which reads "
            "code 8 as uint64, without an error"
            if dtype == "uint16"
            else "the readers of this format do not agree on it"
        )
        msg = f"--dtype {dtype}: {why}; expected int32, which all read alike"
        raise RecipeError(msg)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"{out}: not empty; give a new folder"
        raise RecipeError(msg)
    data = ShardedDataset.open(folder, verify="digests", mode="pread")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    manifest = data.manifest.model_copy(
        update={
            "dtype": dtype,
            "annotations": {},
            "shards": [_exported(data, number, out) for number in range(len(data.shards))],
            "provenance": {"exported": {"from": data.fingerprint, **data.manifest.provenance}},
        }
    ).signed()
    with HashedOutput(out / FILE) as output:
        output.write((manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


def _exported(data: ShardedDataset, number: int, out: Path) -> ShardRecord:
    shard = data.shards[number]
    index = shard.index
    with HashedOutput(out / f"{shard.record.name}.bin") as tokens:
        for block in _blocks(data, number, shard):
            tokens.write(block.astype("<i4").tobytes())
    with HashedOutput(out / f"{shard.record.name}.idx") as indices:
        indices.write(index_bytes(np.dtype("<i4"), index.lengths, index.documents))
    files = {".bin": tokens.record, ".idx": indices.record}
    return shard.record.model_copy(update={"files": files})


def _blocks(data: ShardedDataset, number: int, shard: Shard) -> Iterator[NDArray[Any]]:
    total = shard.record.tokens
    for start in range(0, total, BLOCK_TOKENS):
        length = min(BLOCK_TOKENS, total - start)
        yield data.gather(number, np.array([start]), np.array([length]))
