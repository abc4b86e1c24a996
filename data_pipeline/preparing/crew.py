"""Those who share the tasks of a board: who does which, who waits for whom, who is lost."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from configs.errors import BY_NAME, LaunchError, OnwardError
from configs.stage import Share
from data_pipeline.meter import metered, say
from data_pipeline.parallel import Workers
from data_pipeline.preparing import heartbeat
from data_pipeline.preparing.board import Assignment, Board, Phase, carry_out
from data_pipeline.whole_file import write_whole

BEAT_SECONDS = 10.0
LOST_AFTER = 300.0
"""Seconds without a sign of life; network file systems may hold back news for a minute."""
_SAY_EVERY = 60.0


def own_tasks(phase: Phase, share: Share) -> list[Any]:
    """The tasks of a phase that fall to one participant."""
    return list(phase.tasks[share.index :: share.count])


def perform(board: Board, phase: Phase, share: Share, workers: Workers) -> None:
    """Do all own tasks of a phase that are not done yet."""
    undone = []
    for task in own_tasks(phase, share):
        if board.is_done(phase.name, task.name):
            phase.watch(task, board.facts(phase.name, task.name))
        else:
            undone.append(task)
    if not undone:
        return
    # One task is done here: it may use all the machine's cores, which a process of many may not.
    alone = len(phase.tasks) == 1
    assigned = [Assignment(board, phase.name, task) for task in undone]
    results = map(carry_out, assigned) if alone else workers.map(carry_out, assigned)
    told: Counter[str] = Counter()
    if phase.title:
        weights = [task.weight for task in undone]
        # What is counted is what this one does.
        part = "" if alone or share.count == 1 else f" (share {share.index + 1} of {share.count})"
        title = f"{phase.title}{part}"
        results = metered(results, weights, title, phase.unit, lambda: _counted(told))
    for task, facts in zip(undone, results, strict=True):
        told.update(facts.get("told", {}))
        phase.watch(task, facts)


def _counted(told: Counter[str]) -> str:
    """Such as ``1 shard, 2,000 tokens``; the names are plurals."""
    return ", ".join(
        f"{count:,} {name.removesuffix('s') if count == 1 else name}"
        for name, count in told.items()
    )


@dataclass(slots=True)
class _Seen:
    """What was last seen of a participant, and when by this process's clock."""

    facts: dict[str, Any]
    since: float


@dataclass(slots=True)
class Crew:
    """All participants, as one of them sees them.

    Attributes:
        folder: where their signs of life lie.
        share: this one's.
    """

    folder: Path
    share: Share
    _pulse: "subprocess.Popen[bytes] | None" = None
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _old_failures: dict[int, bytes] = field(default_factory=dict)

    def __enter__(self) -> "Crew":
        if self.share.count > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            for index in range(self.share.count):
                self._old_failures[index] = _content(self._failure(index))
            self._pulse = subprocess.Popen(
                [sys.executable, "-I", "-S", heartbeat.__file__, self._sign(self.share.index),
                 str(BEAT_SECONDS)],
                stdin=subprocess.PIPE,
            )  # fmt: skip
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pulse is None:
            return
        self._pulse.communicate()
        if error is not None:
            self._tell_failure(error)
        else:
            self._leave()

    def wait_for(self, board: Board, phase: Phase) -> None:
        """Until every task of a phase is done.

        Raises:
            OnwardError: another participant has failed: its error.
            LaunchError: another one has given no sign of life for too long.
        """
        owners = {task.name: at % self.share.count for at, task in enumerate(phase.tasks)}
        said = time.monotonic()
        pause = 0.05
        while missing := owners.keys() - board.done(phase.name):
            waited_for = Counter(owners[name] for name in missing)
            self._look(waited_for)
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                names = ", ".join(f"{self._name(i)}: {n}" for i, n in sorted(waited_for.items()))
                title = phase.title or phase.name
                say(f"{title}: waiting for {len(missing)} tasks of others ({names})")
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def wait_until_all_have_left(self) -> None:
        """So that what they read can be removed; one that died after its last task has left."""
        others = [index for index in range(self.share.count) if index != self.share.index]
        while others:
            try:
                self._look(Counter(others))
            except LaunchError:
                return
            others = [index for index in others if not self._seen[index].facts.get("left")]
            time.sleep(0.05 if others else 0)

    def _look(self, waited_for: "Counter[int]") -> None:
        for index in range(self.share.count):
            content = _content(self._failure(index))
            if index != self.share.index and content not in {b"", self._old_failures[index]}:
                raise _error_of(content)
        now = time.monotonic()
        for index in waited_for:
            facts = _parsed(_content(Path(self._sign(index))))
            seen = self._seen.get(index)
            if seen is None or seen.facts != facts:
                seen = self._seen[index] = _Seen(facts, now)
            if now - seen.since > LOST_AFTER:
                how = "gave no sign of life" if facts else "never came up"
                msg = (
                    f"{self._name(index)} {how} within {LOST_AFTER:.0f} s, and "
                    f"{waited_for[index]} of its tasks are not done; run again to go on: "
                    "what is finished is not done twice"
                )
                raise LaunchError(msg)

    def _name(self, index: int) -> str:
        facts = self._seen[index].facts if index in self._seen else {}
        where = f" (process {facts['pid']} on {facts['host']})" if facts else ""
        return f"participant {index} of {self.share.count}{where}"

    def _tell_failure(self, error: BaseException) -> None:
        kind = type(error).__name__ if isinstance(error, OnwardError) else "OnwardError"
        message = str(error) if isinstance(error, OnwardError) else repr(error)
        facts = {
            "kind": kind,
            "message": f"{socket.gethostname()}: {message}",
            "pid": os.getpid(),
            "when": time.time_ns(),
        }
        try:
            write_whole(self._failure(self.share.index), json.dumps(facts).encode())
        except OnwardError:
            return  # on a full disk the others see that the signs of life end

    def _leave(self) -> None:
        if self.folder.is_dir():
            facts = {"host": socket.gethostname(), "pid": os.getpid(), "left": True}
            write_whole(Path(self._sign(self.share.index)), json.dumps(facts).encode())

    def _sign(self, index: int) -> str:
        return str(self.folder / f"{index}.json")

    def _failure(self, index: int) -> Path:
        return self.folder / f"{index}.failed.json"


def _error_of(content: bytes) -> OnwardError:
    facts = _parsed(content)
    return BY_NAME.get(facts.get("kind", ""), OnwardError)(facts.get("message", "failed"))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(content)
    except ValueError:
        return {}
    return facts
