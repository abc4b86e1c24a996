"""How fast a run goes on, and how long it will take: all that happens between steps counts."""

from collections import deque
from itertools import pairwise
from statistics import median

_KEPT = 100
_BLOCKS = 5


class Pace:
    """Seconds a step, from when which step was seen; one clock, in seconds.

    Recent steps in five blocks, and the median of the blocks' means: validations and saves, which
    come again and again, count; one long standstill does not.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def see(self, step: int, at: float) -> None:
        """So many steps were finished at that time; fewer than before begin anew."""
        if self._seen and step < self._seen[-1][0]:
            self._seen.clear()
        if not self._seen or step > self._seen[-1][0]:
            self._seen.append((step, at))

    def seconds_a_step(self) -> float | None:
        """None before two were seen."""
        seen = list(self._seen)
        gaps = len(seen) - 1
        if gaps < 1:
            return None
        blocks = min(_BLOCKS, gaps)
        edges = [seen[round(gaps * number / blocks)] for number in range(blocks + 1)]
        return median((end[1] - start[1]) / (end[0] - start[0]) for start, end in pairwise(edges))

    def seconds_left(self, steps: int) -> float | None:
        """Until so many steps are finished; None where nothing can be said."""
        each = self.seconds_a_step()
        if each is None:
            return None
        return max(0, steps - self._seen[-1][0]) * each


def format_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``: as exact as an estimate is."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"
