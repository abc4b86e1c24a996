"""What texts are compared by: their letters and digits, and where words start among them.

Many texts are laid end to end and looked at together: the time goes into a few passes of numpy,
not into each text. A hash of any window of letters costs the same, however long the window is.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

LONGEST_WORD = 256
"""A longer run of letters is cut into words of this length, so that a window stays short."""

_SIGN, _WORD, _SINGLE, _JOIN = 0, 1, 2, 3
# Scripts written without space between words: each letter counts as a word.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han, from here on
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_STRETCH = 1 << 16
_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Letters:
    """The letters and digits of some texts, lower case, end to end.

    Attributes:
        codes: uint32 [letters], code points.
        bounds: int64 [texts + 1]: the letters of text ``i`` are ``codes[bounds[i] : bounds[i+1]]``.
        starts: int64 [words], where words start, ascending.
        words: int64 [texts + 1]: the words of text ``i`` are ``starts[words[i] : words[i + 1]]``.
        single: bool [words]: a letter of a script without space between words.
    """

    codes: NDArray[np.uint32]
    bounds: NDArray[np.int64]
    starts: NDArray[np.int64]
    words: NDArray[np.int64]
    single: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Letters":
        """Lay texts end to end; combining marks and joiners part no words, and are not kept."""
        joined = "\x00".join(text.replace("\x00", " ") for text in texts) + "\x00"
        codes: NDArray[np.uint8] | NDArray[np.uint32]
        if joined.isascii():
            codes = np.frombuffer(joined.lower().encode("ascii"), np.uint8)
        else:
            codes = np.frombuffer(joined.casefold().encode("utf-32-le", "surrogatepass"), "<u4")
        kinds = _kinds()[codes]
        if (kinds == _JOIN).any():
            codes, kinds = codes[kinds != _JOIN], kinds[kinds != _JOIN]
        kept = kinds != _SIGN
        before = np.empty_like(kinds)
        before[0], before[1:] = _SIGN, kinds[:-1]
        opening = (kinds == _SINGLE) | ((kinds == _WORD) & (before != _WORD))
        ends = np.flatnonzero(codes == 0)
        bounds = _counted(kept, ends)
        starts = _cut_long(np.flatnonzero(opening[kept]), bounds)
        letters = codes[kept].astype(np.uint32, copy=False)
        words = np.searchsorted(starts, bounds)
        single = _kinds()[letters[starts]] == _SINGLE
        return cls(letters, bounds, starts, words, single)

    def owners(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The text that each place among ``codes`` belongs to."""
        return np.searchsorted(self.bounds, places, side="right") - 1

    def text(self, index: int) -> bytes:
        """The letters of a text, as bytes to be digested."""
        return self.window(int(self.bounds[index]), int(self.bounds[index + 1]))

    def window(self, begin: int, end: int) -> bytes:
        """Some letters, as bytes to be digested."""
        return self.codes[begin:end].tobytes()

    def hashes(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.uint64]:
        """A hash of each window ``codes[begin:end]``.

        Sums of letters times powers of an odd number, modulo 2**64; the power that a window
        begins with is divided out, so that the same window hashes alike wherever it stands.

        Args:
            begin: int64 [windows], ascending.
            end: int64 [windows], not before ``begin``.
        """
        hashes = np.empty(len(begin), np.uint64)
        if not len(begin):
            return hashes
        powers, inverses = _powers(_STRETCH + int((end - begin).max()))
        edges = np.arange(0, int(begin[-1]) + _STRETCH + 1, _STRETCH)
        for low, first, last in zip(edges, *_paired(np.searchsorted(begin, edges)), strict=False):
            if first == last:
                continue
            from_, to = begin[first:last] - low, end[first:last] - low
            codes = self.codes[low : low + int(to.max())]
            sums = np.zeros(len(codes) + 1, np.uint64)
            np.cumsum(codes * powers[: len(codes)], out=sums[1:])
            hashes[first:last] = (sums[to] - sums[from_]) * inverses[from_]
        return hashes

    def every_hash(self, width: int) -> NDArray[np.uint64]:
        """A hash of each window of ``width`` letters, those over two texts too.

        Returns:
            uint64 [letters - width + 1], or none.
        """
        last = max(0, len(self.codes) - width + 1)
        hashes = np.empty(last, np.uint64)
        powers, inverses = _powers(_STRETCH + width)
        for low in range(0, last, _STRETCH):
            codes = self.codes[low : low + _STRETCH + width - 1]
            sums = np.zeros(len(codes) + 1, np.uint64)
            np.cumsum(codes * powers[: len(codes)], out=sums[1:])
            found = sums[width:] - sums[:-width]
            hashes[low : low + len(found)] = found * inverses[: len(found)]
        return hashes


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes whose bits all depend on all bits: the last step of splitmix64."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _counted(kept: NDArray[np.bool_], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many are kept before the first text, and up to the end of each."""
    if len(ends) == 1:  # one text may be very long: no sums of it
        return np.array([0, np.count_nonzero(kept)], np.int64)
    return np.concatenate(([0], np.cumsum(kept)[ends]))


def _cut_long(starts: NDArray[np.int64], bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """More starts, where a run of letters is very long."""
    ends = np.append(starts[1:], bounds[-1])
    more = (ends - starts - 1) // LONGEST_WORD
    if not more.any():
        return starts
    cut = more.nonzero()[0]
    added = [
        np.arange(starts[i] + LONGEST_WORD, starts[i] + LONGEST_WORD * more[i] + 1, LONGEST_WORD)
        for i in cut
    ]
    return np.sort(np.concatenate([starts, *added]))


def _paired(places: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return places[:-1], places[1:]


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """Kind of every code point."""
    kinds = np.full(0x110000, _SIGN, np.uint8)
    for code in range(0x110000):
        character = chr(code)
        if character.isalnum():
            kinds[code] = _WORD
        elif unicodedata.category(character) in {"Mn", "Mc", "Me", "Cf"}:
            kinds[code] = _JOIN
    for low, high in _UNSPACED:
        part = kinds[low : high + 1]
        part[part == _WORD] = _SINGLE
    return kinds


_tables: dict[str, NDArray[np.uint64]] = {}


def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """At least ``size`` powers 0, 1, ... of the multiplier and of its inverse, modulo 2**64."""
    if "powers" not in _tables or len(_tables["powers"]) < size:
        inverse = pow(_MULTIPLIER, -1, 1 << 64)
        for name, base in (("powers", _MULTIPLIER), ("inverses", inverse)):
            table = np.full(size, np.uint64(base), np.uint64)
            table[0] = 1
            _tables[name] = np.multiply.accumulate(table)
    return _tables["powers"], _tables["inverses"]
