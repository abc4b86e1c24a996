"""P4: real tokens a second on abstracts, packed, head at targets, against a padded Trainer."""

import tempfile
from pathlib import Path
from typing import Any

from benchmarks import training_stage
from benchmarks.against_trainer import SETTINGS, in_turn, line

LENGTH, DOCUMENTS, STEPS, ROUNDS, TARGET = 512, 16, 1, 5, 1.8
ROWS = 10
"""Packed rows that hold about as many tokens as 16 documents."""
PACKING = {"packing": {"name": "concatenate"}}
GROUPED = "group_by_length"
KINDS = {"random order": "random", GROUPED: "sequential"}
"""How transformers samples; documents that it has grouped already are taken in their order."""
MEGA = 50
"""Batches that transformers sorts together, the longest first, where there are 200 of them."""
TAKEN = (24, 5, 15, 25, 35, 45)
"""Which batches of one such group are trained on: one before it counts, then all parts alike."""


def measure() -> dict[str, Any]:
    """Our real tokens a CPU second over theirs, all processes in turn; median of the turns.

    Documents are as long as abstracts: 300 tokens on average, at most 512. The Trainer gets them in
    memory, pads each batch of 16 to its longest, masks with transformers' collator and computes
    the head everywhere; in random order, as its examples do, which fills 0.6 of a batch, and
    grouped by length, its best means against padding, at the price of batches of like documents:
    as transformers groups them, one batch of each fifth, and all of these together are compared.
    Ours reads shards and packs documents end to end, cut where a row is full, isolated from one
    another. One DeepSpeed JSON but for the rows of a step; bf16, fused AdamW, sdpa, one thread
    each, freed memory kept by all. The head has BERT-base's share of the matrices. The value is
    the gain over random order, where the target's fill is; what length grouping leaves of it stands
    beside.
    """
    shape = training_stage.BERT_SHORT_HEAD
    lengths = training_stage.abstracts(0, 1600)
    with tempfile.TemporaryDirectory() as place:
        training_stage.write(Path(place), training_stage.SHORT_HEAD, lengths)
        work = {"folder": place, "shape": shape, "length": LENGTH, "count": 1500, "kind": "padded"}
        grouped = {"grouped": {"documents": DOCUMENTS, "batches": MEGA, "taken": TAKEN}}
        config = training_stage.deepspeed_json(DOCUMENTS, 1)
        asked = {
            name: {
                "work": work | (grouped if name == GROUPED else {}),
                "config": config,
                "settings": SETTINGS | {"train_sampling_strategy": order},
            }
            for name, order in KINDS.items()
        }
        own = training_stage.deepspeed_json(ROWS, 1)
        ours = {"folder": place, "shape": shape, "length": LENGTH, "config": own}
        changed = training_stage.data(Path(place), LENGTH, **PACKING)
        seen = in_turn(asked, ours | {"data": changed}, STEPS, ROUNDS)
        packed = training_stage.rows(Path(place), shape, LENGTH, 200, PACKING)
    fill = sum(float((row.segments > 0).mean()) for row in packed) / len(packed)
    details = [_line(name, seen, lengths + 2) | {"our_fill": round(fill, 2)} for name in KINDS]
    value = details[0]["gain"]
    return {
        "id": "P4",
        "value": value,
        "target": TARGET,
        "reached": value >= TARGET,
        "details": details,
    }


def _line(name: str, seen: Any, lengths: Any) -> dict[str, Any]:
    found = line(f"Trainer, {name}", seen[name], seen["ours"])
    ratio = found.pop("ours_over_theirs")
    ends = (found.pop("highest"), found.pop("lowest"))
    if name == GROUPED:
        # Short documents are cheaper: only all fifths together are what a token costs.
        ratio = _together(seen["ours"]) / _together(seen[name])
    gains = [round(1 / each, 2) for each in (ratio, *ends)]
    return {
        **dict(zip(("gain", "lowest", "highest"), gains, strict=True)),
        **found,
        "their_fill": round(_fill(name, lengths), 2),
    }


def _together(answers: Any) -> float:
    """CPU seconds a token of all rounds."""
    return float(sum(each.cpu_s for each in answers) / sum(each.tokens for each in answers))


def _fill(name: str, lengths: Any) -> float:
    """Real tokens of all tokens, in batches of documents in that order."""
    import numpy as np

    order = np.random.default_rng(0).permutation(lengths)
    if name == GROUPED:
        size = MEGA * DOCUMENTS
        order = np.concatenate(
            [np.sort(order[at : at + size]) for at in range(0, len(order), size)]
        )
    whole = order[: len(order) // DOCUMENTS * DOCUMENTS].reshape(-1, DOCUMENTS)
    return float(whole.sum() / (whole.max(axis=1) * DOCUMENTS).sum())
