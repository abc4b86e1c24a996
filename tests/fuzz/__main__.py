"""``python -m tests.fuzz [--inputs N] [--seed N]``: damaged inputs to every reader, counted."""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.fuzz.campaign import Found, try_all
from tests.fuzz.targets import READERS


def main() -> None:
    """Print a line a reader; exit code 1 if one of them crashed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("readers", nargs="*", metavar="READER", help="none: all of them")
    parser.add_argument("--inputs", type=int, default=100_000, help="of all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the counts to this file, too")
    given = parser.parse_args()
    if unknown := sorted({*given.readers} - {*READERS}):
        parser.error(f"{', '.join(unknown)}: no such reader; there are {', '.join(READERS)}")
    began = time.monotonic()
    found = fuzz(given.readers or list(READERS), given.inputs, given.seed, given.processes)
    total = sum(each.inputs for each in found.values())
    kinds = sum((each.kinds for each in found.values()), Counter())
    crashes = [crash for each in found.values() for crash in each.crashes]
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"{total:,} inputs in {seconds:.0f} s: {_kinds(kinds)}; crashes {len(crashes)}\n"
    )
    if given.json:
        told = {"inputs": total, "kinds": dict(kinds), "crashes": crashes, "seed": given.seed}
        told["readers"] = {name: each.inputs for name, each in found.items()}
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(crashes))


def fuzz(names: list[str], inputs: int, seed: int, processes: int = 1) -> dict[str, Found]:
    """What came of them, by reader; ``inputs`` are shared out as the readers say."""
    with tempfile.TemporaryDirectory(prefix="onward-fuzz-") as place:
        folder = Path(place)
        shares = {name: _share(name, folder / "shares") for name in names}
        tasks = [
            (name, 1 + inputs * share // sum(shares.values()), seed, folder / str(number))
            for number, (name, share) in enumerate(shares.items())
        ]
        with ProcessPoolExecutor(processes, get_context("fork")) as pool:
            found = {}
            for name, each in zip(shares, pool.map(_run, tasks), strict=True):
                found[name] = each
                sys.stdout.write(_line(name, each) + "\n")
                sys.stdout.flush()
            return found


def _share(name: str, folder: Path) -> int:
    (own := folder / name.replace(" ", "-")).mkdir(parents=True)
    return READERS[name](own).share


def _run(task: tuple[str, int, int, Path]) -> Found:
    name, inputs, seed, folder = task
    folder.mkdir(parents=True)
    logging.disable()
    return try_all(READERS[name](folder), inputs, seed)


def _line(name: str, found: Found) -> str:
    crashes = "".join(f"\n    {crash}" for crash in found.crashes)
    return (
        f"{name:22} {found.inputs:8,} inputs, slowest {found.slowest:5.2f} s: "
        f"{_kinds(found.kinds)}; crashes {len(found.crashes)}{crashes}"
    )


def _kinds(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))


if __name__ == "__main__":
    main()
