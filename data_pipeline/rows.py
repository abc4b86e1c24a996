"""Rows as arrays: what a batch is before it is one, with everything else made when it is asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, Self, overload

import numpy as np
from numpy.typing import NDArray

from data_pipeline.example import Example, ExampleKey


@dataclass(frozen=True, slots=True, eq=False)
class RowKeys:
    """``ExampleKey`` of many rows: int64 [n] each."""

    source: NDArray[np.int64]
    digest: NDArray[np.int64]
    sample: NDArray[np.int64]
    epoch: NDArray[np.int64]

    @classmethod
    def of(cls, keys: Sequence[ExampleKey]) -> "RowKeys":
        """The keys of examples."""
        names = ("source", "digest", "sample", "epoch")
        return cls(*(np.array([getattr(key, name) for key in keys], np.int64) for name in names))

    def __getitem__(self, part: slice) -> "RowKeys":
        return RowKeys(self.source[part], self.digest[part], self.sample[part], self.epoch[part])

    def key(self, row: int) -> ExampleKey:
        """The key of one row."""
        return ExampleKey(
            int(self.source[row]),
            int(self.digest[row]),
            int(self.sample[row]),
            int(self.epoch[row]),
        )


class Layout(Protocol):
    """What stands where in rows, apart from the ids."""

    def segments(self) -> NDArray[np.int32]:
        """As in ``Example``, [n, length]."""
        ...

    def positions(self) -> NDArray[np.int32]:
        """As in ``Example``, [n, length]."""
        ...

    def special(self) -> NDArray[np.bool_]:
        """As in ``Example``, [n, length]."""
        ...

    def parts(self) -> NDArray[np.uint8]:
        """As in ``Example``, [n, length]."""
        ...

    def filled(self) -> NDArray[np.int64]:
        """Tokens of each row without padding, [n]."""
        ...

    def __getitem__(self, part: slice) -> Self:
        """That of some of the rows; ``part`` has whole bounds and step 1."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PieceLayout:
    """Rows of pieces, end to end, padding behind the last one.

    Attributes:
        length: tokens a row.
        bounds: int64 [n + 1]: row r holds the pieces bounds[r] up to bounds[r + 1]; each some.
        sizes: int64 [P]: tokens of each piece with its special ones.
        joined: bool [P]: the piece goes on with the document of the one before it in its row: no
            special tokens stand before it, its positions run on. None: no piece does.
        before: special tokens before a piece.
        after: special tokens after it.
    """

    length: int
    bounds: NDArray[np.int64]
    sizes: NDArray[np.int64]
    joined: NDArray[np.bool_] | None
    before: int
    after: int

    def __getitem__(self, part: slice) -> "PieceLayout":
        bounds = self.bounds[part.start : part.stop + 1]
        own = slice(int(bounds[0]), int(bounds[-1]))
        joined = None if self.joined is None else self.joined[own]
        return PieceLayout(
            self.length, bounds - bounds[0], self.sizes[own], joined, self.before, self.after
        )

    def filled(self) -> NDArray[np.int64]:
        """Tokens of each row without padding, [n]."""
        total = np.append(0, np.cumsum(self.sizes))[self.bounds]
        found: NDArray[np.int64] = np.diff(total)
        return found

    def begins(self) -> NDArray[np.int64]:
        """Where each piece begins in the flat array of all rows: int64 [P]."""
        filled = self.filled()
        padded = self.sizes.copy()
        padded[self.bounds[1:] - 1] += self.length - filled
        found: NDArray[np.int64] = np.cumsum(padded) - padded
        return found

    def segments(self) -> NDArray[np.int32]:
        """1, 2, ... for the documents of a row, 0 for padding: int32 [n, length]."""
        number = np.cumsum(self._fresh(), dtype=np.int64)
        number -= np.repeat(number[self.bounds[:-1]], np.diff(self.bounds)) - 1
        return self._spread(number.astype(np.int32), np.int32(0))

    def positions(self) -> NDArray[np.int32]:
        """Restarting at 0 in every document, 0 for padding: int32 [n, length]."""
        begins = self.begins()
        fresh = self._fresh()
        starts = begins[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]
        rows = len(self.bounds) - 1
        place = np.arange(rows * self.length).reshape(rows, self.length)
        place -= self._spread(starts, 0)
        place.reshape(-1)[special_places(self, begins).padding] = 0
        return place.astype(np.int32)

    def special(self) -> NDArray[np.bool_]:
        """True at added tokens and padding: bool [n, length]."""
        rows = len(self.bounds) - 1
        found = np.zeros(rows * self.length, np.bool_)
        places = special_places(self)
        for each in (*places.before, *places.after, places.padding):
            found[each] = True
        return found.reshape(rows, self.length)

    def parts(self) -> NDArray[np.uint8]:
        """Which part of its document a token stands in, from 0: uint8 [n, length]."""
        rows = len(self.bounds) - 1
        if self.joined is None:
            return np.zeros((rows, self.length), np.uint8)
        count = np.arange(len(self.sizes))
        fresh = np.flatnonzero(self._fresh())
        part = count - fresh[np.searchsorted(fresh, count, "right") - 1]
        return self._spread(part.astype(np.uint8), np.uint8(0))

    def _fresh(self) -> NDArray[np.bool_]:
        """Bool [P]: where a document begins."""
        if self.joined is None:
            return np.ones(len(self.sizes), np.bool_)
        return ~self.joined

    def _spread(self, values: NDArray[Any], padding: Any) -> NDArray[Any]:
        """A value for each piece -> one for each token, [n, length]."""
        rows = len(self.bounds) - 1
        tiles = len(values) + rows
        ends = self.bounds[1:] + np.arange(rows)
        sizes = np.empty(tiles, np.int64)
        spread = np.empty(tiles, values.dtype)
        inside = np.ones(tiles, np.bool_)
        inside[ends] = False
        sizes[inside] = self.sizes
        spread[inside] = values
        sizes[ends] = self.length - self.filled()
        spread[ends] = padding
        return np.repeat(spread, sizes).reshape(rows, self.length)


@dataclass(frozen=True, slots=True, eq=False)
class SpecialPlaces:
    """Where added tokens stand in the flat array of all rows, int64 each.

    Attributes:
        before: for each token before a piece, its places.
        after: for each token after a piece, its places.
        padding: of all padding.
    """

    before: tuple[NDArray[np.int64], ...]
    after: tuple[NDArray[np.int64], ...]
    padding: NDArray[np.int64]


def special_places(layout: PieceLayout, begins: NDArray[np.int64] | None = None) -> SpecialPlaces:
    """Where added tokens stand; ``begins`` spares the layout's own reckoning."""
    begins = layout.begins() if begins is None else begins
    ends = begins + layout.sizes
    opened = begins if layout.joined is None else begins[~layout.joined]
    stops = ends[layout.bounds[1:] - 1]
    padding = np.arange(1, len(stops) + 1) * layout.length - stops
    total = int(padding.sum())
    places = np.arange(total)
    if total:
        places += np.repeat(stops - np.cumsum(padding) + padding, padding)
    return SpecialPlaces(
        tuple(opened + number for number in range(layout.before)),
        tuple(ends - (layout.after - number) for number in range(layout.after)),
        places,
    )


@dataclass(frozen=True, slots=True, eq=False)
class TokenLayout:
    """A layout that was given token by token: [n, length] each."""

    each_segment: NDArray[np.int32]
    each_position: NDArray[np.int32]
    each_special: NDArray[np.bool_]
    each_part: NDArray[np.uint8]

    def __getitem__(self, part: slice) -> "TokenLayout":
        return TokenLayout(
            self.each_segment[part],
            self.each_position[part],
            self.each_special[part],
            self.each_part[part],
        )

    def segments(self) -> NDArray[np.int32]:
        """As given."""
        return self.each_segment

    def positions(self) -> NDArray[np.int32]:
        """As given."""
        return self.each_position

    def special(self) -> NDArray[np.bool_]:
        """As given."""
        return self.each_special

    def parts(self) -> NDArray[np.uint8]:
        """As given."""
        return self.each_part

    def filled(self) -> NDArray[np.int64]:
        """Tokens outside padding, [n]."""
        found: NDArray[np.int64] = np.count_nonzero(self.each_segment, axis=1)
        return found


AnnotationReader = Callable[[slice], NDArray[np.uint8]]
"""Annotations of some of the rows it was made for, uint8 [n, length], zero at special tokens."""


class Rows(Sequence[Example]):
    """Rows of one length. A sequence of ``Example``; a slice of it is Rows again, and no copy.

    Attributes:
        tokens: [n, length] in the shards' own dtype, special tokens and padding in place.
        keys: what each row's randomness is keyed by.
        layout: which document a token belongs to, and what is no text.
        labels: int64 [n]: the class of each row, -1 where there is none.
    """

    def __init__(
        self,
        tokens: NDArray[Any],
        keys: RowKeys,
        layout: Layout,
        annotations: NDArray[np.uint8] | AnnotationReader,
        labels: NDArray[np.int64] | None = None,
    ) -> None:
        self.tokens = tokens
        self.keys = keys
        self.layout = layout
        self.labels = np.full(len(tokens), -1, np.int64) if labels is None else labels
        self._annotations = annotations

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Rows":
        """Examples of one length as Rows; Rows stay what they are."""
        if isinstance(examples, Rows):
            return examples
        tokens, segments, positions, special, annotations = (
            np.stack([getattr(row, name) for row in examples])
            for name in ("tokens", "segments", "positions", "special", "annotations")
        )
        parts = np.stack([_parts(row) for row in examples])
        return cls(
            tokens,
            RowKeys.of([row.key for row in examples]),
            TokenLayout(segments, positions, special, parts),
            annotations,
            np.array([row.label for row in examples], np.int64),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> "Rows": ...
    def __getitem__(self, at: int | slice) -> "Example | Rows":
        """One row as an Example, or a stretch of rows; slices have step 1."""
        if isinstance(at, slice):
            return self._part(at)
        row = range(len(self))[at]
        one = self._part(slice(row, row + 1))
        return Example(
            tokens=one.tokens[0].astype(np.int32),
            segments=one.segments[0],
            positions=one.positions[0],
            special=one.special[0],
            annotations=one.annotations[0],
            key=one.keys.key(0),
            label=int(one.labels[0]),
            parts=one.parts[0],
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[row] for row in range(len(self)))

    def _part(self, at: slice) -> "Rows":
        start, stop, step = at.indices(len(self))
        if step != 1:
            msg = f"a slice of Rows with step {step}; expected 1"
            raise ValueError(msg)
        part = slice(start, max(start, stop))
        return Rows(
            self.tokens[part],
            self.keys[part],
            self.layout[part],
            _part_of(self._annotations, part),
            self.labels[part],
        )

    def with_sources(self, source: NDArray[np.int64]) -> "Rows":
        """The same rows counted as other sources', int64 [n]; masks stay, as digests do."""
        keys = RowKeys(source, self.keys.digest, self.keys.sample, self.keys.epoch)
        return Rows(self.tokens, keys, self.layout, self._annotations, self.labels)

    @property
    def length(self) -> int:
        """Tokens a row."""
        return int(self.tokens.shape[1])

    @cached_property
    def segments(self) -> NDArray[np.int32]:
        """As in ``Example``, [n, length]."""
        return self.layout.segments()

    @cached_property
    def positions(self) -> NDArray[np.int32]:
        """As in ``Example``, [n, length]."""
        return self.layout.positions()

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """As in ``Example``, [n, length]."""
        return self.layout.special()

    @cached_property
    def parts(self) -> NDArray[np.uint8]:
        """As in ``Example``, [n, length]."""
        return self.layout.parts()

    @cached_property
    def annotations(self) -> NDArray[np.uint8]:
        """As in ``Example``, [n, length]; read from the shards when first asked.

        Raises:
            DataError: the shards have none.
        """
        if callable(self._annotations):
            return self._annotations(slice(0, len(self)))
        return self._annotations


def _parts(row: Example) -> NDArray[np.uint8]:
    return np.zeros(len(row.tokens), np.uint8) if row.parts is None else row.parts


def _part_of(
    annotations: NDArray[np.uint8] | AnnotationReader, part: slice
) -> NDArray[np.uint8] | AnnotationReader:
    if not callable(annotations):
        return annotations[part]

    def read(inner: slice) -> NDArray[np.uint8]:
        return annotations(slice(part.start + inner.start, part.start + inner.stop))

    return read
