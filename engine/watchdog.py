"""Ends a run that hangs, on every rank; tells which rank is behind and where each one stands."""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

from pydantic import Field, ValidationError

from configs.errors import LaunchError, note_step
from configs.schema import Config

VERDICT = "hang"
_STATES = {
    "T": "stopped",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
    "D": "in the disk",
}
# Whoever is lost mostly makes the main thread raise; only if it does not, this must end it.
_UNTIL_THE_MAIN_THREAD_RAISES = 5.0
_UNTIL_OTHERS_TELL = 3.0


class Sign(Config):
    """A rank's last sign of life.

    Attributes:
        count: phases it has begun; equal on ranks that stand at the same place.
        phase: what it does, ``start`` before the first step.
        step: finished optimizer steps.
        silent: seconds since, when it told of this.
        neighbours: state in /proc of the other ranks on its host, by rank.
    """

    rank: int
    host: str
    pid: int
    count: int = 0
    phase: str = "start"
    step: int = 0
    silent: float = 0.0
    neighbours: dict[int, str] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def place(self) -> str:
        """Where it stands, for a message."""
        return f"in '{self.phase}' after {self.step} steps"


class Watchdog:
    """A thread that looks once a second whether this rank's main thread, or any rank's, goes on.

    ``enter`` is an observer of the loop: it keeps what it is told and does nothing else. When this
    rank has been silent for ``limit`` seconds, and every other one for half as long, it leaves the
    file ``hang``. Every rank that sees that file writes its stacks and its place beside it, and
    ends with LaunchError's code. Time in which the whole process was suspended does not count.

    It ends this rank, too, when another one is known to be lost and the main thread does not notice
    because it waits for a GPU.

    Attributes:
        is_wanted: whether the folder is still this launch's; else no word is left in it.
    """

    _at_work: ClassVar["Watchdog | None"] = None

    def __init__(
        self,
        folder: Path,
        limit: float,
        ranks: tuple[int, int],
        leave: Callable[[str, int], object],
        is_one_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up.

        Args:
            folder: where all ranks leave word; a file system that they share.
            limit: seconds without a sign of life that are too many.
            ranks: this one's number, and how many there are.
            leave: ends this process at once, with a last word and an exit code.
            is_one_lost: whether another rank is known to be gone.
        """
        self._folder = folder
        self._limit = limit
        self._world = ranks[1]
        self._leave = leave
        self._is_one_lost = is_one_lost
        self.is_wanted: Callable[[], bool] = lambda: True
        self._own = Sign(rank=ranks[0], host=socket.gethostname(), pid=os.getpid())
        self._period = min(1.0, limit / 10)
        self._place = (0, "start", 0)
        self._lives = 0
        self._seen: tuple[object, int] = (None, 0)
        self._others: dict[Path, str] = {}
        self._silent = 0.0
        self._lost = 0.0
        self._published = float("-inf")
        self._stacks: IO[str] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins a phase."""
        self._place = (self._place[0] + 1, phase, step)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stacks = _stacks_of(self._folder, self._own.rank).open("w", encoding="utf-8")
        Watchdog._at_work = self
        # A rank that is stopped before the thread's first look could not be named otherwise.
        _write(self._folder / f"sign-{self._own.rank}.json", self._sign())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            note_step(error, self._place[2])
        self._ended.set()
        self._thread.join()
        Watchdog._at_work = None
        faulthandler.cancel_dump_traceback_later()
        if self._stacks:
            self._stacks.close()
            with contextlib.suppress(OSError):
                _stacks_of(self._folder, self._own.rank).unlink(missing_ok=True)

    def _work(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._period):
            now = time.monotonic()
            # A suspended machine, or process, comes back after hours that were nobody's silence.
            passed, before = min(now - before, 2 * self._period), now
            self._listen(passed)
            if self._silent >= self._limit or (self._folder / VERDICT).exists():
                self._end()
                return
            self._lost = self._lost + passed if self._is_one_lost() else 0.0
            if self._lost >= _UNTIL_THE_MAIN_THREAD_RAISES:
                sign = self._sign()
                self._leave(f"{sign}, {sign.place}: connection closed by peer", 1)
                return

    def _listen(self, passed: float) -> None:
        """Count the silence of this rank, and cut it in half when another one has gone on."""
        if (seen := (self._place, self._lives)) != self._seen:
            self._seen, self._silent = seen, 0.0
            self._publish()
        else:
            self._silent += passed
        self._dump_if_python_stands_still()
        if self._silent >= self._limit / 2 and self._others_went_on():
            self._silent = self._limit / 2

    def _dump_if_python_stands_still(self) -> None:
        """C code that never lets go of the interpreter stops this thread, but not that timer."""
        if self._stacks:
            faulthandler.dump_traceback_later(self._limit + 2 * self._period, file=self._stacks)

    def _sign(self) -> Sign:
        count, phase, step = self._place
        silent = round(self._silent, 1)
        place = {"count": count, "phase": phase, "step": step, "silent": silent}
        return self._own.model_copy(update=place)

    def _publish(self) -> None:
        now = time.monotonic()
        if now - self._published >= self._limit / 20:
            self._published = now
            if not self.is_wanted():
                return
            _write(self._folder / f"sign-{self._own.rank}.json", self._sign())

    def _others_went_on(self) -> bool:
        """Whether one of them has published something new since the last look."""
        found = {path: _text(path) for path in self._folder.glob("sign-*.json")}
        before, self._others = self._others, found
        return bool(before) and before != found

    def _end(self) -> None:
        if not self.is_wanted():
            # What is seen there, or would be left there, is another launch's.
            self._leave("another launch runs here now; this rank ends", LaunchError.exit_code)
            return
        with contextlib.suppress(OSError):
            (self._folder / VERDICT).touch()
        if self._stacks:
            faulthandler.dump_traceback(self._stacks, all_threads=True)
            self._stacks.flush()
        states = {"neighbours": self._neighbours()}
        _write(_record_of(self._folder, self._own.rank), self._sign().model_copy(update=states))
        end = time.monotonic() + _UNTIL_OTHERS_TELL
        while time.monotonic() < end and len(_records(self._folder)) < self._world:
            time.sleep(0.1)
        self._leave(describe(self._folder, self._limit), LaunchError.exit_code)

    def _neighbours(self) -> dict[int, str]:
        others = [sign for sign in _signs(self._folder) if sign.rank != self._own.rank]
        return {sign.rank: state_of(sign.pid) for sign in others if sign.host == self._own.host}


def alive() -> None:
    """There is progress within a long phase: a part of a file that the main thread waits for."""
    dog = Watchdog._at_work
    if dog is not None:
        dog._lives += 1


def forget(folder: Path) -> None:
    """Remove what an earlier run has left; one rank does it, before any other watches."""
    for pattern in (VERDICT, "hang-rank-*", "sign-*.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def suspects(folder: Path) -> list[Sign]:
    """Ranks that kept the others waiting: the mute ones, or else those that are behind."""
    records = _records(folder)
    mute = _mute_ranks(folder, records)
    behind = min((record.count for record in records), default=0)
    late = [record for record in records if record.count == behind]
    return mute or (late if len(late) < len(records) else [])


def _mute_ranks(folder: Path, records: Sequence[Sign]) -> list[Sign]:
    told = {record.rank for record in records}
    return [sign for sign in _signs(folder) if sign.rank not in told]


def describe(folder: Path, limit: float) -> str:
    """What the ranks have left, as a message: who is behind, who is mute, where the stacks are."""
    records = _records(folder)
    mute = _mute_ranks(folder, records)
    lines = [f"nothing has gone on for {limit:g} s, so the run was ended"]
    lines += [_mute(sign, records) for sign in mute]
    lines += _standing(records)
    lines.append(
        f"Stacks of every thread: {folder}/hang-rank-*.txt\n"
        "Run the same command again to go on from the last checkpoint; if a step may take so long, "
        "give the stage a larger hang_after."
    )
    return "\n".join(lines)


def _mute(sign: Sign, records: Sequence[Sign]) -> str:
    states = [r.neighbours[sign.rank] for r in records if sign.rank in r.neighbours]
    state = next(iter(states), "stopped, dead, or cut off")
    return f"{sign} gives no sign: it is {state}; it was last seen {sign.place}"


def _standing(records: Sequence[Sign]) -> list[str]:
    if not records:
        return []
    last = min(record.count for record in records)
    behind = [record for record in records if record.count == last]
    ahead = [record for record in records if record.count > last]
    if not ahead:
        return [f"every rank that answers is {records[0].place}"]
    lines = [
        f"{record} is behind: {record.place}, silent for {record.silent:g} s" for record in behind
    ]
    places = sorted({record.place for record in ahead})
    return [*lines, f"the others wait {' or '.join(places)}"]


def state_of(pid: int) -> str:
    """What /proc says of a process of this host, in words."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "gone"
    letter = stat.rpartition(")")[2].split()[0]
    return f"{_STATES.get(letter, 'alive, but its Python does not run')} (state {letter})"


def _stacks_of(folder: Path, rank: int) -> Path:
    return folder / f"hang-rank-{rank}.txt"


def _record_of(folder: Path, rank: int) -> Path:
    return folder / f"hang-rank-{rank}.json"


def _records(folder: Path) -> list[Sign]:
    return _read(folder.glob("hang-rank-*.json"))


def _signs(folder: Path) -> list[Sign]:
    return _read(folder.glob("sign-*.json"))


def _read(paths: Iterable[Path]) -> list[Sign]:
    found = []
    for path in paths:
        with contextlib.suppress(ValidationError):
            found.append(Sign.model_validate_json(_text(path)))
    return sorted(found, key=lambda sign: sign.rank)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _write(path: Path, sign: Sign) -> None:
    """Whole or not at all; on a full disk not at all."""
    aside = path.with_name(f".{path.name}")
    try:
        aside.write_text(sign.model_dump_json(), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        sys.stderr.write(f"{path}: {error}\n")
