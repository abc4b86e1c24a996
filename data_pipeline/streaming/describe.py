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
        documents: what stands in it.
    """

    step: int
    rank: int
    index: int
    source: str
    epoch: int
    sample: int
    documents: tuple[Piece, ...]


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
    return [
        ReadRow(
            step=step,
            rank=rank,
            index=index,
            source=stream.sources[source],
            epoch=epoch,
            sample=sample,
            documents=tuple(stream.reader.sources[source].pieces(sample)),
        )
        for index, source, epoch, sample in zip(range(start, stop), *columns, strict=True)
    ]
