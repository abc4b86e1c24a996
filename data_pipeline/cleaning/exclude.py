"""Texts that must not be trained on, such as a task's test rows, found in documents.

A document is left out when it equals such a text, or contains one of ``SHORTEST_CONTAINED``
characters or more. Letters and digits alone are compared, whatever their case. Exact up to 128-bit
digests, and linear: of each text one window of characters is looked up at every place of a
document, and only where it is found the whole text is compared.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning.exact_duplicates import text_digest
from data_pipeline.sources.jsonl import JsonlSource

SHORTEST_CONTAINED = 60
_STRETCH = 1 << 16
_MULTIPLIER = 0x9E3779B97F4A7C15
_SIGNS = re.compile(r"[\W_]+")


def squeezed(text: str) -> str:
    """The letters and digits of a text, lower case."""
    return _SIGNS.sub("", text.casefold())


@dataclass(frozen=True, slots=True)
class Excluded:
    """What is to be left out; small, picklable.

    Attributes:
        equal: digests of all the texts.
        anchors: hash of the window in the middle of each text that may be contained -> digests of
            such texts by their length.
        windows: the anchors' hashes, ascending, uint64.
    """

    equal: frozenset[bytes]
    anchors: Mapping[int, Mapping[int, frozenset[bytes]]]
    windows: NDArray[np.uint64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Excluded":
        """From texts as they are; those without a letter or digit are passed over."""
        equal: set[bytes] = set()
        anchors: dict[int, dict[int, frozenset[bytes]]] = {}
        for text in map(squeezed, texts):
            digest = text_digest(text)
            if not text or digest in equal:
                continue
            equal.add(digest)
            if len(text) >= SHORTEST_CONTAINED:
                begin = _anchor(len(text))
                window = text[begin : begin + SHORTEST_CONTAINED]
                by_length = anchors.setdefault(int(_window_hashes(window)[0]), {})
                by_length[len(text)] = by_length.get(len(text), frozenset()) | {digest}
        return cls(frozenset(equal), anchors, np.array(sorted(anchors), np.uint64))

    def holds(self, text: str) -> bool:
        """Whether a document has to be left out."""
        if not self.equal:
            return False
        text = squeezed(text)
        return text_digest(text) in self.equal or bool(self.anchors and self._contained(text))

    def _contained(self, text: str) -> bool:
        """Whether one of the texts stands in ``text`` (squeezed), wherever."""
        known = self.windows
        for start in range(0, len(text) - SHORTEST_CONTAINED + 1, _STRETCH):
            hashes = _window_hashes(text[start : start + _STRETCH + SHORTEST_CONTAINED - 1])
            places = np.searchsorted(known, hashes)
            places[places == len(known)] = 0
            for found in np.flatnonzero(known[places] == hashes).tolist():
                if self._stands_at(text, start + found, int(hashes[found])):
                    return True
        return False

    def _stands_at(self, text: str, window: int, hashed: int) -> bool:
        for length, digests in self.anchors[hashed].items():
            begin = window - _anchor(length)
            whole = text[begin : begin + length] if begin >= 0 else ""
            if len(whole) == length and text_digest(whole) in digests:
                return True
        return False


NOTHING = Excluded.of(())


def sources_of(locations: Sequence[str]) -> list[JsonlSource]:
    """Locations of jsonl files, whose field ``text`` is read."""
    return [JsonlSource(path=location) for location in locations]


def read_excluded(locations: Sequence[str], locate: Callable[[str], Path]) -> Excluded:
    """All texts of jsonl files; DataError naming file and line of a row without ``text``."""
    return Excluded.of(
        document.text for source in sources_of(locations) for document in source.documents(locate)
    )


def digest_of(locations: Sequence[str], locate: Callable[[str], Path]) -> str:
    """Hex digest of the files' contents."""
    digests = " ".join(source.digest(locate) for source in sources_of(locations))
    return hashlib.sha256(digests.encode()).hexdigest()


def _anchor(length: int) -> int:
    """Where a text's window begins: in its middle, since many texts begin or end alike."""
    return (length - SHORTEST_CONTAINED) // 2


def _window_hashes(text: str) -> NDArray[np.uint64]:
    """A hash of each window of a text: uint64 [len(text) - SHORTEST_CONTAINED + 1].

    Sums of characters times powers of an odd number, modulo 2**64; the power that a window begins
    with is divided out, so that the same window hashes alike wherever it stands.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    powers, inverses = _powers()
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(codes * powers[: len(codes)], out=sums[1:])
    windows = sums[SHORTEST_CONTAINED:] - sums[:-SHORTEST_CONTAINED]
    return windows * inverses[: len(windows)]


@lru_cache(maxsize=1)
def _powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers 0, 1, ... of the multiplier and of its inverse, modulo 2**64."""
    size = _STRETCH + SHORTEST_CONTAINED
    inverse = pow(_MULTIPLIER, -1, 1 << 64)
    ones = np.ones(size, np.uint64)
    tables = []
    for base in (_MULTIPLIER, inverse):
        table = ones.copy()
        table[1:] = np.uint64(base)
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]
