"""What a training stage's metrics.jsonl says, as a line on the screen now and then."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.processes import Tell

SECONDS = 10.0


class Follower:
    """Reads what has been added to the metrics of the stage that is running."""

    def __init__(self, folder_now: Callable[[], Path], tell: Tell) -> None:
        self._folder_now = folder_now
        self._tell = tell
        self._folder = Path()
        self._offset = 0
        self._last: dict[str, Any] | None = None

    def look(self) -> None:
        """Take in what is new; a stage that has given way to the next has its last line told."""
        folder = self._folder_now()
        if folder != self._folder:
            self.say()
            self._folder, self._offset = folder, _size(folder / "metrics.jsonl")
        path = self._folder / "metrics.jsonl"
        # A resumed run cuts away what lies after its checkpoint.
        self._offset = min(self._offset, _size(path))
        if self._offset == _size(path):
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._last = json.loads(line)

    def say(self) -> None:
        """Tell the newest line, if nobody has heard it."""
        if self._last is not None:
            self._tell(f"{self._folder.name}: {format_metrics(self._last)}")
            self._last = None


class Progress(threading.Thread):
    """Follows the metrics until it is told to stop; a line every few seconds."""

    def __init__(self, folder_now: Callable[[], Path], tell: Tell) -> None:
        super().__init__(name="progress", daemon=True)
        self._follower = Follower(folder_now, tell)
        self._end = threading.Event()

    def run(self) -> None:
        """Look each second, say what is new now and then."""
        said = time.monotonic()
        while not self._end.wait(1.0):
            self._follower.look()
            if time.monotonic() - said >= SECONDS:
                said = time.monotonic()
                self._follower.say()
        self._follower.look()
        self._follower.say()

    def stop(self) -> None:
        """Say the last line and end."""
        self._end.set()
        self.join(timeout=5)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def format_metrics(line: dict[str, Any]) -> str:
    """``step 120  loss 5.1234  3,400 tokens/s``."""
    said = [f"step {line['step']}"]
    for key, text in (("loss", "loss {:.4f}"), ("tokens_per_second", "{:,.0f} tokens/s")):
        if line.get(key) is not None:
            said.append(text.format(line[key]))
    return "  ".join(said)
