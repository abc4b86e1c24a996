"""Gain and forgetting: a finished run of configs/recipes/comparison.yaml as a table.

    onward run configs/recipes/comparison.yaml
    python -m benchmarks.comparison runs/comparison --output benchmarks/results/comparison.md

The picture beside the table is the report's own.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.run_folder import RunFolder

HEAD = (
    "| arm | gain on {gain} | forgetting of {forgetting} | macro-F1 on test | against {base} "
    "| checkpoint |",
    "|---|---|---|---|---|---|",
)
LEGEND = """\
Gain is the fall of the held-out masked-LM loss on the domain, forgetting its rise on the general
text, both against the base, in nats a target, with 95 % intervals over rows; bold where the
interval leaves out 0. Macro-F1: mean and standard deviation over fine-tuning seeds; the
difference to the base, bold where it is significant after Holm's correction. Each arm was
pretrained once, with one seed, at usual settings that nobody tuned: the intervals do not cover
that. A checkpoint holds what trains, with its optimizer's states.
"""


def main() -> None:
    """Write the table, and the picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("--output", type=Path, help="a .md file; absent: to the terminal")
    given = parser.parse_args()
    run = RunFolder(given.run).require().root
    text = "\n".join(_lines(run, given.output.with_suffix(".png").name if given.output else None))
    if given.output is None:
        print(text)
        return
    given.output.write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(run / "report" / "trade.png", given.output.with_suffix(".png"))


def _lines(run: Path, picture: str | None) -> Iterator[str]:
    found = json.loads((run / "evaluate" / "results.json").read_text(encoding="utf-8"))
    told = found["language_model"]
    arms = found["arms"]
    yield "# Gain against forgetting"
    yield ""
    yield "`onward run configs/recipes/comparison.yaml`, then `python -m benchmarks.comparison`."
    yield ""
    yield LEGEND
    if picture:
        yield f"![gain against forgetting]({picture})"
        yield ""
    names = {"gain": told["gain_on"], "forgetting": told["forgetting_on"]}
    yield from (line.format(**names, base=found["baseline"]) for line in HEAD)
    order = sorted(arms, key=lambda arm: -told["arms"][arm]["gain"])
    for arm in order:
        yield _row(run, found, arm)


def _row(run: Path, found: Mapping[str, Any], arm: str) -> str:
    told = found["language_model"]
    gained = told["sets"][told["gain_on"]]["arms"][arm]
    lost = told["sets"][told["forgetting_on"]]["arms"][arm]
    primary = found["primary"]
    mean, sd = (found["arms"][arm][key][primary] for key in ("mean", "sd"))
    cells = [arm]
    cells.append(_interval(-gained["change"], -gained["high"], -gained["low"]))
    cells.append(_interval(lost["change"], lost["low"], lost["high"]))
    cells.append(f"{mean:.3f} ± {sd:.3f}")
    difference = found["differences"][primary].get(arm)
    cells.append("" if difference is None else _difference(difference))
    cells.append(_checkpoint(run / ("full" if arm == "ema" else arm)))
    return "| " + " | ".join(cells) + " |"


def _interval(value: float, low: float, high: float) -> str:
    text = f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
    if not low and not high:
        return "0"
    return f"**{text}**" if low > 0 or high < 0 else text


def _difference(found: Mapping[str, Any]) -> str:
    text = f"{found['difference']:+.3f}"
    return f"**{text}**" if found["significant"] else text


def _checkpoint(stage: Path) -> str:
    saved = (stage / "checkpoints.jsonl").read_text(encoding="utf-8").splitlines()
    return f"{json.loads(saved[-1])['bytes'] / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
