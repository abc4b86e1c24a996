"""The table of all faults: results are kept as JSON, and the page is made from them."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Told = Mapping[str, Any]
RESULTS = Path(__file__).resolve().parents[1] / "results" / "faults.json"


def put_rows(found: Mapping[str, Told], results: Path = RESULTS) -> None:
    """Take in rows that have been tried; others stay as they were."""
    kept = _read(results)
    kept["rows"] = dict(sorted({**kept.get("rows", {}), **found}.items()))
    _write(kept, results)


def put_campaign(text: str, results: Path = RESULTS) -> None:
    """Take in the random campaign's part of the page."""
    _write(_read(results) | {"campaign": text.splitlines()}, results)


def line(told: Told) -> str:
    """A row for the screen."""
    verdict = "not run" if not told["of"] else "ok" if told["held"] == told["of"] else "FAILED"
    figures = ", ".join(f"{name} {value}" for name, value in told["figures"].items())
    notes = "".join(f"\n      {note}" for note in told["notes"])
    counted = f"{told['held']} of {told['of']}"
    return (
        f"{told['id']} {verdict}  {counted}  {told['fault']}  {figures}  {told['seconds']} s{notes}"
    )


def _read(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(results.read_text("utf-8")) if results.exists() else {}
    return found


def _write(kept: Mapping[str, Any], results: Path) -> None:
    results.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = [*_rows(kept.get("rows", {})), *kept.get("campaign", [])]
    results.with_suffix(".md").write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


def _rows(rows: Mapping[str, Told]) -> Iterator[str]:
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("torch", "deepspeed", "transformers")
    )
    yield "# Faults\n"
    yield (
        "`make faults` tries every row of this table and then plays the random campaign below. "
        "Kept: how often the promise was kept, of how often the fault was tried.\n"
    )
    yield (
        f"{os.cpu_count()} cores, {platform.machine()}, gloo, Python {platform.python_version()}, "
        f"{versions}.\n"
    )
    yield "| row | fault | promise | kept | measured |"
    yield "|---|---|---|---:|---|"
    for told in rows.values():
        figures = "; ".join(f"{name}: {value}" for name, value in told["figures"].items())
        kept = f"{told['held']} of {told['of']}" if told["of"] else "not run"
        shown = (told["id"], told["fault"], told["promise"], kept, figures)
        yield f"| {' | '.join(each.replace('|', '/') for each in shown)} |"
    yield ""
    for told in rows.values():
        for note in told["notes"]:
            yield f"- {told['id']}: {note}"
    yield ""
