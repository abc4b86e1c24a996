"""Plans kept on disk by (shard digest, length, algorithm); any process can make one again."""

import hashlib
import logging
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.packing.plan import PackingPlan, RowShape

_log = logging.getLogger(__name__)


class Packer(Protocol):
    """What a packing algorithm offers."""

    @property
    def identity(self) -> str:
        """Its name, version and settings: the same identity gives the same plans."""
        ...

    def plan(self, lengths: NDArray[np.int32], shape: RowShape) -> PackingPlan:
        """Rows that hold every token of sequences of these lengths (int32 [N]) exactly once."""
        ...


def cached_plan(
    packing: Packer,
    lengths: NDArray[np.int32],
    shape: RowShape,
    digest: str,
    cache: Path | None,
) -> PackingPlan:
    """The plan of a shard, from the cache if it is there and undamaged, else made and kept.

    A cache that cannot be written to is logged, and no error.

    Args:
        packing: the algorithm.
        lengths: of the shard's sequences, int32 [N].
        shape: of a row.
        digest: of the shard.
        cache: folder of kept plans; None keeps none.
    """
    if cache is None:
        return packing.plan(lengths, shape)
    key = f"{digest} {shape.length} {shape.overhead} {packing.identity}"
    path = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    plan = _read(path)
    if plan is None:
        plan = packing.plan(lengths, shape)
        try:
            _keep(plan, path)
        except OSError as error:
            # Somebody else's run may be looked into; the plan is only made again next time.
            _log.warning("%s: the packing plan is not kept (%s)", path, error.strerror or error)
    return plan


def _read(path: Path) -> PackingPlan | None:
    """A kept plan; None when there is none, or its checksum (the zip format's own) is wrong."""
    try:
        if not path.exists():
            return None
        with path.open("rb") as stream, np.load(stream) as arrays:
            return PackingPlan(arrays["offsets"], arrays["pieces"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        _log.warning("%s: a packing plan that cannot be read (%s); made again", path, error)
        return None


def _keep(plan: PackingPlan, path: Path) -> None:
    """Write under a temporary name, then rename: a reader sees a whole plan or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".making-", dir=path.parent)
    making = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            np.savez(stream, offsets=plan.offsets, pieces=plan.pieces)
            stream.flush()
            os.fsync(stream.fileno())
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)
