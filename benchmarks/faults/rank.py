"""What each rank of the campaign runs: the product's worker, watched for the rows that it reads."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from engine.protocols import Backend, Batch, Hook, Progress, StepRecord


def run(recipe: str, stage: str, report_to: str, records: str) -> None:
    """Run a stage as the launcher's worker does; every step taken leaves a line in ``records``."""
    import os

    _watch(Path(records) / f"rank-{os.environ['RANK']}.jsonl")
    from launcher import worker

    worker.main([recipe, stage, "--report_to", report_to])


def _watch(records: Path) -> None:
    """Set a recorder between the collator, the loop and its batches."""
    import engine.assemble
    import engine.loop

    recorder = Recorder(records)
    collate, train = engine.assemble.collate_all, engine.loop.train

    def collate_all(objective: Any, examples: Any, size: int, *rest: Any) -> list[Batch]:
        batches = collate(objective, examples, size, *rest)
        for number, batch in enumerate(batches):
            recorder.collated(batch, examples[number * size : (number + 1) * size])
        return batches

    def watched(run: Any, progress: Progress | None = None) -> Progress:
        recorder.begins(progress or Progress(), run.backend)
        batches = recorder.seen(run.batches)
        return train(replace(run, batches=batches, hooks=(recorder, *run.hooks)), progress)

    engine.assemble.collate_all = collate_all
    engine.loop.train = watched
    if hasattr(engine.assemble, "train"):
        engine.assemble.train = watched


class Recorder(Hook):
    """Knows a row by the tensors it was made into: what it writes down went into the step itself.

    A line when training begins: {start, world}. A line a step taken: {step, rows}, the rows of this
    rank as [source, epoch, sample].
    """

    name = "recorder"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, list[tuple[int, int, int]]] = {}
        self._now: list[tuple[int, int, int]] = []

    def collated(self, batch: Batch, examples: Sequence[Any]) -> None:
        """Remember which rows a batch is of."""
        keys = [example.key for example in examples]
        self._rows[_digest(batch)] = [(key.source, key.epoch, key.sample) for key in keys]

    def begins(self, progress: Progress, backend: Backend) -> None:
        """Training begins, or goes back to an earlier step."""
        self._write({"start": progress.step, "world": backend.world})

    def seen(self, batches: Iterator[Sequence[Batch]]) -> Iterator[Sequence[Batch]]:
        """The batches, noted as the loop takes them."""
        for step in batches:
            self._now = [row for batch in step for row in self._rows[_digest(batch)]]
            yield step

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """The step is taken: its rows have been trained on, in this process."""
        del backend, record
        self._write({"step": progress.step, "rows": self._now})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _digest(batch: Batch) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(batch.tensors):
        tensor = batch.tensors[name]
        digest.update(
            name.encode() + str(tensor.dtype).encode() + str(tuple(tensor.shape)).encode()
        )
        digest.update(tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run(*sys.argv[1:5])
