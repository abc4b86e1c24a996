"""Near duplicates: of texts that share most of their word n-grams, the first one stays.

MinHash (Broder 1997) estimates the Jaccard similarity of two texts' sets of n-grams; locality
sensitive hashing finds the pairs worth estimating: those whose signatures agree in a whole band.

The rule, text by text in order: a text goes when it is near to an earlier text that *stays*. So
nothing is removed by a chain of likenesses (A like B, B like C, but C unlike A: C stays), and of
each removed text it is known which one stands for it. Every removal is checked against the
threshold by whole signatures. What comes out depends on the order of the texts alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs.schema import Config
from data_pipeline.cleaning.letters import Letters, mixed
from data_pipeline.cleaning.packages import require

FIRST_OF_BUCKET = 64
"""In each bucket the texts are compared with so many of its first ones: bounds the time."""
MOST_NEAR = 8
"""So many earlier near texts of a text are kept in mind: bounds the memory."""
_MISSED = 0.01
_CHUNK = 1 << 16


class NearDuplicates(Config):
    """What counts as near.

    Attributes:
        threshold: share of n-grams that two texts have in common (Jaccard), as estimated.
        ngram: words in a row; in scripts without space between words, letters in a row.
        permutations: numbers of a signature; the estimate's standard error is 0.035 at 0.8
            with 128.
        bands: parts of a signature of which one must agree; null: as few as leave out at most
            1% of the pairs that lie right at the threshold.
        seed: of the hash functions.
    """

    threshold: float = Field(default=0.8, gt=0, le=1)
    ngram: int = Field(default=5, ge=1, le=32)
    permutations: int = Field(default=128, ge=16, le=1024)
    bands: int | None = Field(default=None, ge=1)
    seed: int = Field(default=1, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _bands_fit(self) -> "NearDuplicates":
        if self.bands is not None and self.bands > self.permutations:
            msg = f"bands: {self.bands} are more than the {self.permutations} permutations"
            raise ValueError(msg)
        return self

    @property
    def rows(self) -> int:
        """Numbers of a signature in one band."""
        if self.bands is not None:
            return self.permutations // self.bands
        good = [
            rows
            for rows in range(1, self.permutations + 1)
            if (1 - self.threshold**rows) ** (self.permutations // rows) <= _MISSED
        ]
        return max(good, default=1)

    def check(self) -> None:
        """RecipeError when the package that hashes is absent."""
        require("rensa", "near_duplicates")

    def signatures(self, texts: Sequence[str]) -> NDArray[np.uint32]:
        """The signature of each text: uint32 [texts, permutations].

        A text with fewer words than an n-gram is one n-gram; one without letters or digits is
        near to none but its equals.
        """
        from rensa import RMinHash

        if not texts:
            return np.zeros((0, self.permutations), np.uint32)
        letters = Letters.of(texts)
        begin, end, offsets = _ngrams(letters, self.ngram)
        hashes = mixed(letters.hashes(begin, end))
        for index in np.flatnonzero(np.diff(letters.words) == 0).tolist():
            hashes[offsets[index]] = _hash_of(texts[index])
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.tolist(), self.permutations, self.seed
        )
        return np.array(matrix.to_rows(), np.uint32)


def near_duplicates(
    signatures: Sequence[NDArray[np.uint32]],
    settings: NearDuplicates,
    kept: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Which earlier text each text is near to, of those that stay.

    Memory is about 100 bytes a text; the signatures may be memory maps, and are read once a band.

    Args:
        signatures: uint32 [., permutations] each: of N texts in all, held-out ones first.
        settings: what they were made with.
        kept: bool [N]: texts that are out already (exact duplicates) are passed over.

    Returns:
        int64 [N]: the index of the text that stands for it; -1 for a text that stays, and for one
        that was out already.
    """
    search = _Search(_Stack(signatures), settings)
    alive = np.ones(len(search.stack), np.bool_) if kept is None else kept
    for band in range(settings.permutations // settings.rows):
        search.look_at(band, alive)
    return search.settle()


@dataclass(slots=True)
class _Stack:
    """Arrays of signatures as if they were one."""

    arrays: Sequence[NDArray[np.uint32]]
    bounds: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.bounds = np.cumsum([0, *map(len, self.arrays)])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def keys(self, low: int, high: int) -> NDArray[np.uint64]:
        """A hash of the columns from ``low`` to ``high`` of every signature: uint64 [N]."""
        keys = np.empty(len(self), np.uint64)
        for array, begin in zip(self.arrays, self.bounds[:-1].tolist(), strict=True):
            for at in range(0, len(array), _CHUNK):
                part = array[at : at + _CHUNK, low:high]
                keys[begin + at : begin + at + len(part)] = _hashed(part)
        return keys

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Some signatures."""
        if len(self.arrays) == 1:
            return self.arrays[0][indices]
        owners = np.searchsorted(self.bounds, indices, side="right") - 1
        found = np.empty((len(indices), self.arrays[0].shape[1]), np.uint32)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            found[mine] = self.arrays[owner][indices[mine] - self.bounds[owner]]
        return found


class _Search:
    """Pairs of near texts, found band by band; a pair is one number, ``later * N + earlier``."""

    def __init__(self, stack: _Stack, settings: NearDuplicates) -> None:
        self.stack = stack
        self._rows = settings.rows
        self._least = int(np.ceil(settings.threshold * settings.permutations - 1e-9))
        self._near = np.zeros(len(stack), np.int8)
        self._pairs = np.zeros(0, np.int64)
        self._found: list[NDArray[np.int64]] = []

    def look_at(self, band: int, alive: NDArray[np.bool_]) -> None:
        """Compare the texts of each bucket of a band with the first ones there."""
        keys = self.stack.keys(band * self._rows, (band + 1) * self._rows)
        order = np.flatnonzero(alive)
        # A stable sort: within a bucket the order is that of the texts.
        order = order[np.argsort(keys[order], kind="stable")]
        ordered = keys[order]
        opening = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(order)])
        sizes = np.diff(np.append(opening, len(order)))
        shared = np.repeat(sizes > 1, sizes)
        first = np.repeat(opening, sizes)[shared]
        texts, place = order[shared], np.flatnonzero(shared) - first
        for leader in range(min(FIRST_OF_BUCKET, int(place.max(initial=0)))):
            still = (place > leader) & (self._near[texts] < MOST_NEAR)
            self._compare(texts[still], order[first[still] + leader])
        self._pairs = np.sort(np.concatenate([self._pairs, *self._found]))
        self._found = []

    def _compare(self, later: NDArray[np.int64], earlier: NDArray[np.int64]) -> None:
        for at in range(0, len(later), _CHUNK):
            one, two = later[at : at + _CHUNK], earlier[at : at + _CHUNK]
            pairs = one * len(self.stack) + two
            places = np.searchsorted(self._pairs, pairs)
            new = np.append(self._pairs, -1)[places] != pairs
            one, two, pairs = one[new], two[new], pairs[new]
            same = (self.stack.rows(one) == self.stack.rows(two)).sum(axis=1)
            near = same >= self._least
            self._near[one[near]] += 1
            self._found.append(pairs[near])

    def settle(self) -> NDArray[np.int64]:
        """Text by text: it goes if a text that it is near to stays."""
        nearest = np.full(len(self.stack), -1, np.int64)
        for at in range(0, len(self._pairs), _CHUNK):
            part = self._pairs[at : at + _CHUNK]
            later, earlier = np.divmod(part, len(self.stack))
            for one, two in zip(later.tolist(), earlier.tolist(), strict=True):
                if nearest[one] < 0 and nearest[two] < 0:
                    nearest[one] = two
        return nearest


def _ngrams(
    letters: Letters, words: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Windows of so many words or letters; a shorter text is one window, even an empty one.

    Returns:
        begin and end of each, int64 [windows]; where those of each text begin, int64 [texts + 1].
    """
    counts = np.diff(letters.words)
    windows = np.maximum(1, counts - words + 1)
    offsets = np.concatenate(([0], np.cumsum(windows)))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], windows)
    word = np.repeat(letters.words[:-1], windows) + within
    edges = np.append(letters.starts, len(letters.codes))
    behind = np.minimum(word + words, np.repeat(letters.words[1:], windows))
    return edges[word], edges[behind], offsets


def _hash_of(text: str) -> np.uint64:
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    steps = mixed(np.arange(1, len(codes) + 1, dtype=np.uint64))
    return np.uint64((mixed(codes + np.uint64(1 << 32)) * steps).sum(dtype=np.uint64))


def _hashed(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    keys = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        keys = mixed(keys + column.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return keys
