"""A data set cut into rows: how many each shard has is known at once, which ones when asked."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.packing import (
    Packer,
    PackingPlan,
    RowShape,
    SentencePairsPacking,
    ShardText,
    cached_plan,
)
from data_pipeline.packing.cache import cached_row_starts, keep_row_starts
from data_pipeline.packing.sentence_pairs import PackedShard, Pairs, draws
from data_pipeline.randomness import keyed
from data_pipeline.shards import ShardedDataset

OPEN_PLANS = 128
"""So many plans are held at once: one from the cache holds a map of its file."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch in a row, in tokens, from a sequence on; it may end in a later one."""

    sequence: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class DescribedRow:
    """What stands in a row.

    Attributes:
        shard: number of the shard that it lies in.
        pieces: in order.
        label: of a sentence pair, as in ``data_pipeline.packing.sentence_pairs``; else None.
    """

    shard: int
    pieces: tuple[Piece, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class PackedSource:
    """A data set cut into rows. Safe to ask from several threads.

    Attributes:
        data: the open shards.
        packing: which pieces share a row.
        shape: of a row.
        row_starts: int64 [shards + 1]: first row of each shard, then their total.
    """

    data: ShardedDataset
    packing: Packer
    shape: RowShape
    row_starts: NDArray[np.int64]
    _cache: Path | None
    _plans: "OrderedDict[int, PackingPlan]" = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def open(
        cls, data: ShardedDataset, packing: Packer, length: int, cache: Path | None
    ) -> "PackedSource":
        """Plan every shard, or look up in the cache how many rows each has.

        Raises:
            RecipeError: rows too short for the special tokens.
            DataError: a shard that cannot be packed so.
        """
        tokenizer = data.manifest.tokenizer
        before = len(tokenizer.prefix)
        shape = RowShape(length, before + len(tokenizer.suffix), before)
        starts = cached_row_starts(packing, shape, data.content, cache)
        if starts is not None and len(starts) == len(data.shards) + 1:
            return cls(data, packing, shape, starts, cache)
        made = cls(data, packing, shape, np.zeros(1, np.int64), cache)
        counts = [len(made.plan(number)) for number in range(len(data.shards))]
        starts = np.cumsum([0, *counts], dtype=np.int64)
        keep_row_starts(starts, packing, shape, data.content, cache)
        return cls(data, packing, shape, starts, cache, made._plans)

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.row_starts[-1])

    @property
    def digest63(self) -> int:
        """First 63 bits of the content digest: what randomness about its rows is keyed by."""
        return int(self.data.content[:16], 16) >> 1

    def plan(self, shard: int) -> PackingPlan:
        """The rows of a shard; a piece may run through several sequences of one document."""
        plan, index = self._by_document(shard), self.data.shards[shard].index
        if not index.sentences:
            return plan
        pieces = plan.pieces.copy()
        pieces[:, 0] = index.documents.take(pieces[:, 0])
        return PackingPlan(plan.offsets, pieces, plan.sentences)

    def _by_document(self, shard: int) -> PackingPlan:
        """The rows of a shard, with documents for sequences: what is packed are documents.

        Plans without a cache stay, as they are dear to make.
        """
        with self._lock:
            if shard in self._plans:
                self._plans.move_to_end(shard)
                return self._plans[shard]
        opened = self.data.shards[shard]
        text = ShardText(
            opened.index.by_document().lengths,
            partial(self.data.shard_annotations, shard),
            f"{self.data.folder}/{opened.record.name}",
        )
        plan = cached_plan(self.packing, text, self.shape, opened.digest, self._cache)
        with self._lock:
            self._plans[shard] = plan
            if self._cache is not None and len(self._plans) > OPEN_PLANS:
                self._plans.popitem(last=False)
        return plan

    def pairs(
        self,
        shard: int,
        rows: NDArray[np.int64],
        seed: int,
        samples: NDArray[np.int64],
        epochs: NDArray[np.int64],
    ) -> Pairs:
        """The parts of sentence pairs, drawn afresh in every epoch.

        Args:
            shard: its number.
            rows: int64 [n], in the plan of the shard.
            seed: of the run.
            samples: int64 [n], the rows' numbers in the source.
            epochs: int64 [n].
        """
        if not isinstance(self.packing, SentencePairsPacking):
            msg = f"packing {self.packing.identity} makes no pairs"
            raise TypeError(msg)
        whole = self.data.shards[shard].index.by_document()
        opened = PackedShard(self._by_document(shard), self.shape, whole.starts, whole.lengths)
        key = keyed(seed, "pairs", self.data.content)
        return self.packing.pairs(opened, rows, draws(key, samples, epochs))

    def describe(self, sample: int, epoch: int = 0, seed: int = 0) -> DescribedRow:
        """What stands in a row, in order; sequences are numbered through the data set.

        Epoch and seed matter to sentence pairs alone.
        """
        shard = int(np.searchsorted(self.row_starts, sample, "right")) - 1
        begin, index = self.data.shards[shard].first, self.data.shards[shard].index
        row = sample - int(self.row_starts[shard])
        if isinstance(self.packing, SentencePairsPacking):
            drawn = (np.array([each], np.int64) for each in (sample, epoch))
            pairs = self.pairs(shard, np.array([row]), seed, *drawn)
            there = pairs.lengths[0] > 0
            starts, lengths = pairs.starts[0][there], pairs.lengths[0][there]
            label = int(pairs.labels[0])
        else:
            plan, label = self.plan(shard), None
            pieces = plan.pieces[plan.offsets[row] : plan.offsets[row + 1]].astype(np.int64)
            starts, lengths = index.starts.take(pieces[:, 0]) + pieces[:, 1], pieces[:, 2]
        sequences = np.searchsorted(index.starts, starts, "right") - 1
        found = np.stack((sequences, starts - index.starts[sequences], lengths), axis=1)
        described = (Piece(begin + number, start, size) for number, start, size in found.tolist())
        return DescribedRow(shard, tuple(described), label)
