"""Words of raw text in any language, as hashes.

Where a script is written without blanks between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese) each character counts as a word; n-grams of them stand in for words.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.hashing import mixed

UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf"  # kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs
)
# Compiled when they are first used: who only reads a recipe need not wait for it.
_WORDS_AND_SIGNS = rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"
_RUNS = rf"([{UNSPACED}]+)|[^\W_{UNSPACED}]+"


def words_and_signs(text: str) -> list[str]:
    """Words, signs and characters of unspaced scripts, in their order; upper case as lower case."""
    return re.findall(_WORDS_AND_SIGNS, text.casefold())


def terms(text: str) -> list[str]:
    """What a text is about: words without signs; of unspaced scripts characters and their pairs."""
    found: list[str] = []
    for run in re.finditer(_RUNS, text.casefold()):
        unspaced = run.group(1)
        if unspaced:
            found += unspaced
            found += map("".join, pairwise(unspaced))
        else:
            found.append(run.group())
    return found


@dataclass(frozen=True, slots=True)
class Hashed:
    """Several texts' words, one text behind the other.

    Attributes:
        words: uint64 [words].
        sizes: int64 [texts], words of each.
    """

    words: NDArray[np.uint64]
    sizes: NDArray[np.int64]

    @property
    def text(self) -> NDArray[np.int64]:
        """Which text each word is of, int64 [words]."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def hashed(texts: Iterable[Sequence[str]]) -> Hashed:
    """64-bit hashes of texts that are cut into words; one text's words are held at a time."""
    found = [np.zeros(0, np.uint64), *map(_hashes, texts)]
    sizes = np.array([len(words) for words in found[1:]], np.int64)
    return Hashed(np.concatenate(found), sizes)


def _hashes(words: Sequence[str]) -> NDArray[np.uint64]:
    from xxhash import xxh3_64_intdigest

    keys = (xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in words)
    return np.fromiter(keys, np.uint64, len(words))


def ngrams(of: Hashed, n: int) -> Hashed:
    """Hashes of all runs of 1 to ``n`` words within a text, shorter ones first."""
    text = of.text
    keys, owners = [of.words], [text]
    current = of.words
    for distance in range(1, n):
        current = mixed(current[:-1]) + of.words[distance:]
        whole = text[: len(current)] == text[distance:]
        keys.append(current[whole])
        owners.append(text[: len(current)][whole])
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return Hashed(np.concatenate(keys)[order], np.bincount(owner, minlength=len(of.sizes)))


def sums_by_text(values: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum of each text's values, 0 for a text without any: fp64 [texts]."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.bincount(owner, weights=values, minlength=len(sizes)).astype(np.float64)
