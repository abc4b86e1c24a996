"""What cleaning costs a core: normalising, guards, signatures and each filter."""

from collections import Counter
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

from data_pipeline.cleaning import normalise

ROUNDS, CHARACTERS = 3, 400_000
TOKENISING = 2.3
"""Million characters a second that a tokenizer takes on one core: for comparison."""


def measure() -> dict[str, Any]:
    """Million characters a CPU second of each; English text, packages loaded before."""
    texts = _texts()
    trials: dict[str, Callable[[str], object]] = {"normalise": normalise}
    for given in (
        {"name": "fineweb_quality"},
        {"name": "c4_quality"},
        {"name": "gopher_quality"},
        {"name": "gopher_repetition"},
        {"name": "language", "languages": ["en"], "among": ["en", "de", "fr", "zh"]},
        {"name": "language", "languages": ["en"]},
    ):
        named = str(given["name"]) + (" of 4" if "among" in given else "")
        trials[named] = _filter(given)
    details = [{"step": name, **_speed(work, texts)} for name, work in trials.items()]
    value = next(line["mchars_per_s"] for line in details if line["step"] == "normalise")
    return {
        "id": "cleaning",
        "value": value,
        "target": 10 * TOKENISING,
        "reached": value >= 10 * TOKENISING,
        "details": details,
    }


def _filter(given: dict[str, Any]) -> Callable[[str], object]:
    from pydantic import TypeAdapter

    from data_pipeline.cleaning.filters import AnyFilter

    judged: Any = TypeAdapter(AnyFilter).validate_python(given)
    work: Callable[[str], object] = judged.build(Counter())
    return work


def _speed(work: Callable[[str], object], texts: list[str]) -> dict[str, float]:
    work(texts[0])
    seen = []
    for _ in range(ROUNDS):
        begun = process_time()
        for text in texts:
            work(text)
        seen.append(process_time() - begun)
    return {"mchars_per_s": round(sum(map(len, texts)) / median(seen) / 1e6, 2)}


def _texts() -> list[str]:
    """Documentation that is installed with Python, in documents of about 4,000 characters."""
    from pathlib import Path

    from data_pipeline.sources import InstalledDocumentation

    whole: list[str] = []
    held: list[str] = []
    for document in InstalledDocumentation(packages=["stdlib"]).documents(Path):
        held.append(document.text)
        if sum(map(len, held)) >= 4000:
            whole.append("\n\n".join(held))
            held = []
        if sum(map(len, whole)) >= CHARACTERS:
            break
    return whole
