"""Run benchmarks: ``python -m benchmarks`` runs all P rows, with an ID one; ``list`` names them."""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks import environments, everything

MODULES = {
    "D1": "read",
    "D2": "prepare",
    "D3": "resume",
    "D4": "mask",
    "P1": "loop_cost",
    "P2": "against_trainer",
    "P4": "padded_trainer",
    "P5": "masked_head",
    "P6": "waiting",
    "P7": "census",
    "P8": "counted",
    "P9": "checkpoint_save",
    "P10": "checkpoint_async",
    "P11": "resume_start",
    "P12": "start",
    "P13": "compile_graphs",
    "P14": "two_hosts",
    "P16": "supervised",
    "G": "gpu",
    "remote": "remote",
    "cleaning": "cleaning",
    "cpu_step": "cpu_step",
}
"""The file of each benchmark."""
ALL = (
    *("P1", "P2", "P4", "P5", "P6", "P7", "P8"),
    *("P9", "P10", "P11", "P12", "P13", "P14", "P16", "cpu_step"),
)
"""The engine's rows, which ``all`` runs."""


def main() -> None:
    """Run one and print its result, or all and make a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = ["all", "list", "peers", *MODULES]
    parser.add_argument("id", nargs="?", default="all", choices=names)
    parser.add_argument("--json", action="store_true", help="print one JSON object (of one row)")
    parser.add_argument(
        "--output", type=Path, help="of all: this .md file, and a .json beside it; else stdout"
    )
    given = parser.parse_args()
    if (given.output and given.id != "all") or (given.json and given.id in names[:3]):
        parser.error("--output goes with 'all', --json with the id of one benchmark")
    if given.id == "list":
        for name in MODULES:
            print(f"{name:15}{_first_line(name)}")
    elif given.id == "peers":
        environments.make()
    elif given.id == "all":
        everything.run({name: _words(name) for name in ALL}, given.output)
    else:
        _print(_module(given.id).measure(), as_json=given.json)


def _first_line(name: str) -> str:
    return (_module(name).__doc__ or "").splitlines()[0]


def _words(name: str) -> str:
    """What it is, without its id and the full stop."""
    return _first_line(name).removeprefix(f"{name}: ").rstrip(".")


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{MODULES[name]}")


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    verdict = f"target {result['target']}, reached: {result['reached']}"
    print(f"{result['id']}: {result['value']} ({verdict})")
    for line in result["details"]:
        print("  " + "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
