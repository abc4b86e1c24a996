"""The long tail of a corpus: how much of it is words that are seen only a few times."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.analysis.counts import Counts

FITTED_RANKS = 50
LEAST_FITTED = 10
STEPS = (1, 2, 5)


def long_tail(words: Counts, rare: int) -> dict[str, Any]:
    """Words by how often they are seen.

    Args:
        words: of a corpus.
        rare: a word seen at most so often belongs to the tail.

    Returns:
        ``bands``: from, to (how often a word is seen), words, share_of_words, share_of_tokens (of
        running words); ``rare_at_most``, ``rare_words`` and ``rare_tokens``: the tail's shares;
        ``once_words`` and ``once_tokens``: of the words seen once; ``zipf_slope``.
    """
    counts, total = words.counts, words.total
    bands = []
    for low, high in _bands(int(counts.max(initial=1))):
        inside = counts[(counts >= low) & (counts <= high)]
        bands.append(
            {
                "from": low,
                "to": high,
                "words": len(inside),
                "share_of_words": _share(len(inside), len(counts)),
                "share_of_tokens": _share(int(inside.sum()), total),
            }
        )
    shares = {}
    for name, most in (("rare", rare), ("once", 1)):
        tail = counts[counts <= most]
        shares[f"{name}_words"] = _share(len(tail), len(counts))
        shares[f"{name}_tokens"] = _share(int(tail.sum()), total)
    return {"bands": bands, "rare_at_most": rare, **shares, "zipf_slope": zipf_slope(counts)}


def zipf_slope(counts: NDArray[np.int64]) -> float | None:
    """Slope of log count over log rank, about -1 for most texts (Zipf, 1949).

    Least squares over ranks that lie evenly in the logarithm, of words seen at least
    ``LEAST_FITTED`` times: below, counts are whole numbers and the curve is stairs. None where
    fewer than ten words are.
    """
    seen = np.sort(counts[counts >= LEAST_FITTED])[::-1]
    if len(seen) < 10:
        return None
    ranks = np.unique(np.geomspace(1, len(seen), FITTED_RANKS).round().astype(np.int64))
    slope = np.polynomial.polynomial.polyfit(np.log(ranks), np.log(seen[ranks - 1]), 1)[1]
    return round(float(slope), 4)


def unseen(first: Counts, second: Counts) -> dict[str, float]:
    """Which share of the first one's words the second never has: distinct ones, running ones."""
    new = ~np.isin(first.keys, second.keys, assume_unique=True)
    return {
        "words": _share(int(np.count_nonzero(new)), len(first.keys)),
        "tokens": _share(int(first.counts[new].sum()), first.total),
    }


def _bands(most: int) -> list[tuple[int, int]]:
    """1, 2, 3 to 5, 6 to 10, 11 to 20, ... as far as ``most``."""
    bands: list[tuple[int, int]] = []
    low, power = 1, 1
    while low <= most:
        for step in STEPS:
            if low <= most:
                bands.append((low, step * power))
                low = step * power + 1
        power *= 10
    return bands


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
