"""The comparison's table: rows by gain, bold where an interval leaves out zero."""

import json
from pathlib import Path
from typing import Any

from benchmarks.comparison import _lines


def held(change: float, low: float, high: float) -> dict[str, float]:
    return {"change": change, "low": low, "high": high}


def a_run(folder: Path) -> Path:
    zero = held(0, 0, 0)
    gained = {"base": zero, "a": held(-0.1, -0.3, 0.1), "b": held(-1, -2, -0.5)}
    lost = {"base": zero, "a": held(0.2, 0.1, 0.3), "b": held(0, -1, 1)}
    scores = {"mean": {"macro_f1": 0.5}, "sd": {"macro_f1": 0.1}}
    told: dict[str, Any] = {
        "baseline": "base",
        "primary": "macro_f1",
        "arms": dict.fromkeys(("base", "a", "b"), scores),
        "differences": {"macro_f1": {"b": {"difference": 0.2, "significant": True}}},
        "language_model": {
            "gain_on": "domain",
            "forgetting_on": "general",
            "sets": {"domain": {"arms": gained}, "general": {"arms": lost}},
            "arms": {"base": {"gain": 0.0}, "a": {"gain": 0.1}, "b": {"gain": 1.0}},
        },
    }
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "results.json").write_text(json.dumps(told), encoding="utf-8")
    for name in told["arms"]:
        (folder / name).mkdir()
        (folder / name / "checkpoints.jsonl").write_text('{"bytes": 1}\n{"bytes": 2500000}\n')
    return folder


def test_rows_stand_by_gain_and_tell_what_is_certain(tmp_path: Path) -> None:
    lines = list(_lines(a_run(tmp_path), "comparison.png"))
    assert "![gain against forgetting](comparison.png)" in lines
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| b", "| a", "| base"]
    best, some, base = (line.strip("| ").split(" | ") for line in lines[-3:])
    assert best[1] == "**+1.000 [+0.500, +2.000]**"
    assert best[2] == "+0.000 [-1.000, +1.000]"
    assert best[3:] == ["0.500 ± 0.100", "**+0.200**", "2.5 MB"]
    assert some[1:3] == ["+0.100 [-0.100, +0.300]", "**+0.200 [+0.100, +0.300]**"]
    assert base[1:3] == ["0", "0"]
