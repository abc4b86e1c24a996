"""A launch as a person follows it: its output sorted, its progress on the screen."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.processes import Tell, close_pipes
from launcher.progress import Progress
from launcher.relay import Relay
from launcher.run_folder import RANK_LOGS, RunFolder
from launcher.view import View


@dataclass(frozen=True, slots=True)
class Shown:
    """How a launch is shown.

    Attributes:
        tell: takes one line, which goes to stderr.
        environment: the user's.
        size: ``2 hosts, 16 ranks``; empty for one rank.
        one_host: all ranks are on this machine.
    """

    tell: Tell
    environment: Mapping[str, str]
    size: str
    one_host: bool


@dataclass(frozen=True, slots=True)
class Followed:
    """A launch that is followed."""

    process: subprocess.Popen[str]
    view: View
    relay: Relay

    @property
    def log(self) -> Path:
        """The launching programs' own, in the folder of the stage that runs."""
        return self.relay.log


@contextmanager
def follow(
    process: subprocess.Popen[str], run: RunFolder, stage: str, shown: Shown
) -> Iterator[Followed]:
    """Within it what the processes say is read and shown; by its end they must have ended."""
    view = View(shown.tell, sys.stderr, shown.environment, one_host=shown.one_host)
    relay = Relay(process, stage, lambda name: run.stage(name) / "launcher.log", view)
    view.warnings_log = lambda: relay.log.parent / RANK_LOGS / "warnings.log"
    relay.start()
    progress = Progress(lambda: relay.log.parent, view, shown.size)
    progress.start()
    try:
        yield Followed(process, view, relay)
    finally:
        relay.join(timeout=5)
        progress.stop()
        close_pipes(process)
