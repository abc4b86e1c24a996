"""Run a benchmark: ``python -m benchmarks ID [--json]``; ``list`` names them."""

import argparse
import importlib
import json
import pkgutil

import benchmarks


def main() -> None:
    """Run one and print its result."""
    known = sorted(m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name[0] != "_")
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("id", choices=["list", *known])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    if given.id == "list":
        for name in known:
            print(
                f"{name:20}{importlib.import_module(f'benchmarks.{name}').__doc__.splitlines()[0]}"
            )
        return
    result = importlib.import_module(f"benchmarks.{given.id}").measure()
    if given.json:
        print(json.dumps(result))
        return
    verdict = f"target {result['target']}, reached: {result['reached']}"
    print(f"{result['id']}: {result['value']} ({verdict})")
    for line in result["details"]:
        print("  " + "  ".join(f"{key} {value}" for key, value in line.items()))


if __name__ == "__main__":
    main()
