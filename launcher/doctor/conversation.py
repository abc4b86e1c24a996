"""Questions to one host's probe and its answers, over ssh or a pipe; silence has a limit."""

import contextlib
import json
import os
import queue
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.doctor.probe import MARK
from launcher.doctor.scene import Unreached
from launcher.exports import own_environment
from launcher.hosts import SSH

PROBE = "launcher.doctor.probe"
_LINES = 40
"""What ssh says of a changed key takes twenty."""


class SilenceError(Exception):
    """The host did not answer; ``reason`` tells what is known of why."""

    def __init__(self, reason: Unreached) -> None:
        super().__init__(reason.asked)
        self.reason = reason


def command_on(
    way: Sequence[str], module: str, values: Mapping[str, str], extra: Sequence[str] = ()
) -> list[str]:
    """An argument list that runs a module of ours on a host.

    ``way``: the words before it, as a launcher's ``reach`` has them; none: on this one. Behind ssh
    a shell reads the words, so each is quoted; srun hands them on as they are.
    """
    words = [sys.executable, "-m", module, *extra]
    if not way:
        return words
    settings = [f"{key}={value}" for key, value in values.items()]
    there = ["env", *settings, *words]
    return [*way, shlex.join(there)] if way[0] == SSH[0] else [*way, *there]


class Conversation:
    """One program of ours on a host, from its start until ``close``."""

    def __init__(
        self,
        way: Sequence[str],
        values: Mapping[str, str],
        module: str = PROBE,
        extra: Sequence[str] = (),
    ) -> None:
        """Start it.

        Args:
            way: to the host; see ``command_on``.
            values: the environment that processes of a launch get there.
            module: the program.
            extra: its arguments.
        """
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._said: list[str] = []
        self.is_given_up = False
        self._process = subprocess.Popen(
            command_on(way, module, values, extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=own_environment(os.environ) if way else {**os.environ, **values},
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=target, daemon=True)
            for target in (self._listen, self._overhear)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, about: str, seconds: float, **question: Any) -> dict[str, Any]:
        """The probe's answer; SilenceError if it takes longer, or the probe has ended."""
        line = json.dumps({"ask": about, **question})
        try:
            self._stdin.write(f"{line}\n")
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            raise SilenceError(self._reason(about)) from None
        return self.hear(about, seconds)

    def hear(self, about: str, seconds: float) -> dict[str, Any]:
        """What it says next; SilenceError if it takes longer, or has ended."""
        try:
            found = self._answers.get(timeout=seconds)
        except queue.Empty:
            reason = Unreached(about, f"no answer within {seconds:g} s", None)
            raise SilenceError(reason) from None
        if found is None:
            raise SilenceError(self._reason(about))
        answer: dict[str, Any] = json.loads(found)
        return answer

    def give_up(self) -> None:
        """End it in mid-sentence; whoever waits for its words gets SilenceError."""
        self.is_given_up = True
        self._process.kill()

    def close(self) -> None:
        """Let it go; what hangs is ended: ssh here, and there it ends as its line is closed."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for thread in self._threads:
            thread.join(timeout=1.0)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def _stdin(self) -> Any:
        return self._process.stdin

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            _, found, answer = line.partition(MARK)
            if found:
                self._answers.put(answer)
        self._answers.put(None)

    def _overhear(self) -> None:
        self._said.extend(self._process.stderr or ())

    def _reason(self, about: str) -> Unreached:
        try:
            code = self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            code = None
        self._threads[1].join(timeout=1.0)
        lines = [line.strip() for line in self._said if line.strip()]
        return Unreached(about, "\n".join(lines[-_LINES:]), code)
