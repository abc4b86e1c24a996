"""Curves kept short while a file of numbers grows, and drawn as SVG of a few lines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MOST_POINTS = 1000
WIDTH, HEIGHT = 560, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 10, 24


@dataclass
class Curve:
    """Steps and values; when there are too many, every second one goes."""

    points: list[tuple[int, float]] = field(default_factory=list)

    def add(self, step: int, value: float | None) -> None:
        """The next point; None is no number."""
        if value is None:
            return
        if len(self.points) >= _MOST_POINTS:
            self.points = self.points[::2]
        self.points.append((step, value))


class Growing:
    """A file of JSON objects a line that grows, and is cut and replaced when a run goes back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """Whether everything is to be taken anew, and the lines since the last look."""
        try:
            with self._path.open("rb") as file:
                found = self._path.stat()
                anew = found.st_ino != self._file or found.st_size < self._offset
                self._file, self._offset = found.st_ino, 0 if anew else self._offset
                file.seek(self._offset)
                read = file.read()
        except FileNotFoundError:
            anew, self._file, self._offset = self._file != 0, 0, 0
            return anew, []
        whole = read[: read.rfind(b"\n") + 1]
        self._offset += len(whole)
        return anew, [json.loads(line) for line in whole.splitlines()]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve on a chart: ``x,y x,y ...`` for an SVG polyline, its name, and its last value."""

    name: str
    points: str
    last_text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over steps, ready to be drawn.

    Attributes:
        x_ticks: (place, text).
        y_ticks: (place, text).
    """

    title: str
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def draw(title: str, curves: Mapping[str, Curve]) -> Chart | None:
    """Place the curves on one chart; None where there is nothing to draw."""
    named = {name: curve.points for name, curve in curves.items() if curve.points}
    if not named:
        return None
    steps = [step for points in named.values() for step, _ in points]
    values = [value for points in named.values() for _, value in points]
    x, y = _Axis(min(steps), max(steps)), _Axis(min(values), max(values))

    def right(step: float) -> float:
        return round(_LEFT + x.share(step) * (WIDTH - _LEFT - _RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - _BOTTOM - y.share(value) * (HEIGHT - _TOP - _BOTTOM), 1)

    lines = [
        Line(name, " ".join(f"{right(s)},{down(v)}" for s, v in points), _text(points[-1][1]))
        for name, points in named.items()
    ]
    return Chart(
        title,
        lines,
        [(right(step), f"{step:,.0f}") for step in x.ticks()],
        [(down(value), _text(value)) for value in y.ticks()],
    )


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one; the middle where they are the same."""
        return (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5

    def ticks(self) -> Iterator[float]:
        """Both ends and the middle."""
        yield self.low
        if self.high > self.low:
            yield (self.low + self.high) / 2
            yield self.high
