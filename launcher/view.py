"""What a person sees of a launch: one line of progress, and what ranks say above it."""

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from launcher.logs import append_line
from launcher.processes import Tell
from launcher.rank_log import Said
from launcher.run_folder import now

if TYPE_CHECKING:
    from pathlib import Path

PLAIN_SECONDS = 10.0
"""Between two lines of progress where they cannot be refreshed in place."""
_GATHER_SECONDS = 1.0


@dataclass
class _Warning:
    """One text, and who has said it since it was first heard."""

    since: float
    ranks: set[int] = field(default_factory=set)
    hosts: set[str] = field(default_factory=set)
    times: int = 0


class View:
    """Puts lines on the screen; safe to use from any thread.

    On a terminal the progress is one line that is refreshed, and everything else goes above it.
    Equal warnings of many ranks become one. Whether somebody can still read it is no matter.

    Attributes:
        warnings_log: the file that keeps the warnings, too.
    """

    def __init__(
        self,
        tell: Tell,
        screen: TextIO,
        environment: Mapping[str, str],
        *,
        one_host: bool,
    ) -> None:
        """Set up.

        Args:
            tell: takes one line.
            screen: where ``tell`` puts it: lines are refreshed if that is a terminal.
            environment: NO_COLOR and TERM.
            one_host: all ranks are on this machine: hosts need no name.
        """
        self._tell = tell
        self._screen = screen
        self.warnings_log: Callable[[], Path | None] = lambda: None
        self._one_host = one_host
        is_terminal = screen.isatty() and environment.get("TERM") not in {None, "", "dumb"}
        self._is_live = is_terminal
        self._yellow, self._plain = ("\x1b[33m", "\x1b[0m") if is_terminal else ("", "")
        if environment.get("NO_COLOR"):
            self._yellow = self._plain = ""
        self._lock = threading.RLock()
        self._warnings: dict[str, _Warning] = {}
        self._status = ""
        self._shown = ""
        self._told_at = time.monotonic()

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._wipe()
            self._tell(line)
            self._draw()

    def hear(self, said: Said) -> None:
        """What a rank says: a warning waits a moment for its like."""
        if not said.is_warning:
            self.say(f"{self._who([said.rank], [said.host])}{said.text}")
            return
        with self._lock:
            found = self._warnings.setdefault(said.text, _Warning(time.monotonic()))
            found.ranks.add(said.rank)
            found.hosts.add(said.host)
            found.times += 1

    def show(self, status: str) -> None:
        """The progress as it is now; where lines stay, one is told now and then."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._status = status
            if self._is_live:
                self._draw()
            elif time.monotonic() - self._told_at >= PLAIN_SECONDS:
                self._keep_status()

    def keep_status(self) -> None:
        """The progress as it is now becomes a line that stays."""
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._keep_status()

    def tick(self) -> None:
        """Tell of the warnings that have waited long enough; call it about each second."""
        self._tell_warnings(time.monotonic() - _GATHER_SECONDS)

    def close(self) -> None:
        """Tell what waits to be told."""
        self._tell_warnings(float("inf"))
        self.keep_status()

    def _tell_warnings(self, before: float) -> None:
        with self._lock:
            due = [text for text, found in self._warnings.items() if found.since <= before]
            for text in due:
                found = self._warnings.pop(text)
                again = f"  ({found.times} times)" if found.times > len(found.ranks) else ""
                line = f"{self._who(found.ranks, found.hosts)}{text}{again}"
                self.say(f"{self._yellow}{line}{self._plain}")
                if (log := self.warnings_log()) is not None:
                    append_line(log, f"{now()} {line}\n")

    def _who(self, ranks: Iterable[int], hosts: Iterable[str]) -> str:
        """``rank 0-15: ``; nothing for rank 0 alone, which speaks for the run."""
        numbers, names = sorted(ranks), sorted(hosts)
        if numbers == [0]:
            return ""
        where = f" on {names[0]}" if len(names) == 1 and not self._one_host else ""
        return f"rank {format_ranks(numbers)}{where}: "

    def _keep_status(self) -> None:
        self._told_at = time.monotonic()
        if self._status:
            self._wipe()
            self._tell(self._status)
            self._status = ""

    def _wipe(self) -> None:
        if self._shown:
            self._screen.write("\r\x1b[K")
            self._shown = ""

    def _draw(self) -> None:
        if not self._is_live or self._status == self._shown:
            return
        self._wipe()
        # A line that is broken at the edge cannot be taken back.
        width = shutil.get_terminal_size().columns - 1
        self._screen.write(self._status[:width])
        self._screen.flush()
        self._shown = self._status


def format_ranks(numbers: Iterable[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
