"""What was chosen, in numbers: the scores of all, of those kept, and of a random choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.randomness import keyed

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
SHOWN = 5


@dataclass(frozen=True, slots=True)
class Judged:
    """Every document of the sources, in order.

    Attributes:
        scores: fp64 [N], -inf where there was nothing to judge.
        characters: int64 [N].
        starts: int64 [parts + 1], first document of each part.
        sources: int64 [parts], which source each part is of.
    """

    scores: NDArray[np.float64]
    characters: NDArray[np.int64]
    starts: NDArray[np.int64]
    sources: NDArray[np.int64]

    def part_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part that each document is of."""
        return np.searchsorted(self.starts, documents, "right") - 1


@dataclass(frozen=True, slots=True)
class Choice:
    """What is kept.

    Attributes:
        judged: all documents.
        ranked: int64 [kept], best first.
        seed: of the random choice it is compared with.
    """

    judged: Judged
    ranked: NDArray[np.int64]
    seed: int

    def shown(self) -> dict[str, list[int]]:
        """Documents at both ends and on both sides of the border, by what they are."""
        scores = self.judged.scores
        order = np.lexsort((np.arange(len(scores)), -scores))
        known = order[: int(np.count_nonzero(scores > -np.inf))]
        kept = len(self.ranked)
        return {
            "best": self.ranked[:SHOWN].tolist(),
            "last_kept": self.ranked[-SHOWN:].tolist(),
            "first_left_out": known[kept : kept + SHOWN].tolist(),
            "worst": known[kept:][-SHOWN:].tolist(),
        }

    def describe(self, source_names: Sequence[str]) -> dict[str, Any]:
        """Counts, percentiles of the scores, and what a random choice would have had."""
        judged = self.judged
        known = np.flatnonzero(judged.scores > -np.inf)
        rng = np.random.Generator(np.random.Philox(keyed(self.seed, "random choice")))
        random = rng.choice(known, len(self.ranked), replace=False)
        common = len(np.intersect1d(random, self.ranked))
        characters = int(judged.characters[self.ranked].sum())
        return {
            "documents": len(judged.scores),
            "nothing_to_judge": len(judged.scores) - len(known),
            "characters": int(judged.characters.sum()),
            "kept": {
                "documents": len(self.ranked),
                "share": round(len(self.ranked) / len(judged.scores), 6),
                "characters": characters,
                "by_source": self._by_source(source_names),
            },
            "scores": {
                "all": _percentiles(judged.scores[known]),
                "kept": _percentiles(judged.scores[self.ranked]),
                "random_choice": _percentiles(judged.scores[random]),
            },
            "random_choice": {
                "in_common": common,
                "share": round(common / len(self.ranked), 6),
                "expected_share": round(len(self.ranked) / len(known), 6),
            },
        }

    def _by_source(self, names: Sequence[str]) -> list[Mapping[str, Any]]:
        judged = self.judged
        parts = judged.part_of(self.ranked)
        kept = np.bincount(judged.sources[parts], minlength=len(names))
        sizes = np.zeros(len(names), np.int64)
        np.add.at(sizes, judged.sources, np.diff(judged.starts))
        rows = zip(names, sizes.tolist(), kept.tolist(), strict=True)
        return [{"source": name, "documents": size, "kept": count} for name, size, count in rows]


def _percentiles(scores: NDArray[np.float64]) -> dict[str, float]:
    found = np.percentile(scores, PERCENTILES).round(6).tolist()
    return {str(at): value for at, value in zip(PERCENTILES, found, strict=True)} | {
        "mean": round(float(scores.mean()), 6)
    }
