"""A program for a test: saves in a child that dies by SIGKILL before its n-th file operation.

Prints one JSON object a death: {point, alive: what a reader finds, leftovers after the next save}.
Runs in its own interpreter because forking needs one without threads, and audit hooks stay.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from engine.checkpoint import newest, prune
from engine.checkpoint.commit import ASIDE, problems_of
from tests.engine.checkpoint.fakes import save_step

WATCHED = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}


class Reaper:
    """Counts what a process does to files under a folder, and kills it at one of them."""

    def __init__(self, root: Path, fatal: int) -> None:
        self._root = str(root)
        self._fatal = fatal
        self._count = 0
        self._sync = os.fsync
        sys.addaudithook(self._audit)
        os.fsync = self._fsync

    def tick(self) -> None:
        self._count += 1
        if self._count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and str(arguments[0]).startswith(self._root):
            self.tick()

    def _fsync(self, handle: Any) -> None:
        self.tick()
        self._sync(handle)


def prepare(root: Path, scene: str) -> None:
    save_step(root, 4)
    if scene == "over_a_broken_one":
        broken = save_step(root, 8)
        (broken / "state.json").write_bytes(b"")


def survives(root: Path, fatal: int) -> bool:
    """Save step 8 and prune in a child; False if it was killed on the way."""
    child = os.fork()
    if child == 0:
        reaper = Reaper(root, fatal)
        save_step(root, 8, before_copy=reaper.tick)
        prune(root, keep=1, newest=8)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


def main(folder: Path, scene: str) -> None:
    for point in range(1, 500):
        root = folder / f"{scene}-{point}"
        prepare(root, scene)
        ended = survives(root, point)
        found = newest(root, "recipe")
        whole = found is not None and not problems_of(found.folder)
        save_step(root, 8)
        report = {
            "point": point,
            "ended": ended,
            "alive": found.step if found else None,
            "whole": whole,
            "afterwards": [f.name for f in sorted(root.iterdir()) if f.name.startswith(ASIDE)],
        }
        sys.stdout.write(json.dumps(report) + "\n")
        if ended:
            return


main(Path(sys.argv[1]), sys.argv[2])
