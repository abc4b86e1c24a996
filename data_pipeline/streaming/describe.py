"""What given steps read, and on which rank: the table behind ``onward order``."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.streaming.order import slice_of_step
from data_pipeline.streaming.packed import Piece
from data_pipeline.streaming.stream import TokenStream


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row that a step reads.

    Attributes:
        step: counted from 0.
        rank: that reads it.
        index: global index.
        source: name.
        epoch: of the source.
        sample: row number in the source.
        shard: of the source, that it lies in.
        documents: what stands in it.
        label: of a sentence pair: 1 consecutive, 0 not, -1 no pair; None: rows are no pairs.
    """

    step: int
    rank: int
    index: int
    source: str
    epoch: int
    sample: int
    shard: int
    documents: tuple[Piece, ...]
    label: int | None


def describe_steps(
    stream: TokenStream, steps: range, global_batch: int, world: int
) -> list[ReadRow]:
    """Every row of the steps (counted from 0), by step, rank and index; reads no token."""
    return [
        row
        for step in steps
        for rank in range(world)
        for row in _describe_slice(stream, step, rank, global_batch, world)
    ]


def _describe_slice(
    stream: TokenStream, step: int, rank: int, global_batch: int, world: int
) -> list[ReadRow]:
    start, stop = slice_of_step(step, global_batch, rank, world)
    picks = stream.order(np.arange(start, stop))
    columns = (column.tolist() for column in (picks.source, picks.epoch, picks.sample))
    described = []
    for index, source, epoch, sample in zip(range(start, stop), *columns, strict=True):
        row = stream.reader.sources[source].describe(sample, epoch, stream.order.seed)
        name = stream.sources[source]
        described.append(
            ReadRow(step, rank, index, name, epoch, sample, row.shard, row.pieces, row.label)
        )
    return described
