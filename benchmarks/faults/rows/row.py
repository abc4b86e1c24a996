"""What a row of the fault matrix is: a fault, a promise, and how often the promise was kept."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Figure = float | int | str


@dataclass(frozen=True, slots=True)
class Measured:
    """What trying a fault has shown.

    Attributes:
        held: how often the promise was kept.
        of: how often the fault was tried.
        figures: what was measured beside, such as seconds until it was noticed: words -> value.
        notes: what went wrong where it was not kept, and what could not be tried.
    """

    held: int
    of: int
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether the promise was kept each time, of at least one."""
        return self.held == self.of > 0


@dataclass(frozen=True, slots=True)
class Row:
    """A fault and what is promised of it.

    Attributes:
        id: such as ``F18``.
        fault: what is done, in a few words.
        promise: what must come of it.
        measure: tries it, given how often and an empty folder to work in. ResourceError where
            this machine cannot (no root, a program that is not installed).
        repeats: how often it is tried if nobody says otherwise.
    """

    id: str
    fault: str
    promise: str
    measure: Callable[[int, Path], Measured]
    repeats: int = 3
