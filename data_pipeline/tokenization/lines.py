"""Lines of corpora, as sentencepiece's trainer takes them, and a sample of them that stays."""

import re
from collections.abc import Callable, Iterable, Iterator

from data_pipeline.randomness import keyed

Lines = Callable[[], Iterator[str]]

LONGEST = 1000
"""Characters of a line: at most 4,000 bytes. The trainer leaves out what is longer than 4,192."""
# Line ends, and what the trainer keeps for itself: it leaves out a line that holds one.
_ENDS = re.compile("[\n\r\t\u2585]")


def lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines that are more than space, those too long cut at blanks."""
    for text in texts:
        for line in _ENDS.split(text):
            start = 0
            while len(line) - start > LONGEST:
                stop = line.rfind(" ", start + 1, start + LONGEST)
                stop = start + LONGEST if stop < 0 else stop
                yield line[start:stop]
                start = stop
            if line[start:].strip():
                yield line[start:]


def sample(every: Lines, count: int, most: int) -> Iterator[str]:
    """About ``most`` of ``count`` lines, or all: the same ones each time, in their order."""
    if count <= most:
        yield from every()
        return
    threshold = int(most / count * 2**64)
    for place, line in enumerate(every()):
        if keyed(0, "lines", place) < threshold:
            yield line
