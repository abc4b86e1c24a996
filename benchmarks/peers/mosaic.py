"""mosaicml-streaming: MDS shards, shuffled by py1e."""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from itertools import islice
from types import ModuleType

import numpy as np
from serving import serve

LENGTH = 512
ROWS_AT_ONCE = 512


def _without_vision() -> None:
    """Its vision part asks for torchvision, which has no build beside a CPU-only torch."""
    for name, members in {
        "torchvision": (),
        "torchvision.datasets": ("VisionDataset",),
        "torchvision.transforms": (),
        "torchvision.transforms.functional": ("to_tensor",),
    }.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module


_without_vision()
from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def write(tokens: str, folder: str) -> int:
    """Samples of 512 uint16 as MDS shards."""
    rows = np.memmap(tokens, "<u2", "r")
    rows = rows[: len(rows) // LENGTH * LENGTH].reshape(-1, LENGTH)
    columns = {"tokens": f"ndarray:uint16:{LENGTH}"}
    with MDSWriter(out=f"{folder}/mds", columns=columns) as writer:
        for row in rows:
            writer.write({"tokens": np.ascontiguousarray(row)})
    return rows.size


def _data(folder: str, seed: int) -> StreamingDataset:
    clean_stale_shared_memory()
    return StreamingDataset(
        local=f"{folder}/mds",
        shuffle=True,
        shuffle_algo="py1e",
        shuffle_seed=seed,
        batch_size=ROWS_AT_ONCE,
        num_canonical_nodes=1,
    )


def read(folder: str, rows: int, seed: int) -> int:
    """Shuffled samples in this process."""
    return sum(len(row["tokens"]) for row in islice(iter(_data(folder, seed)), rows))


def read_remote(folder: str, rows: int, seed: int) -> int:
    """The same from another place, by way of an empty local copy."""
    clean_stale_shared_memory()
    with tempfile.TemporaryDirectory(dir=folder) as local:
        data = StreamingDataset(
            remote=f"{folder}/mds",
            local=f"{local}/mds",
            shuffle=True,
            shuffle_algo="py1e",
            shuffle_seed=seed,
            batch_size=ROWS_AT_ONCE,
            num_canonical_nodes=1,
        )
        return sum(len(row["tokens"]) for row in islice(iter(data), rows))


def resume(folder: str, fraction: float) -> int:
    """Load the state at a fraction of an epoch, then the first batch."""
    data = _data(folder, 1)
    seen = int(fraction * data.num_samples) // ROWS_AT_ONCE * ROWS_AT_ONCE
    state = data.state_dict(seen, from_beginning=True)
    data.load_state_dict(state)
    return sum(len(row["tokens"]) for row in islice(iter(data), ROWS_AT_ONCE))


if __name__ == "__main__":
    serve({"write": write, "read": read, "read_remote": read_remote, "resume": resume})
