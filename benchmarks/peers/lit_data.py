"""litdata: StreamingDataset with its TokensLoader."""

import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.streaming.writer import BinaryWriter
from serving import serve

LENGTH = 512
ROWS_AT_ONCE = 512


def write(tokens: str, folder: str) -> int:
    """Tokens in chunks of 64 MB, as ``optimize`` with a TokensLoader writes them."""
    import torch

    values = np.memmap(tokens, "<u2", "r")
    values = values[: len(values) // LENGTH * LENGTH]
    Path(folder, "litdata").mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(
        cache_dir=f"{folder}/litdata",
        chunk_size=LENGTH * 65536,
        chunk_bytes=None,
        item_loader=TokensLoader(LENGTH),
    )
    for number, at in enumerate(range(0, len(values), LENGTH * 64)):
        writer.add_item(number, torch.from_numpy(values[at : at + LENGTH * 64].astype(np.uint16)))
    writer.done()
    writer.merge()
    return len(values)


def _data(folder: str) -> StreamingDataset:
    return StreamingDataset(
        f"{folder}/litdata", item_loader=TokensLoader(LENGTH), shuffle=True, seed=7
    )


def read(folder: str, rows: int, seed: int) -> int:
    """Shuffled blocks of 512 tokens in this process."""
    data = _data(folder)
    data.set_epoch(seed)
    return sum(len(row) for row in islice(iter(data), rows))


def read_remote(folder: str, rows: int, seed: int) -> int:
    """The same from another place, by way of an empty local copy."""
    with tempfile.TemporaryDirectory(dir=folder) as local:
        data = StreamingDataset(
            f"local:{folder}/litdata",
            cache_dir=local,
            item_loader=TokensLoader(LENGTH),
            shuffle=True,
            seed=7,
        )
        data.set_epoch(seed)
        return sum(len(row) for row in islice(iter(data), rows))


def resume(folder: str, fraction: float) -> int:
    """Load the loader's state at a fraction of an epoch, then the first batch."""
    data = _data(folder)
    loader = StreamingDataLoader(data, batch_size=ROWS_AT_ONCE, num_workers=0)
    path = Path(folder) / f"litdata-state-{fraction}.json"
    if not path.exists():
        batches = iter(loader)
        for _ in range(int(fraction * len(data)) // ROWS_AT_ONCE):
            next(batches)
        path.write_text(json.dumps(loader.state_dict()), encoding="utf-8")
        return 0
    loader.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
    return int(next(iter(loader)).numel())


if __name__ == "__main__":
    serve({"write": write, "read": read, "read_remote": read_remote, "resume": resume})
