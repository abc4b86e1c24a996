"""``python -m benchmarks.gpu [--only NAME] [--json] [--output FILE]``: one table on one GPU."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.gpu import facts, measure_rows, names
from configs.errors import OnwardError


def main() -> int:
    """Print the table; the exit code is an error's own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", action="append", default=[], help=f"of {', '.join(names())}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the code")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--output", type=Path, help="write the JSON there, too")
    given = parser.parse_args()
    try:
        rows = measure_rows(given.only, given.device, tiny=given.tiny)
    except OnwardError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    made = {"id": "G", **facts(given.device), "tiny": given.tiny, "rows": rows}
    text = json.dumps(made)
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")
    if given.json:
        print(text)
        return 0
    print("  ".join(f"{key} {value}" for key, value in facts(given.device).items()))
    for row in rows:
        print("  " + "  ".join(f"{key} {value}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
