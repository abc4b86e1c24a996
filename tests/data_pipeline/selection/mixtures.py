"""Documents of a general kind with a few of a domain among them, English and Chinese."""

import json
from pathlib import Path

import numpy as np

LATIN = {
    "general": [f"{a}{b}" for a in ("home", "car", "sun", "day") for b in ("ing", "s", "ly", "er")],
    "domain": [f"{a}{b}" for a in ("gene", "cell", "neuro") for b in ("tic", "some", "blast")],
    "common": ["the", "of", "and", "in", "is", "to", "with", "for", ".", ","],
}
CHINESE = {
    "general": [*list("今天气学校喜欢朋友音乐电影旅行春节"), "比赛", "超市", "周末"],
    "domain": ["患者", "血压", "治疗", "心电图", "症状", "药物", "手术", "诊断"],
    "common": list("的了在是和有不人这，。"),
}


def texts(seed: int, words: dict[str, list[str]], kind: str, number: int) -> list[str]:
    """A third of a text's words are of its kind, some of the other, the rest common to both."""
    rng = np.random.default_rng(seed)
    blank = "" if words is CHINESE else " "
    other = "general" if kind == "domain" else "domain"
    pools = [words[kind], words[other], words["common"]]
    found = []
    for _ in range(number):
        picks = rng.choice(3, int(rng.integers(30, 90)), p=[0.34, 0.06, 0.6])
        found.append(blank.join(str(rng.choice(pools[pick])) for pick in picks))
    return found


def write(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def mixture(folder: Path, words: dict[str, list[str]], general: int = 270) -> dict[str, str]:
    """Two source files with 30 domain documents at fixed places, and a target of 40 others."""
    planted = texts(1, words, "domain", 30)
    rows = [
        {"id": f"general-{at}", "group": f"g{at // 3}", "text": text}
        for at, text in enumerate(texts(2, words, "general", general))
    ]
    for at, text in enumerate(planted):
        place = (7 * at) % (general + at)
        rows.insert(place, {"id": f"domain-{at}", "group": f"d{at}", "text": text})
    target = [{"text": text} for text in texts(3, words, "domain", 40)]
    half = len(rows) // 2
    return {
        "first": write(folder / "first.jsonl", rows[:half]),
        "second": write(folder / "second.jsonl", rows[half:]),
        "target": write(folder / "task" / "train.jsonl", target),
    }
