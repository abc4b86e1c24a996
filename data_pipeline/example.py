"""What flows: documents in, examples out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WORD_START = 1 << 0
SENTENCE_START = 1 << 1


@dataclass(frozen=True, slots=True)
class Document:
    """One text from somewhere.

    Attributes:
        text: the text itself.
        id: names it within its source, for people: ``file:line`` or a dotted name.
        group: documents of one group never stand on two sides of a split (a file, say).
        metadata: whatever else the source knows.
    """

    text: str
    id: str
    group: str
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExampleKey:
    """Where an example comes from: with the seed, the only key of anything random about it.

    Attributes:
        source: index of the source in the recipe's order.
        digest: first 63 bits of the digest of the source's contents.
        sample: row number in the source.
        epoch: how often that source has been read through before.
    """

    source: int
    digest: int
    sample: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Example:
    """One row of ``length`` tokens: several whole documents, or one, then padding.

    Attributes:
        tokens: int32 [length]; the padding id where ``segments`` is 0.
        segments: int32 [length]; 1, 2, ... for the documents of the row; 0 for padding.
        positions: int32 [length]; restart at 0 in every document; 0 for padding.
        special: bool [length]; true at tokens that packing added (CLS, SEP, ...) and padding.
        annotations: uint8 [length]; the bits of the shard's ``.ann`` (WORD_START, ...).
        key: what its randomness is keyed by.
        label: the class or target of a labelled row, -1 where there is none.
        parts: uint8 [length]; which part of its document a token stands in, 0 or 1 for those of a
            pair; 0 for padding. None: all of them in the first.
    """

    tokens: NDArray[np.int32]
    segments: NDArray[np.int32]
    positions: NDArray[np.int32]
    special: NDArray[np.bool_]
    annotations: NDArray[np.uint8]
    key: ExampleKey
    label: int = -1
    parts: NDArray[np.uint8] | None = None
