"""The words that several corpora are described by, and how they are spelled."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.corpus import word_tokens
from data_pipeline.analysis.counts import Counts
from data_pipeline.shards import ShardedDataset

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The most frequent words, each corpus having the same say.

    Attributes:
        keys: uint64 [V], hashes of the words, ascending.
    """

    keys: NDArray[np.uint64]

    @classmethod
    def of(cls, corpora: Sequence[Counts], size: int) -> "Vocabulary":
        """The ``size`` words with the largest mean share; ties by hash."""
        keys = np.unique(np.concatenate([counts.keys for counts in corpora]))
        shares = np.zeros(len(keys))
        for counts in corpora:
            shares[keys.searchsorted(counts.keys)] += counts.counts / max(1, counts.total)
        return cls(np.sort(keys[np.lexsort((keys, -shares))[:size]]))

    def __len__(self) -> int:
        """How many words."""
        return len(self.keys)

    def numbers(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of each word, int64; ``len(self)`` for a word that is not in it."""
        return numbers_in(self.keys, words)


def numbers_in(keys: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each word stands among ascending keys, int64; ``len(keys)`` where it does not."""
    at = np.searchsorted(keys, words)
    known = at < len(keys)
    known[known] = keys[at[known]] == words[known]
    return np.where(known, at, len(keys))


@dataclass(frozen=True, slots=True)
class Speller:
    """Words as people write them.

    Attributes:
        sources: the corpora with the counts of their words.
        backend: the tokenizer.
    """

    sources: Sequence[tuple[ShardedDataset, Counts]]
    backend: "Backend"
    _known: dict[int, tuple[str, bool]] = field(default_factory=dict, repr=False)

    def spell(self, key: int) -> str:
        """The word with a hash."""
        return self._look_up(key)[0]

    def is_word(self, key: int) -> bool:
        """Whether it has a letter (of any script) beside special tokens such as [UNK]."""
        return self._look_up(key)[1]

    def _look_up(self, key: int) -> tuple[str, bool]:
        if key not in self._known:
            tokens = self._tokens(np.uint64(key))
            # Some decoders set blanks between the tokens of a Chinese word.
            text = "".join(self.backend.decode(tokens, skip_special_tokens=False).split())
            plain = self.backend.decode(tokens, skip_special_tokens=True)
            self._known[key] = text, any(map(str.isalpha, plain))
        return self._known[key]

    def _tokens(self, key: np.uint64) -> list[int]:
        for data, counts in self.sources:
            at = int(counts.keys.searchsorted(key))
            if at < len(counts.keys) and counts.keys[at] == key:
                return word_tokens(data, int(counts.firsts[at]))
        msg = f"no corpus has a word with the hash {key}"
        raise KeyError(msg)
