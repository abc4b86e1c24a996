"""`onward run` for the small stages, as a process of its own."""

import sys
from pathlib import Path

from launcher import cli
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.placement import Placement
from launcher.verbs.answers import tell
from tests.launcher.toy import load_toy


def run() -> None:
    Conductor(
        load_toy(Path(sys.argv[1])),
        Request(),
        Placement(processes=2, module="tests.launcher.toy"),
        tell,
        lambda names, world: None,
    ).run()


if __name__ == "__main__":
    cli.guarded(run)
