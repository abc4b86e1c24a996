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
        begins: int64 [P]: first token of each piece in the flat array of all rows.
        ends: int64 [P]: where it ends there, its special tokens included.
        joined: bool [P]: the piece goes on with the document of the one before it in its row: no
            special tokens stand before it, its positions run on. None: no piece does.
        before: special tokens before a piece.
        after: special tokens after it.
    """

    length: int
    bounds: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    joined: NDArray[np.bool_] | None
    before: int
    after: int

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.bounds) - 1

    def __getitem__(self, part: slice) -> "PieceLayout":
        bounds = self.bounds[part.start : part.stop + 1]
        own = slice(int(bounds[0]), int(bounds[-1]))
        moved = part.start * self.length
        return PieceLayout(
            self.length,
            bounds - bounds[0],
            self.begins[own] - moved,
            self.ends[own] - moved,
            None if self.joined is None else self.joined[own],
            self.before,
            self.after,
        )

    def stops(self) -> NDArray[np.int64]:
        """Where the padding of each row begins in the flat array, int64 [n]."""
        return self.ends.take(self.bounds[1:] - 1)

    def filled(self) -> NDArray[np.int64]:
        """Tokens of each row without padding, [n]."""
        return self.stops() - np.arange(len(self)) * self.length

    def places(self) -> "SpecialPlaces":
        """Where added tokens stand."""
        stops = self.stops()
        padding = np.arange(1, len(self) + 1) * self.length - stops
        behind = np.arange(int(padding.sum()))
        if len(behind):
            behind += np.repeat(stops - np.cumsum(padding) + padding, padding)
        opened = self.begins if self.joined is None else self.begins[~self.joined]
        return SpecialPlaces(
            tuple(opened + number if number else opened for number in range(self.before)),
            tuple(self.ends - number for number in range(self.after, 0, -1)),
            behind,
        )

    def segments(self) -> NDArray[np.int32]:
        """1, 2, ... for the documents of a row, 0 for padding: int32 [n, length]."""
        number = np.cumsum(self._fresh(), dtype=np.int64)
        number -= np.repeat(number.take(self.bounds[:-1]) - 1, np.diff(self.bounds))
        return self._spread(number.astype(np.int32))

    def positions(self) -> NDArray[np.int32]:
        """Restarting at 0 in every document, 0 for padding: int32 [n, length]."""
        starts = self.begins
        if self.joined is not None:
            starts = starts[~self.joined].take(np.cumsum(~self.joined) - 1)
        place = np.arange(len(self) * self.length, dtype=np.int32).reshape(len(self), self.length)
        place -= self._spread(starts.astype(np.int32))
        place.reshape(-1)[self.places().padding] = 0
        return place

    def special(self) -> NDArray[np.bool_]:
        """True at added tokens and padding: bool [n, length]."""
        found = np.zeros(len(self) * self.length, np.bool_)
        places = self.places()
        for each in (*places.before, *places.after, places.padding):
            found[each] = True
        return found.reshape(len(self), self.length)

    def parts(self) -> NDArray[np.uint8]:
        """Which part of its document a token stands in, from 0: uint8 [n, length]."""
        if self.joined is None:
            return np.zeros((len(self), self.length), np.uint8)
        number = np.arange(len(self.begins))
        fresh = np.flatnonzero(~self.joined)
        number -= fresh.take(np.cumsum(~self.joined) - 1)
        return self._spread(number.astype(np.uint8))

    def _fresh(self) -> NDArray[np.bool_]:
        """Bool [P]: where a document begins."""
        return np.ones(len(self.begins), np.bool_) if self.joined is None else ~self.joined

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        """A value for each piece -> one for each token, [n, length]; 0 for padding."""
        lasts = self.bounds[1:] + np.arange(len(self))
        is_piece = np.ones(len(values) + len(self), np.bool_)
        is_piece[lasts] = False
        sizes = np.empty(len(is_piece), np.int64)
        sizes[is_piece] = self.ends - self.begins
        sizes[lasts] = self.length - self.filled()
        tiles = np.zeros(len(is_piece), values.dtype)
        tiles[is_piece] = values
        return np.repeat(tiles, sizes).reshape(len(self), self.length)


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


_MADE = ("segments", "positions", "special", "parts", "annotations")

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
        made = Rows(
            self.tokens[part],
            self.keys[part],
            self.layout[part],
            _part_of(self._annotations, part),
            self.labels[part],
        )
        # What has been made of the whole need not be made again of a part.
        for name in _MADE:
            if name in self.__dict__:
                made.__dict__[name] = self.__dict__[name][part]
        return made

    def with_sources(self, source: NDArray[np.int64]) -> "Rows":
        """The same rows counted as other sources', int64 [n]; masks stay, as digests do."""
        keys = RowKeys(source, self.keys.digest, self.keys.sample, self.keys.epoch)
        made = Rows(self.tokens, keys, self.layout, self._annotations, self.labels)
        made.__dict__.update({n: v for n, v in self.__dict__.items() if n in _MADE})
        return made

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
