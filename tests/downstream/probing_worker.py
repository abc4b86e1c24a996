"""One rank of a stage at ZeRO stage 3 that measures and decides; rank 0 writes what all came to."""

import json
from pathlib import Path
from typing import Any

from engine import distributed
from engine.assemble import assemble
from engine.training import train_from_newest
from tests.downstream.probing_cases import context, deciding

ZERO = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True,
    "steps_per_print": 10**9,
}


def main(place: str) -> None:
    """Train, once from the start and once as if killed before the export."""
    with distributed.joined():
        backend: dict[str, Any] = {"name": "deepspeed", "config": ZERO}
        asked = deciding(Path(place), backend)
        steps = []
        for _ in range(2):
            parts = assemble(asked, context(Path(place), Path(place) / "zero3"))
            steps.append(train_from_newest(parts))
            parts.backend.close()
        found = distributed.all_gather_object(steps)
        if distributed.rank() == 0:
            (Path(place) / "answers.json").write_text(json.dumps(found))
