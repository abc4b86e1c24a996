"""How far a long piece of work is: a bar on a terminal, plain lines elsewhere, on stderr."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
SAY_EVERY = 30.0
_logger = logging.getLogger("data_pipeline")
_THOUSANDS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def metered(
    items: Iterable[Item],
    weights: Sequence[int],
    title: str,
    unit: str,
    told: Callable[[], str] = str,
) -> Iterator[Item]:
    """Hand ``items`` on, and show how much of all is done, how fast, and how long it will take.

    Args:
        items: the pieces of work, in order, as they are finished.
        weights: how much work each is.
        title: what the work is.
        unit: what the weights count, such as ``B``.
        told: called now and then: what has come of it.
    """
    from rich.console import Console

    console = Console(stderr=True)
    begun = time.monotonic()
    if console.is_terminal and not _logger.handlers:
        yield from _with_bar(items, weights, title, told, console)
    else:
        yield from _with_lines(items, weights, title, unit, told)
    seconds = time.monotonic() - begun
    rate = f" ({amount(sum(weights) / max(seconds, 1e-3), unit)}/s)" if unit else ""
    took = f" in {duration(seconds)}{rate}" if seconds >= 1 else ""
    say(f"{_with_told(title, ': ', told())}{took}")


def _with_told(line: str, separator: str, told: str) -> str:
    return f"{line}{separator}{told}" if told else line


def say(line: str) -> None:
    """One line on stderr, or to the log where a launch has set one up."""
    if _logger.handlers:
        _logger.info("%s", line)
    else:
        from rich.console import Console

        Console(stderr=True).print(line, highlight=False, soft_wrap=True, markup=False)


def _with_lines(
    items: Iterable[Item], weights: Sequence[int], title: str, unit: str, told: Callable[[], str]
) -> Iterator[Item]:
    total, done = sum(weights), 0
    begun = said = time.monotonic()
    for item, weight in zip(items, weights, strict=True):
        yield item
        done += weight
        now = time.monotonic()
        if now - said >= SAY_EVERY and done < total:
            said = now
            line = f"{title}: {progress(done, total, now - begun, unit)}"
            say(_with_told(line, "; ", told()))


def _with_bar(
    items: Iterable[Item],
    weights: Sequence[int],
    title: str,
    told: Callable[[], str],
    console: "Console",
) -> Iterator[Item]:
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(title),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=sum(weights), told="")
        for item, weight in zip(items, weights, strict=True):
            yield item
            bar.update(task, advance=weight, told=told())


def progress(done: float, total: float, seconds: float, unit: str) -> str:
    """``1.2 of 3.4 GB (35%), 4.5 MB/s, 8 min left``."""
    rate = done / max(seconds, 1e-9)
    left = duration((total - done) / rate) if rate else "unknown time"
    share = f"{amount(done, unit)} of {amount(total, unit)} ({done / total:.0%})"
    return f"{share}, {amount(rate, unit)}/s, {left} left"


def amount(value: float, unit: str) -> str:
    """``1.2 GB``; three digits at most."""
    for size, letter in _THOUSANDS:
        if value >= size:
            return f"{value / size:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """``8 s``, ``8 min`` or ``8 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
