"""What a warm worker runs: rows of the GPU's table, tiny and on the CPU."""

import json
from pathlib import Path

from benchmarks.gpu import measure_rows


def main(answer: str, only: list[str]) -> None:
    """The rows as JSON."""
    rows = measure_rows(only, "cpu", tiny=True)
    Path(answer).write_text(json.dumps(rows), encoding="utf-8")
