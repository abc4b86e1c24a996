"""Hugging Face datasets: Arrow files, map-style and iterable."""

import sys
from itertools import islice
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Sequence, Value, load_from_disk
from serving import serve

LENGTH = 512
ROWS_AT_ONCE = 512


def write(tokens: str, folder: str) -> int:
    """Rows of 512 tokens as an Arrow data set."""
    rows = np.memmap(tokens, "<u2", "r")
    rows = rows[: len(rows) // LENGTH * LENGTH].reshape(-1, LENGTH)
    features = Features({"tokens": Sequence(Value("uint16"), length=LENGTH)})

    def chunks():  # type: ignore[no-untyped-def]
        for row in rows:
            yield {"tokens": row}

    Dataset.from_generator(
        chunks, features=features, cache_dir=f"{folder}/cache", writer_batch_size=4096
    ).save_to_disk(f"{folder}/arrow")
    return rows.size


def read(folder: str, rows: int, seed: int) -> int:
    """Map-style, shuffled indices, numpy format."""
    data = load_from_disk(f"{folder}/arrow").with_format("numpy")
    order = np.random.default_rng(seed).permutation(len(data))[:rows]
    total = 0
    for at in range(0, len(order), ROWS_AT_ONCE):
        total += np.stack(data[order[at : at + ROWS_AT_ONCE]]["tokens"]).size
    return total


def read_iterable(folder: str, rows: int, seed: int) -> int:
    """IterableDataset with a shuffle buffer of 10,000 rows."""
    data = load_from_disk(f"{folder}/arrow").with_format("numpy").to_iterable_dataset(num_shards=8)
    total = 0
    for row in islice(data.shuffle(seed=seed, buffer_size=10_000), rows):
        total += len(row["tokens"])
    return total


def resume(folder: str, fraction: float) -> int:
    """IterableDataset.load_state_dict at a fraction of an epoch, then the first batch."""
    data = load_from_disk(f"{folder}/arrow").with_format("numpy").to_iterable_dataset(num_shards=8)
    data = data.shuffle(seed=1, buffer_size=10_000)
    path = Path(folder) / f"state-{fraction}.npy"
    if not path.exists():
        rows = iter(data)
        for _ in range(int(fraction * _rows(folder))):
            next(rows)
        np.save(path, np.array([data.state_dict()], object), allow_pickle=True)
        return 0
    data.load_state_dict(np.load(path, allow_pickle=True)[0])
    return sum(len(row["tokens"]) for row in islice(data, ROWS_AT_ONCE))


def _rows(folder: str) -> int:
    return len(load_from_disk(f"{folder}/arrow"))


if __name__ == "__main__":
    sys.setswitchinterval(0.005)
    serve({"write": write, "read": read, "read_iterable": read_iterable, "resume": resume})
