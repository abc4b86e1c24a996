"""Words that cost several tokens, counted exactly by their ids."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.example import WORD_START
from data_pipeline.shards import ShardedDataset

LONGEST = 16
"""Tokens. A longer word is hardly one; most are addresses and numbers."""
STRETCH_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some sequences of a corpus.

    Attributes:
        tokens: [T].
        annotations: uint8 [T].
        starts: int64 [sequences], first token of each.
    """

    tokens: NDArray[Any]
    annotations: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @property
    def words(self) -> NDArray[np.int64]:
        """Where words begin; a sequence begins with one."""
        begins = (self.annotations & WORD_START).astype(np.bool_)
        begins[self.starts] = True
        return np.flatnonzero(begins)


def stretches(
    data: ShardedDataset, most_tokens: int, size: int = STRETCH_TOKENS
) -> Iterator[Stretch]:
    """A corpus, or sequences from everywhere in it that hold about ``most_tokens``.

    Args:
        data: the corpus; DataError if its shards have no word starts.
        most_tokens: of all stretches.
        size: of one, in tokens; a sequence is not cut.
    """
    if not data.annotated:
        msg = f"{data.folder}: no word starts in these shards; prepare the corpus from its text"
        raise DataError(msg)
    share = min(1.0, most_tokens / data.manifest.tokens)
    kept = np.diff(np.floor(np.arange(len(data) + 1) * share)) > 0
    if not kept.any():
        kept[0] = True
    for number, shard in enumerate(data.shards):
        own = np.flatnonzero(kept[shard.first : shard.first + shard.record.sequences])
        lengths = shard.index.lengths[own].astype(np.int64)
        cuts = np.flatnonzero(np.diff((np.cumsum(lengths) - lengths) // size)) + 1
        for part in np.split(np.arange(len(own)), cuts):
            if not len(part):
                continue
            at = shard.index.starts[own[part]]
            yield Stretch(
                data.gather(number, at, lengths[part]),
                data.gather_annotations(number, at, lengths[part]),
                np.cumsum(lengths[part]) - lengths[part],
            )


def count_words(data: ShardedDataset, most_tokens: int) -> Counter[tuple[int, ...]]:
    """How often each word of 2 to ``LONGEST`` tokens occurs, by its ids."""
    found: Counter[bytes] = Counter()
    for stretch in stretches(data, most_tokens):
        begins = stretch.words
        sizes = np.diff(np.append(begins, len(stretch.tokens)))
        for size in range(2, LONGEST + 1):
            rows = stretch.tokens[begins[sizes == size][:, None] + np.arange(size)]
            for row, count in _counted(np.ascontiguousarray(rows, np.int32)):
                found[row] += count
    return Counter(
        {tuple(np.frombuffer(row, np.int32).tolist()): count for row, count in found.items()}
    )


def _counted(rows: NDArray[np.int32]) -> Iterator[tuple[bytes, int]]:
    """Each different row [n, size] as bytes, and how often it stands there."""
    if not len(rows):
        return
    known, counts = np.unique(rows.view(f"V{rows.strides[0]}").ravel(), return_counts=True)
    for row, count in zip(known, counts.tolist(), strict=True):
        yield row.tobytes(), count
