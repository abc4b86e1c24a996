"""``python -m benchmarks.faults.rows [F18 ...] [--repeats N]``: try rows, write the table."""

import argparse
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.faults import operators, table
from benchmarks.faults.rows import Row, all_rows
from configs.errors import ResourceError
from configs.places import cache_folder


def main() -> None:
    """Try each row; exit code 1 if a promise was broken."""
    rows = all_rows()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.rows", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID", help="none: all of them")
    parser.add_argument("--repeats", type=int, help="default: as each row says")
    parser.add_argument("--place", type=Path, default=cache_folder() / "faults" / "rows")
    parser.add_argument("--print", action="store_true", help="leave the table as it is")
    given = parser.parse_args()
    if unknown := sorted({*given.ids} - {*rows}):
        parser.error(f"{', '.join(unknown)}: no such row; there are {', '.join(rows)}")
    # Under nohup it would be ignored, here and in all that is started.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    found = {}
    with operators():
        for row_id in given.ids or rows:
            found[row_id] = _try(rows[row_id], given.repeats, given.place / row_id)
            print(table.line(found[row_id]), flush=True)
    if not given.print:
        table.put_rows(found)
    sys.exit(any(told["held"] != told["of"] for told in found.values()))


def _try(row: Row, repeats: int | None, folder: Path) -> dict[str, Any]:
    """A row as JSON; what goes wrong in it is its result."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told: dict[str, Any] = {"id": row.id, "fault": row.fault, "promise": row.promise}
    began = time.monotonic()
    try:
        found = row.measure(repeats or row.repeats, folder)
        told |= {"held": found.held, "of": found.of}
        told |= {"figures": found.figures, "notes": list(found.notes)}
        if not found.of:
            told |= {"of": 1, "notes": [*found.notes, "tried nothing"]}
    except ResourceError as error:
        told |= {"held": 0, "of": 0, "figures": {}, "notes": [f"not run: {error}"]}
    except Exception as error:
        traceback.print_exc()
        told |= {"held": 0, "of": 1, "figures": {}, "notes": [f"{type(error).__name__}: {error}"]}
    shutil.rmtree(folder, ignore_errors=True)
    return told | {"seconds": round(time.monotonic() - began, 1)}


if __name__ == "__main__":
    main()
