"""The launcher's heartbeat: ranks on other hosts know by it whether they are still wanted.

ssh hands on no signal, and a launcher that was killed sends none. So the launcher counts in a file
that all ranks see. They compare what they read with what they read before, and no clock with
another machine's.
"""

import contextlib
import json
import math
import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from configs.errors import RecipeError
from launcher.run_folder import write_atomically

ALIVE = "alive"
OVER = "over"
"""In the launch folder: nobody waits for this launch any more, and what is left of it ends."""
BEAT_SECONDS = 5.0
SILENCE_SECONDS = 60.0
_LEAST_SILENCE = 1.0
# One look counts for so much at most: a process that was suspended has not listened.
_MOST_A_LOOK = 2.0

Sign = Literal["alive", "waiting", "silent", "other", "over"]


def new_launch_id() -> str:
    """A name that no other launch has."""
    return secrets.token_hex(6)


def silence_seconds(environment: Mapping[str, str]) -> float:
    """After how long without a beat ranks stop; RecipeError for what is no such number."""
    given = environment.get("ONWARD_LAUNCHER_SILENCE", "")
    try:
        seconds = float(given or SILENCE_SECONDS)
    except ValueError:
        seconds = math.nan
    if not _LEAST_SILENCE <= seconds < math.inf:
        msg = (
            f"ONWARD_LAUNCHER_SILENCE={given}: expected seconds, {_LEAST_SILENCE:g} or more, after "
            f"which ranks that hear nothing of the launcher save and stop; {SILENCE_SECONDS:g} "
            "without it"
        )
        raise RecipeError(msg)
    return seconds


class Heartbeat(threading.Thread):
    """Counts in the file ``alive`` of a launch folder while the launcher lives."""

    def __init__(self, folder: Path, launch_id: str, silence: float = SILENCE_SECONDS) -> None:
        """Write the file for the first time; ResourceError if that cannot be."""
        super().__init__(name="heartbeat", daemon=True)
        self._path = folder / ALIVE
        self._launch_id = launch_id
        self._silence = silence
        self._count = 0
        self._ended = threading.Event()
        write_atomically(self._path, self._text())

    def run(self) -> None:
        """A beat now and then."""
        while not self._ended.wait(min(BEAT_SECONDS, self._silence / 4)):
            self._count += 1
            # Always as long, into the same place: a full disk has room for that.
            with contextlib.suppress(OSError), self._path.open("r+b") as file:
                file.write(self._text().encode())
                file.flush()
                os.fsync(file.fileno())

    def stop(self) -> None:
        """No beat from now on."""
        self._ended.set()
        self.join(timeout=5)

    def _text(self) -> str:
        told = {"launch": self._launch_id, "silence": self._silence, "count": f"{self._count:012d}"}
        return json.dumps(told) + "\n"


def end_launch(folder: Path) -> None:
    """Tell ranks that are left of a launch to end at once; where the disk refuses, nobody is told.

    The file names the launch: a shared file system may still show an earlier one's.
    """
    told = _read(folder)
    if told is not None:
        with contextlib.suppress(OSError):
            (folder / OVER).write_text(told["launch"], encoding="utf-8")


@contextmanager
def heard(root: Path, folder: Path, launch_id: str, silence: float) -> Iterator[None]:
    """Within it ranks hear that the launcher lives; afterwards that they are to end.

    ``root``: of the run, whose earlier launches are over.
    """
    heartbeat = Heartbeat(folder, launch_id, silence)
    _end_others(root, folder)
    heartbeat.start()
    try:
        yield
    finally:
        # Ranks of other hosts whose ssh is gone have got no signal.
        end_launch(folder)
        heartbeat.stop()


def _end_others(root: Path, folder: Path) -> None:
    """Tell those of every earlier launch of a run that they are not wanted; ``folder``: the new."""
    for other in root.glob("*/launch"):
        if other != folder and not (other / OVER).exists():
            end_launch(other)


class Pulse:
    """A rank's side: what it makes of the file, look by look."""

    def __init__(self, folder: Path, launch_id: str) -> None:
        self._folder = folder
        self._launch_id = launch_id
        self._last: object = None
        self._other: object = None
        self._has_seen_own = False
        self._silent = 0.0
        self._before = time.monotonic()
        self.limit = SILENCE_SECONDS

    def look(self) -> Sign:
        """How things stand now.

        ``other``: the run folder belongs to a later launch; ``over``: this one has been ended;
        ``waiting``: the file still tells of an earlier one, as a shared file system does for a
        while; ``silent``: nothing has changed for ``limit`` seconds.
        """
        now = time.monotonic()
        self._silent += min(now - self._before, _MOST_A_LOOK)
        self._before = now
        told = _read(self._folder)
        if told is not None and told["launch"] != self._launch_id:
            return self._meets_another(told)
        if told is not None and told != self._last:
            self._last, self._silent, self._has_seen_own = told, 0.0, True
            self.limit = float(told["silence"])
        if self._is_over():
            return "over"
        return "silent" if self._silent >= self.limit else "alive"

    def is_own(self) -> bool:
        """Whether no later launch has taken the folder; from any thread, and at any time."""
        told = _read(self._folder)
        return told is None or told["launch"] == self._launch_id

    def _meets_another(self, told: Mapping[str, str]) -> Sign:
        """Another that counts on, or that has come after this one, is the one that is wanted."""
        before, self._other = self._other, told
        if self._has_seen_own or (before is not None and before != told):
            return "other"
        return "silent" if self._silent >= self.limit else "waiting"

    def _is_over(self) -> bool:
        try:
            return (self._folder / OVER).read_text(encoding="utf-8") == self._launch_id
        except (OSError, ValueError):
            return False


def _read(folder: Path) -> dict[str, str] | None:
    """What stands in ``alive``; None while there is nothing that can be read."""
    try:
        told = json.loads((folder / ALIVE).read_bytes())
        return {name: str(told[name]) for name in ("launch", "silence", "count")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
