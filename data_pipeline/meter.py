"""How far a long piece of work is: a bar on a terminal, plain lines elsewhere, on stderr."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Item = TypeVar("Item")


def metered(
    items: Iterable[Item],
    total: int,
    title: str,
    told: Callable[[], str] = str,
) -> Iterator[Item]:
    """Hand ``items`` on, and show how many of ``total`` are done.

    Args:
        items: the pieces of work, as they are finished.
        total: how many there will be.
        title: what the work is.
        told: called when all are done: what came of them.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from _with_bar(items, total, title, console)
    else:
        yield from items
    console.print(f"{title}: {told()}".removesuffix(": "), highlight=False, soft_wrap=True)


def _with_bar(items: Iterable[Item], total: int, title: str, console: Console) -> Iterator[Item]:
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        for item in items:
            yield item
            bar.advance(task)
