"""Texts that must not be trained on, such as a task's test rows, found in documents.

Three rules, each on letters and digits alone, whatever their case:

- *equal*: the document is such a text.
- *contained*: such a text of ``SHORTEST_CONTAINED`` letters or more stands in the document.
- *n-gram*: they share 13 words in a row (GPT-3: Brown et al. 2020, appendix C), which finds a text
  that is quoted in part. Where a script has no space between words, a letter counts as two thirds
  of a word, so that 13 words are 20 letters: a Chinese word has about 1.5. A text that is shorter
  has no n-gram; the other two rules see it. Other than there, a document with a hit is left out
  as a whole, and no n-gram is forgiven for being common.

Exact up to 128-bit digests, and linear in the documents, whatever the number of texts: hashes of
windows are looked up in a table, and what is found is compared by digest.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.cleaning.letters import Letters
from data_pipeline.cleaning.normalise import normalise
from data_pipeline.sources.jsonl import JsonlSource

SHORTEST_CONTAINED = 60
NGRAM = 13
NAMED = 5
"""So many documents are named when strict mode refuses."""

Rule = Literal["equal", "contained", "ngram"]
_TABLES: dict[Rule, str] = {"equal": "equal", "contained": "contained", "ngram": "shared"}
_WORD_WEIGHT, _LETTER_WEIGHT = 3, 2
_BATCH_LETTERS = 1 << 20
_DIGEST_BYTES = 16


class Decontamination(Config):
    """What a corpus must not train on.

    Attributes:
        against: locations of jsonl files whose field ``text`` is looked for, such as a task's dev
            and test rows.
        ngram: how many words in a row may not be shared; null: only whole texts are looked for.
        strict: a document that would be left out is an error instead.
    """

    against: list[str] = Field(min_length=1)
    ngram: int | None = Field(default=NGRAM, ge=5, le=64)
    strict: bool = False

    def sources(self) -> list[JsonlSource]:
        """The files as sources, to be checked and digested."""
        return [JsonlSource(path=location) for location in self.against]

    def digest(self, locate: Callable[[str], Path]) -> str:
        """Hex digest of the files' contents."""
        digests = " ".join(source.digest(locate) for source in self.sources())
        return hashlib.sha256(digests.encode()).hexdigest()

    def build(self, locate: Callable[[str], Path]) -> "Evaluation":
        """Read the files; DataError naming file and line of a row without ``text``."""
        texts = (
            (_row_name(location, document.id), document.text)
            for location, source in zip(self.against, self.sources(), strict=True)
            for document in source.documents(locate)
        )
        return Evaluation.of(texts, ngram=self.ngram)


@dataclass(frozen=True, slots=True)
class Hit:
    """An evaluation text that was found in a document.

    Attributes:
        rule: how.
        row: names the evaluation text: its file, and its id or line there.
    """

    rule: Rule
    row: str


@dataclass(frozen=True, slots=True)
class Guard:
    """Where an ``Evaluation`` lies, for the processes that look documents up in it.

    Attributes:
        path: the file that ``Evaluation.save`` wrote.
        strict: whether a hit is an error.
    """

    path: Path
    strict: bool = False

    def find(self, texts: Sequence[str]) -> list[Hit | None]:
        """What each text must not hold; the file is read once a process."""
        return _load(self.path, self.path.stat().st_mtime_ns).find(texts)


@dataclass(frozen=True, slots=True)
class _Table:
    """Windows of letters by their hash.

    Attributes:
        hashes: uint64 [windows], ascending.
        lengths: int32 [windows], letters of what the digest is of.
        rows: int32 [windows], the text that each comes from.
        digests: uint8 [windows, 16], of the letters that must be found.
        sieve: bool [2**bits]: whether a hash begins with these bits; a quick no for most.
    """

    hashes: NDArray[np.uint64]
    lengths: NDArray[np.int32]
    rows: NDArray[np.int32]
    digests: NDArray[np.uint8]
    sieve: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        hashes: NDArray[np.uint64],
        lengths: NDArray[np.int32],
        rows: NDArray[np.int32],
        digests: NDArray[np.uint8],
    ) -> "_Table":
        order = np.argsort(hashes, kind="stable")
        bits = min(26, max(12, len(hashes).bit_length() + 4))
        sieve = np.zeros(1 << bits, np.bool_)
        sieve[hashes >> np.uint64(64 - bits)] = True
        return cls(hashes[order], lengths[order], rows[order], digests[order], sieve)

    def candidates(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Indices of hashes that stand in the table."""
        if not len(self.hashes):
            return np.zeros(0, np.int64)
        shift = np.uint64(65 - len(self.sieve).bit_length())
        likely = np.flatnonzero(self.sieve[hashes >> shift])
        places = np.searchsorted(self.hashes, hashes[likely])
        places[places == len(self.hashes)] = 0
        found: NDArray[np.int64] = likely[self.hashes[places] == hashes[likely]]
        return found

    def entries(self, hashed: np.uint64) -> Iterator[int]:
        """The places in the table of one hash."""
        first = int(np.searchsorted(self.hashes, hashed))
        while first < len(self.hashes) and self.hashes[first] == hashed:
            yield first
            first += 1


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The texts that are looked for.

    Attributes:
        names: of the texts.
        ngram: words that may not be shared; 0: that rule is off.
        equal: whole texts, by a hash of their digest.
        contained: long texts, by the window in their middle.
        shared: n-grams.
    """

    names: Sequence[str]
    ngram: int
    equal: _Table
    contained: _Table
    shared: _Table

    @classmethod
    def of(cls, texts: Iterable[tuple[str, str]], ngram: int | None = NGRAM) -> "Evaluation":
        """From pairs of a name and a text; those without a letter or digit are passed over."""
        builder = _Builder(ngram or 0)
        for name, text in texts:
            builder.add(name, normalise(text))
        return builder.finish()

    def save(self, path: Path) -> None:
        """Write it, for ``Guard``."""
        arrays = {
            f"{table}.{field}": getattr(getattr(self, table), field)
            for table in ("equal", "contained", "shared")
            for field in ("hashes", "lengths", "rows", "digests")
        }
        names = np.frombuffer("\x00".join(self.names).encode(), np.uint8)
        with path.open("wb") as stream:
            np.savez(stream, names=names, ngram=np.int64(self.ngram), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """What ``save`` wrote."""
        with np.load(path) as arrays:
            equal, contained, shared = (
                _Table.of(
                    *(arrays[f"{table}.{f}"] for f in ("hashes", "lengths", "rows", "digests"))
                )
                for table in ("equal", "contained", "shared")
            )
            names = arrays["names"].tobytes().decode().split("\x00")
            return cls(names, int(arrays["ngram"]), equal, contained, shared)

    def find(self, texts: Sequence[str]) -> list[Hit | None]:
        """A hit of each text, by the first rule that has one; None where none has."""
        found: list[Hit | None] = [None] * len(texts)
        if not len(self.equal.hashes) or not texts:
            return found
        letters = Letters.of(texts)
        for rule, windows in self._rules(letters):
            table: _Table = getattr(self, _TABLES[rule])
            for index, entry, begin in windows:
                if found[index] is not None:
                    continue
                end = begin + int(table.lengths[entry])
                inside = letters.bounds[index] <= begin and end <= letters.bounds[index + 1]
                if inside and _digest(letters.window(begin, end)) == table.digests[entry].tobytes():
                    found[index] = Hit(rule, self.names[table.rows[entry]])
        return found

    def _rules(self, letters: Letters) -> Iterator[tuple[Rule, Iterator[tuple[int, int, int]]]]:
        """Each rule, with what is to be compared: text, entry of its table, first letter."""
        yield "equal", self._equal(letters)
        if len(self.contained.hashes):
            yield "contained", self._contained(letters)
        if len(self.shared.hashes):
            yield "ngram", self._shared(letters)

    def _equal(self, letters: Letters) -> Iterator[tuple[int, int, int]]:
        digests = [_digest(letters.text(index)) for index in range(len(letters.bounds) - 1)]
        hashes = np.frombuffer(b"".join(digests), "<u8")[::2]
        for index in self.equal.candidates(hashes).tolist():
            for entry in self.equal.entries(hashes[index]):
                yield index, entry, int(letters.bounds[index])

    def _contained(self, letters: Letters) -> Iterator[tuple[int, int, int]]:
        hashes = letters.every_hash(SHORTEST_CONTAINED)
        places = self.contained.candidates(hashes)
        for place, index in zip(places.tolist(), letters.owners(places).tolist(), strict=True):
            for entry in self.contained.entries(hashes[place]):
                yield index, entry, place - _anchor(int(self.contained.lengths[entry]))

    def _shared(self, letters: Letters) -> Iterator[tuple[int, int, int]]:
        begin, end = ngrams(letters, self.ngram)
        hashes = letters.hashes(begin, end)
        places = self.shared.candidates(hashes)
        owners = letters.owners(begin[places]).tolist()
        for place, index in zip(places.tolist(), owners, strict=True):
            for entry in self.shared.entries(hashes[place]):
                yield index, entry, int(begin[place])


def ngrams(letters: Letters, words: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Windows of so many words, one from every word on that has enough behind it in its text.

    Returns:
        first letter of each, and behind its last one: int64 [windows] each.
    """
    total = len(letters.starts)
    if letters.single.any():
        weights = np.where(letters.single, _LETTER_WEIGHT, _WORD_WEIGHT)
        reached = np.zeros(total + 1, np.int64)
        np.cumsum(weights, out=reached[1:])
        # The word behind the window: where the sum first is what `words` words weigh.
        behind = np.searchsorted(reached, reached[:-1] + _WORD_WEIGHT * words)
    else:
        behind = np.arange(words, total + words)
    whole = behind <= np.repeat(letters.words[1:], np.diff(letters.words))
    edges = np.append(letters.starts, len(letters.codes))
    return letters.starts[whole], edges[behind[whole]]


def refuse_contaminated(corpus: str, found: Sequence[tuple[str, Hit]], total: int) -> None:
    """DataError that names the first documents and the evaluation rows, if there are any.

    Args:
        corpus: its name.
        found: names of documents, and what was found in each.
        total: how many documents had a hit.
    """
    if not found:
        return
    named = "; ".join(f"{name} ({hit.rule}: {hit.row})" for name, hit in found[:NAMED])
    more = f"; and {total - NAMED} more so far" if total > NAMED else ""
    msg = (
        f"corpus {corpus}: documents hold evaluation texts: {named}{more}; take them out of "
        "the sources, or set decontaminate.strict to false to leave them out"
    )
    raise DataError(msg)


class _Builder:
    """Gathers windows of texts, many texts at a time."""

    def __init__(self, ngram: int) -> None:
        self._ngram = ngram
        self._names: list[str] = []
        self._waiting: list[str] = []
        self._letters = 0
        self._known: set[bytes] = set()
        self._found: dict[str, list[tuple[int, int, int, bytes]]] = {
            "equal": [],
            "contained": [],
            "shared": [],
        }

    def add(self, name: str, text: str) -> None:
        self._names.append(name.replace("\x00", " "))
        self._waiting.append(text)
        self._letters += len(text)
        if self._letters >= _BATCH_LETTERS:
            self._take()

    def finish(self) -> Evaluation:
        self._take()
        tables = {name: _table(entries) for name, entries in self._found.items()}
        return Evaluation(self._names, self._ngram, **tables)

    def _take(self) -> None:
        if not self._waiting:
            return
        letters = Letters.of(self._waiting)
        first = len(self._names) - len(self._waiting)
        self._waiting, self._letters = [], 0
        middle = letters.every_hash(SHORTEST_CONTAINED)
        for index, (low, high) in enumerate(
            zip(letters.bounds[:-1].tolist(), letters.bounds[1:].tolist(), strict=True)
        ):
            digest = _digest(letters.window(low, high))
            length = high - low
            if not length or not self._is_new(b"text" + digest):
                continue
            hashed = int.from_bytes(digest[:8], "little")
            self._found["equal"].append((hashed, length, first + index, digest))
            if length >= SHORTEST_CONTAINED:
                hashed = int(middle[low + _anchor(length)])
                self._found["contained"].append((hashed, length, first + index, digest))
        if self._ngram:
            self._take_ngrams(letters, first)

    def _take_ngrams(self, letters: Letters, first: int) -> None:
        begin, end = ngrams(letters, self._ngram)
        rows = letters.owners(begin) + first
        hashes = letters.hashes(begin, end)
        windows = zip(*(a.tolist() for a in (begin, end, rows, hashes)), strict=True)
        for low, high, row, hashed in windows:
            digest = _digest(letters.window(low, high))
            if self._is_new(digest):
                self._found["shared"].append((hashed, high - low, row, digest))

    def _is_new(self, digest: bytes) -> bool:
        before = len(self._known)
        self._known.add(digest)
        return len(self._known) > before


def _table(entries: Sequence[tuple[int, int, int, bytes]]) -> _Table:
    hashes, lengths, rows, digests = zip(*entries, strict=True) if entries else ((), (), (), ())
    return _Table.of(
        np.array(hashes, np.uint64),
        np.array(lengths, np.int32),
        np.array(rows, np.int32),
        np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES),
    )


def _row_name(location: str, name: str) -> str:
    """A row's id is ``file:line``, without the folders above the file that was given."""
    folder, slash, file = location.rpartition("/")
    return f"{folder}{slash}{name}" if name.startswith(f"{file}:") else f"{location}:{name}"


@lru_cache(maxsize=8)
def _load(path: Path, _changed: int) -> Evaluation:
    return Evaluation.load(path)


def _anchor(length: int) -> int:
    """Where a text's window begins: in its middle, since many texts begin or end alike."""
    return (length - SHORTEST_CONTAINED) // 2


def _digest(letters: bytes) -> bytes:
    return hashlib.blake2b(letters, digest_size=_DIGEST_BYTES).digest()
