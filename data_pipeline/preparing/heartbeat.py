"""A participant's sign of life, as a process of its own: ``python heartbeat.py FILE SECONDS``.

A thread would fall silent in a library that holds the interpreter for an hour. It ends with the
process that started it: that one's end of its stdin closes then. It imports nothing of ours, so
that it starts at once.
"""

import json
import os
import select
import socket
import sys
from pathlib import Path


def main(file: str, seconds: str) -> None:
    """Write a rising number into a file until stdin ends."""
    path, parent = Path(file), os.getppid()
    temporary = path.with_suffix(".tmp")
    beat = 0
    while True:
        facts = {"host": socket.gethostname(), "pid": parent, "beat": beat}
        temporary.write_text(json.dumps(facts), encoding="utf-8")
        temporary.replace(path)
        beat += 1
        ready, _, _ = select.select([sys.stdin.fileno()], [], [], float(seconds))
        if ready:
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
