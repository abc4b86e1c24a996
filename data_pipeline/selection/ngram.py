"""Importance weights of hashed n-grams, as in DSIR (Xie et al., 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from data_pipeline.randomness import keyed
from data_pipeline.selection.method import Method, Scorer
from data_pipeline.selection.words import Hashed, hashed, ngrams, sums_by_text, words_and_signs

AT_ONCE = 256


class NgramWeights(Method):
    """How much likelier a text's n-grams are in the target than in the sources.

    Attributes:
        n: runs of 1 to n words (characters where words are not spaced) are features.
        buckets: they are hashed to so many.
        draw: ``highest``: by the mean log ratio of a text's features, so that length does not
            count. ``gumbel``: by their sum with Gumbel noise, which draws texts without
            replacement by their importance weights, as the paper does; more varied.
    """

    name: Literal["ngram"] = "ngram"
    n: int = Field(default=2, ge=1, le=5)
    buckets: int = Field(default=10_000, ge=2)
    draw: Literal["highest", "gumbel"] = "highest"

    def fit(self, target: Sequence[str], background: Sequence[str], seed: int) -> Scorer:
        """Two distributions over the buckets, each count one more than it is."""
        rates = []
        for name, texts in (("target", target), ("sources", background)):
            counts = np.zeros(self.buckets)
            for first in range(0, len(texts), AT_ONCE):
                features = self.features(texts[first : first + AT_ONCE])
                counts += np.bincount(_buckets(features, self.buckets), minlength=self.buckets)
            if not counts.any():
                msg = f"select: the texts of the {name} have neither words nor signs"
                raise DataError(msg)
            rates.append(np.log((counts + 1) / (counts.sum() + self.buckets)))
        return NgramScorer(self, rates[0] - rates[1], keyed(seed, "gumbel"))

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> Scorer:
        return NgramScorer(self, arrays["ratios"], int(arrays["key"]))

    def features(self, texts: Sequence[str]) -> Hashed:
        """All n-grams of texts."""
        return ngrams(hashed(map(words_and_signs, texts)), self.n)


@dataclass(frozen=True, slots=True)
class NgramScorer:
    """Log ratios by bucket.

    Attributes:
        method: how features are made and texts are drawn.
        ratios: fp64 [buckets], log of the rate in the target over that in the sources, nats.
        key: of the noise.
    """

    method: NgramWeights
    ratios: NDArray[np.float64]
    key: int

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        blocks = (texts[first : first + AT_ONCE] for first in range(0, len(texts), AT_ONCE))
        return np.concatenate([np.zeros(0), *map(self._block, blocks)])

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"ratios": self.ratios, "key": np.array(self.key, np.uint64)}

    def _block(self, texts: Sequence[str]) -> NDArray[np.float64]:
        features = self.method.features(texts)
        found = sums_by_text(self.ratios[_buckets(features, len(self.ratios))], features.sizes)
        if self.method.draw == "highest":
            found /= np.maximum(features.sizes, 1)
        else:
            found += self._gumbel(texts)
        return np.where(features.sizes > 0, found, -np.inf)

    def _gumbel(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Noise of each text: the same text always has the same."""
        from xxhash import xxh3_64_intdigest

        drawn = [
            xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), self.key) for text in texts
        ]
        uniform = (np.array(drawn, np.uint64) >> np.uint64(11)).astype(np.float64)
        noise: NDArray[np.float64] = -np.log(-np.log((uniform + 0.5) * 2.0**-53))
        return noise


def _buckets(features: Hashed, number: int) -> NDArray[np.int64]:
    return (features.words % np.uint64(number)).astype(np.int64)
