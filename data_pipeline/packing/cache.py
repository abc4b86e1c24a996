"""Plans kept on disk by (shard digest, length, algorithm); any process can make one again."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_pipeline.packing.packer import Packer
from data_pipeline.packing.plan import PackingPlan, RowShape, ShardText

_log = logging.getLogger(__name__)
_MAGIC = b"onward-plan-2\n"
_ALIGNED = 64


def cached_plan(
    packing: Packer, text: ShardText, shape: RowShape, digest: str, cache: Path | None
) -> PackingPlan:
    """The plan of a shard, from the cache if it is there and undamaged, else made and kept.

    A kept plan is memory-mapped. A cache that cannot be written to is logged, and no error.

    Args:
        packing: the algorithm.
        text: of the shard.
        shape: of a row.
        digest: of the shard.
        cache: folder of kept plans; None keeps none.
    """
    if cache is None:
        return packing.plan(text, shape)
    path = cache / f"{_key(packing, shape, digest)}.plan"
    kept = read_arrays(path)
    if kept is not None:
        return PackingPlan(kept["offsets"], kept["pieces"], kept["sentences"])
    plan = packing.plan(text, shape)
    arrays: dict[str, NDArray[Any]] = {
        "offsets": plan.offsets,
        "pieces": plan.pieces,
        "sentences": plan.sentences,
    }
    keep_arrays(arrays, path)
    return plan


def cached_row_starts(
    packing: Packer, shape: RowShape, digest: str, cache: Path | None
) -> NDArray[np.int64] | None:
    """First row of each shard of a data set, then their total; None if that is not kept.

    With it a data set is opened without a look at its shards' plans.
    """
    kept = None if cache is None else read_arrays(_rows_path(packing, shape, digest, cache))
    return None if kept is None else kept["row_starts"]


def keep_row_starts(
    row_starts: NDArray[np.int64],
    packing: Packer,
    shape: RowShape,
    digest: str,
    cache: Path | None,
) -> None:
    """Keep what ``cached_row_starts`` gives back; ``digest`` is the data set's."""
    if cache is not None:
        keep_arrays({"row_starts": row_starts}, _rows_path(packing, shape, digest, cache))


def _rows_path(packing: Packer, shape: RowShape, digest: str, cache: Path) -> Path:
    return cache / f"{_key(packing, shape, digest)}.rows"


def _key(packing: Packer, shape: RowShape, digest: str) -> str:
    told = f"{digest} {shape.length} {shape.overhead} {shape.before} {packing.identity}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def read_arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Kept arrays, memory-mapped; None when there are none, or their checksum is wrong."""
    try:
        if not path.exists():
            return None
        content = np.memmap(path, np.uint8, "r")
        return _unpacked(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        _log.warning("%s: a packing plan that cannot be read (%s); made again", path, error)
        return None


def _unpacked(content: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The arrays of a file: magic, digest of all that follows, header line, aligned arrays."""
    begin = len(_MAGIC) + 17
    lead = content[:begin].tobytes()
    if lead[: len(_MAGIC)] != _MAGIC:
        msg = "not of this format"
        raise ValueError(msg)
    rest = content[begin:]
    if xxhash.xxh3_64_hexdigest(rest.data) != lead[len(_MAGIC) : -1].decode("ascii"):
        msg = "its checksum is wrong"
        raise ValueError(msg)
    header = json.loads(rest[: _ALIGNED * 16].tobytes().partition(b"\n")[0])
    if any(np.dtype(dtype).kind not in "biuf" for _, dtype, *_ in header):
        msg = "an array that is not of numbers"
        raise ValueError(msg)
    return {
        name: content[start : start + size].view(dtype).reshape(shape)
        for name, dtype, shape, start, size in header
    }


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    first = _ALIGNED * 16
    header, parts, start = [], [], first
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        header.append([name, array.dtype.str, array.shape, start, len(raw)])
        parts.append(raw.ljust(-(-len(raw) // _ALIGNED) * _ALIGNED, b"\0"))
        start += len(parts[-1])
    begin = len(_MAGIC) + 17
    rest = b"".join([(json.dumps(header) + "\n").encode().ljust(first - begin, b" "), *parts])
    return b"%s%s\n%s" % (_MAGIC, xxhash.xxh3_64_hexdigest(rest).encode(), rest)


def keep_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write under a temporary name, then rename: a reader sees a whole file or none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With the umask's mode: others who share the cache may read it, as far as that lets them.
        making = path.with_name(f".making-{secrets.token_hex(8)}")
        try:
            with making.open("xb") as stream:
                stream.write(_packed(arrays))
                stream.flush()
                os.fsync(stream.fileno())
            making.replace(path)
        finally:
            making.unlink(missing_ok=True)
    except OSError as error:
        # Somebody else's run may be looked into; the plan is only made again next time.
        _log.warning("%s: the packing plan is not kept (%s)", path, error.strerror or error)
