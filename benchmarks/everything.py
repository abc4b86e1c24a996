"""Every row of the targets' table, one after another, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

from benchmarks.table import Row, machine, markdown, without_folders, write

SECONDS = 1800
"""The most that one row may take."""


def run(names: Mapping[str, str], output: Path | None) -> None:
    """All of ``names`` (id -> what it is, in words) in order; what fails is told in its row.

    Args:
        names: of what is run.
        output: written anew after each row; None: the table goes to stdout at the end.
    """
    began, rows = machine(), list[Row]()
    for name, what in names.items():
        sys.stderr.write(f"{name}: {what}\n")
        rows.append(one(name, what, [sys.executable, "-m", "benchmarks", name, "--json"]))
        sys.stderr.write(f"{name}: {_told(rows[-1])}\n")
        if output:
            write(output, began, rows)
    if output is None:
        print(markdown(began, rows))


def one(name: str, what: str, command: Sequence[str]) -> Row:
    """The row of a command whose last line on stdout is the result as JSON."""
    started = perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
        start_new_session=True,
    ) as process:
        try:
            told, said = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            # Whatever it has started goes with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Row(name, what, None, f"not done after {SECONDS} s", perf_counter() - started)
    seconds = perf_counter() - started
    if process.returncode:
        lines = [line for line in said.splitlines() if line.strip()] or [
            f"exit code {process.returncode}"
        ]
        return Row(name, what, None, without_folders(lines[-1].strip()), seconds)
    return Row(name, what, json.loads(told.strip().splitlines()[-1]), "", seconds)


def _told(row: Row) -> str:
    if row.result is None:
        return f"failed after {row.seconds:.0f} s: {row.error}"
    reached = "reached" if row.result["reached"] else "NOT reached"
    return f"{row.result['value']} ({reached}: {row.result['target']}), {row.seconds:.0f} s"
