"""The campaign's table from its results."""

import json
from pathlib import Path
from typing import Any


def read(results: Path) -> list[dict[str, Any]]:
    """The last result of each run, by number."""
    if not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    found = {line["run"]: line for line in lines}
    return [found[number] for number in sorted(found)]


def numbers(results: Path) -> set[int]:
    """The runs that are there."""
    return {told["run"] for told in read(results)}


def line(told: dict[str, Any]) -> str:
    """One run, for the screen."""
    setup = told["setup"]
    what = f"{setup['model']} zero{setup['stage']} {setup['precision']} x{setup['world']}"
    kinds = ", ".join(
        fault["kind"] + (f" ({fault['damage']})" if fault["damage"] else "")
        for fault in told["faults"]
    )
    verdict = "ok" if told["passed"] else "FAILED"
    if not told["passed"]:
        keys = (
            "finished",
            "digest_equal",
            "ids_exact",
            "losses_equal",
            "loss_difference",
            "silent",
            "orphans",
        )
        verdict += " " + " ".join(f"{key}={told[key]}" for key in keys if key in told)
        verdict += " " + told.get("error", "").strip().splitlines()[-1] if told.get("error") else ""
    return f"{told['run']:4} {verdict}  {what} {setup['extra']}: {kinds}  {told['seconds']} s"


def write(results: Path) -> None:
    raise NotImplementedError
