"""Run a benchmark: ``python -m benchmarks ID [--json]``; ``list`` names them."""

import argparse
import importlib
import json
from typing import Any

from benchmarks import environments

MODULES = {
    "D1": "read",
    "D2": "prepare",
    "D3": "resume",
    "D4": "mask",
    "P6": "waiting",
    "P7": "census",
    "P8": "counted",
    "P9": "checkpoint_save",
    "P10": "checkpoint_async",
    "P11": "resume_start",
    "P14": "two_hosts",
    "remote": "remote",
    "cleaning": "cleaning",
    "cpu_attention": "cpu_attention",
}
"""The file of each benchmark."""


def main() -> None:
    """Run one and print its result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("id", choices=["list", "peers", *MODULES])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if given.id == "list":
        for name in MODULES:
            print(f"{name:15}{(_module(name).__doc__ or '').splitlines()[0]}")
    elif given.id == "peers":
        environments.make()
    else:
        _print(_module(given.id).measure(), as_json=given.json)


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
