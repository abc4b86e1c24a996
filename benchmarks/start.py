"""P12: how long the command line takes to answer: help, check and plan, in fresh processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import perf_counter
from typing import Any

from launcher.recipe import RECIPES

ROUNDS = 7
TARGET = 0.5
HEAVY = ("torch", "transformers", "deepspeed", "datasets", "pyarrow")
_BOUNDS = {
    "python": ("-c", "pass"),
    "pydantic and yaml": ("-c", "import pydantic, yaml"),
}
_IMPORTED = """
import atexit, sys
atexit.register(lambda: sys.stderr.write(
    "\\nheavy: " + " ".join(name for name in {heavy!r} if name in sys.modules)))
sys.argv = ["onward", *{words!r}]
from launcher.cli import main
main()
"""


def measure() -> dict[str, Any]:
    """CPU seconds, user and system, of each verb with the quickstart's recipe; the most is told.

    Python keeps what it has compiled, as it does for an installed command. The bounds, an empty
    Python and one that imports what any recipe needs, run in between.
    """
    with tempfile.TemporaryDirectory() as place:
        recipe = [str(RECIPES / "quickstart.yaml"), f"output={Path(place) / 'run'}"]
        verbs = {"--help": ["--help"], "check": ["check", *recipe], "plan": ["plan", *recipe]}
        commands = {
            **_BOUNDS,
            **{f"onward {name}": ("-m", "launcher", *words) for name, words in verbs.items()},
        }
        # Once unmeasured: compiles what has changed, and fills the disk's cache.
        kept = _keeping_compiled(Path(place) / "compiled")
        for command in commands.values():
            _run(command, kept)
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for number in range(ROUNDS):
            order = list(commands) if number % 2 == 0 else list(reversed(commands))
            for name in order:
                seen[name].append(_run(commands[name], kept))
        heavy = {f"onward {name}": _heavy(words) for name, words in verbs.items()}
    details = [_line(name, runs, heavy.get(name)) for name, runs in seen.items()]
    value = max(line["cpu_s"] for line in details if line["command"].startswith("onward"))
    return {
        "id": "P12",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET and not any(heavy.values()),
        "details": details,
    }


def _line(name: str, runs: list[tuple[float, float]], heavy: list[str] | None) -> dict[str, Any]:
    cpu, wall = zip(*runs, strict=True)
    line = {
        "command": name,
        "cpu_s": round(median(cpu), 3),
        "lowest": round(min(cpu), 3),
        "highest": round(max(cpu), 3),
        "wall_s": round(median(wall), 3),
    }
    return line if heavy is None else {**line, "heavy_imports": heavy}


def _keeping_compiled(folder: Path) -> dict[str, str]:
    """The environment, but that compiled files are kept there, whatever it says of them."""
    usual = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return usual | {"PYTHONPYCACHEPREFIX": str(folder)}


def _run(command: tuple[str, ...], environment: dict[str, str]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a fresh Python."""
    before, began = getrusage(RUSAGE_CHILDREN), perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True, env=environment)
    seconds, after = perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    user = after.ru_utime - before.ru_utime
    return user + after.ru_stime - before.ru_stime, seconds


def _heavy(words: list[str]) -> list[str]:
    """Which of HEAVY a verb imports."""
    program = _IMPORTED.format(heavy=HEAVY, words=words)
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return done.stderr.rpartition("heavy: ")[2].split()
