"""What a training stage's files say of its progress, as one line on the screen."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.pace import Pace, format_seconds
from launcher.view import View

_LOOK_SECONDS = 1.0


class Follower:
    """Reads what has been added to the metrics of the stage that is running."""

    def __init__(
        self, folder_now: Callable[[], Path], view: View, place: str, clock: Callable[[], float]
    ) -> None:
        """Set up.

        Args:
            folder_now: of the stage that runs.
            view: shows the line.
            place: where it runs, such as ``2 hosts, 16 ranks``; may be empty.
            clock: seconds.
        """
        self._folder_now = folder_now
        self._view = view
        self._place = place
        self._clock = clock
        self._folder = Path()
        self._offset = 0
        self._pace = Pace()

    def look(self) -> None:
        """Show what is new; a stage that has given way to the next keeps its last line."""
        folder = self._folder_now()
        if folder != self._folder:
            self._view.keep_status()
            self._folder, self._offset = folder, _size(folder / "metrics.jsonl")
            self._pace = Pace()
        if (last := self._new_line()) is not None:
            self._pace.see(last["step"], self._clock())
            self._view.show(self._line(last))

    def _new_line(self) -> dict[str, Any] | None:
        """The last of the metrics that nobody has read yet."""
        path = self._folder / "metrics.jsonl"
        # A resumed run cuts away what lies after its checkpoint.
        self._offset = min(self._offset, _size(path))
        if self._offset == _size(path):
            return None
        with path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = [json.loads(line) for line in whole.splitlines()[-1:]]
        return found[0] if found else None

    def _line(self, last: dict[str, Any]) -> str:
        steps = last_start(self._folder).get("steps")
        left = self._pace.seconds_left(steps) if steps else None
        said = [f"{self._folder.name}: {format_metrics(last, steps)}"]
        if left:
            said.append(f"ETA {format_seconds(left)}")
        if self._place:
            said.append(f"({self._place})")
        return "  ".join(said)


class Progress(threading.Thread):
    """Follows the metrics, and lets the view tell of warnings, until it is told to stop."""

    def __init__(self, folder_now: Callable[[], Path], view: View, place: str = "") -> None:
        super().__init__(name="progress", daemon=True)
        self._view = view
        self._follower = Follower(folder_now, view, place, time.monotonic)
        self._end = threading.Event()

    def run(self) -> None:
        """Look each second."""
        while not self._end.wait(_LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self) -> None:
        try:
            self._follower.look()
        except (OSError, ValueError) as error:
            # A file that is being replaced, or a disk that fails: the run tells of the latter.
            self._view.show(f"(the progress cannot be read: {error})")
        self._view.tick()

    def stop(self) -> None:
        """Say the last line and end."""
        self._end.set()
        self.join(timeout=5)
        self._view.close()


def last_start(folder: Path) -> dict[str, Any]:
    """What a stage has told of its last start: ``steps``, ``ranks``; empty if it has not yet."""
    try:
        *_, last = (folder / "starts.jsonl").read_bytes().splitlines()
        return dict(json.loads(last))
    except (OSError, ValueError):
        return {}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def format_metrics(line: dict[str, Any], steps: int | None = None) -> str:
    """``step 120/500  loss 5.1234  3,400 tokens/s``."""
    said = [f"step {line['step']}{f'/{steps}' if steps else ''}"]
    for key, text in (("loss", "loss {:.4f}"), ("tokens_per_second", "{:,.0f} tokens/s")):
        if line.get(key) is not None:
            said.append(text.format(line[key]))
    return "  ".join(said)
