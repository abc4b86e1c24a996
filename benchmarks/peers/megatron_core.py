"""Megatron-core: IndexedDataset behind GPTDataset, its shuffled index kept on disk."""

from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from megatron.core.datasets.utils import Split
from serving import serve

LENGTH = 512
ROWS_AT_ONCE = 512


class _Tokenizer:
    """The two things that GPTDataset asks of one."""

    unique_identifiers = {"class": "none"}  # noqa: RUF012
    eod = 0
    pad = 0
    vocab_size = 50_000


def write(tokens: str, lengths: str, folder: str) -> int:
    """Documents into one .bin and .idx."""
    values = np.memmap(tokens, "<u2", "r")
    Path(folder, "megatron").mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{folder}/megatron/all.bin", dtype=np.uint16)
    at = 0
    for length in np.load(lengths).tolist():
        builder.add_document(torch.from_numpy(values[at : at + length].astype(np.int32)), [length])
        at += length
    builder.finalize(f"{folder}/megatron/all.idx")
    return at


def _data(folder: str, seed: int) -> GPTDataset:
    indexed = IndexedDataset(f"{folder}/megatron/all", mmap=True)
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=LENGTH,
        blend=([f"{folder}/megatron/all"], None),
        split="1,0,0",
        path_to_cache=f"{folder}/megatron/cache",
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mmap_bin_files=True,
    )
    documents = np.arange(len(indexed.document_indices) - 1, dtype=np.int32)
    return GPTDataset(indexed, f"{folder}/megatron/all", documents, None, Split.train, config)


def read(folder: str, rows: int, seed: int) -> int:
    """GPTDataset's samples, in the order of its shuffled index."""
    del seed  # one index, kept: making another is measured by ``resume`` alone
    data = _data(folder, 7)
    return sum(len(data[at]["tokens"]) for at in range(min(rows, len(data))))


def read_documents(folder: str, rows: int, seed: int) -> int:
    """IndexedDataset alone, by shuffled documents."""
    data = IndexedDataset(f"{folder}/megatron/all", mmap=True)
    order = np.random.default_rng(seed).permutation(len(data))
    total = 0
    for at in order.tolist():
        total += len(data[at])
        if total >= rows * LENGTH:
            break
    return total


def resume(folder: str, fraction: float) -> int:
    """Open with the kept index, then the first batch at a fraction of an epoch."""
    data = _data(folder, 7)
    first = int(fraction * len(data))
    last = min(first + ROWS_AT_ONCE, len(data))
    return sum(len(data[at]["tokens"]) for at in range(first, last))


if __name__ == "__main__":
    serve({"write": write, "read": read, "read_documents": read_documents, "resume": resume})
