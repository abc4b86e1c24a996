"""P2: our training, from the shards on, against transformers' Trainer, same DeepSpeed JSON."""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import training_stage
from benchmarks.peers.process import Answer, PeerProcess

LENGTH, ROWS, STEPS, ROUNDS, TARGET = 128, 16, 2, 6, 1.0
SETTINGS = {"dataloader_num_workers": 0}
"""Rows are in memory: a worker would only add what handing them over costs."""
KINDS = {
    "learner": "Trainer, our learner and collation",
    "rows": "Trainer, its own model and collator",
}


def measure() -> dict[str, Any]:
    """CPU time a token of ours over theirs, all processes in turn; median of the turns.

    The Trainer trains twice. With our learner (isolated documents, head at masked positions, the
    same kernels, our collation) the loops alone differ. With what transformers brings
    (documents see each other, full head) it does what its users get. Ours reads shards, packs and
    shuffles; the Trainer has the same packed rows in memory. bf16, fused AdamW, sdpa, one thread
    each, freed memory kept by all; nothing is logged or saved by the Trainer, ours has a recipe's
    metrics. The value is the worse ratio of the two.
    """
    shape = training_stage.BERT_SHORT_HEAD
    config = training_stage.deepspeed_json(ROWS, 1)
    with tempfile.TemporaryDirectory() as place:
        lengths = training_stage.abstracts(0, 2500)
        training_stage.write(Path(place), training_stage.SHORT_HEAD, lengths)
        work = {"folder": place, "shape": shape, "length": LENGTH, "count": 1000}
        asked: dict[str, Any] = {
            kind: {"work": work | {"kind": kind}, "config": config, "settings": SETTINGS}
            for kind in KINDS
        }
        ours = {"folder": place, "shape": shape, "length": LENGTH, "config": config}
        seen = in_turn(asked, ours, STEPS, ROUNDS)
    details = [
        line(KINDS[kind], answers, seen["ours"]) for kind, answers in seen.items() if kind != "ours"
    ]
    value = max(each["ours_over_theirs"] for each in details)
    return {
        "id": "P2",
        "value": value,
        "target": TARGET,
        "reached": value <= TARGET,
        "details": details,
    }


def in_turn(
    trainers: Mapping[str, Any], ours: Mapping[str, Any], steps: int, rounds: int
) -> dict[str, list[Answer]]:
    """What each process needed in each round; they run one at a time, the order turning round."""
    from benchmarks import ranks
    from launcher import jit

    ranks.settle(2)
    jit.build_operators()
    with ExitStack() as ending:
        peers = {"ours": ending.enter_context(PeerProcess("own", "own_loop.py"))}
        for name in trainers:
            peers[name] = ending.enter_context(PeerProcess("own", "trainer.py"))
        for name, peer in peers.items():
            peer.ask("start", **(ours if name == "ours" else trainers[name]))
        seen: dict[str, list[Answer]] = {name: [] for name in peers}
        for peer in peers.values():
            # Past what comes once: first batches, the collector's first full turn.
            peer.ask("steps", count=4)
        for turn in range(rounds):
            for name in list(peers) if turn % 2 else list(peers)[::-1]:
                seen[name].append(peers[name].ask("steps", count=steps))
    return seen


def line(name: str, theirs: list[Answer], ours: list[Answer]) -> dict[str, Any]:
    """Both rates in real tokens, and the ratio of CPU times."""
    ratios = sorted(_seconds(a) / _seconds(b) for a, b in zip(ours, theirs, strict=True))
    return {
        "against": name,
        "ours_over_theirs": round(median(ratios), 3),
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "our_tokens_per_cpu_s": round(1 / median(_seconds(each) for each in ours)),
        "their_tokens_per_cpu_s": round(1 / median(_seconds(each) for each in theirs)),
    }


def _seconds(answer: Answer) -> float:
    """CPU seconds a token."""
    return answer.cpu_s / answer.tokens
