"""A program for a test: saves in a child that dies by SIGKILL before its n-th file operation.

The scene says what lies there before, and whether the child writes at once or behind the training.

Prints one JSON object a death: {point, alive: what a reader finds, leftovers after the next save}.
Runs in its own interpreter because forking needs one without threads, and audit hooks stay.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch  # before the fork, while there is no thread

from engine.checkpoint import commit, newest
from engine.checkpoint.commit import ASIDE, problems_of
from engine.checkpoint.save import Alone
from engine.checkpoint_policy import CheckpointConfig
from engine.hooks import CheckpointHook
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import LiveBackend, save_step

torch.set_num_threads(1)
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
        self._write = commit._write_all
        commit._write_all = self._write_all

    def tick(self) -> None:
        self._count += 1
        if self._count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in WATCHED and str(arguments[0]).startswith(self._root):
            self.tick()

    def _write_all(self, file: Any, rest: memoryview) -> None:
        self.tick()
        self._write(file, rest)

    def _fsync(self, handle: Any) -> None:
        self.tick()
        self._sync(handle)


def prepare(root: Path, scene: str) -> None:
    save_step(root, 4)
    if scene.startswith("over_a_broken_one"):
        broken = save_step(root, 8)
        (broken / "state.json").write_bytes(b"")


def survives(root: Path, fatal: int, mode: Any) -> bool:
    """Save step 8 and prune in a child; False if it was killed on the way."""
    child = os.fork()
    if child == 0:
        backend: Any = LiveBackend(8)
        policy = CheckpointConfig(every=4, keep=1, mode=mode)
        hook = CheckpointHook(root, "recipe", lambda _: {"cursor": 64}, policy, 100, ranks=Alone())
        Reaper(root, fatal)
        hook.on_start(backend, Progress(4))
        hook.after_step(backend, Progress(8), None)  # type: ignore[arg-type]  # it looks at no record
        if mode == "async":
            backend.train(9)
        hook.on_end(backend, Progress(8))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return status == 0


def holds_step(root: Path, step: int) -> bool:
    """Whether the values are those of that step, not what came after it."""
    found = newest(root, "recipe")
    if found is None:
        return False
    store = found.store()
    return all(
        store.whole(piece.name, piece.key).reshape(-1).equal(piece.tensor)
        for piece in LiveBackend(step).held
    )


def main(folder: Path, scene: str) -> None:
    for point in range(1, 500):
        root = folder / f"{scene}-{point}"
        prepare(root, scene)
        ended = survives(root, point, "async" if scene.endswith("async") else "sync")
        found = newest(root, "recipe")
        whole = found is not None and not problems_of(found.folder) and holds_step(root, found.step)
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
