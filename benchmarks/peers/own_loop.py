"""Onward itself: a stage of a recipe, from the shards on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from serving import serve
from stepping import Stepping

_running: list[Stepping] = []


def start(
    folder: str, shape: dict[str, Any], length: int, config: dict[str, Any], **changes: Any
) -> int:
    """Put everything together and begin; no step is taken yet. ``changes``: of the stage."""
    from benchmarks import training_stage

    asked = training_stage.stage(Path(folder), shape, length, config, **changes)
    context = training_stage.context(Path(folder) / "run")

    def train() -> None:
        from engine import distributed
        from engine.assemble import assemble

        with distributed.joined():
            _train(assemble(asked, context))

    _running.append(Stepping(train))
    return 0


def steps(count: int) -> int:
    """So many steps; the real tokens in them."""
    return _running[0].take(count)


class Gated(Iterator[Sequence[Any]]):
    """Batches that wait until a step is asked for; the tokens in each are kept."""

    def __init__(self, batches: Iterator[Sequence[Any]], stepping: Stepping) -> None:
        self._batches = batches
        self._stepping = stepping
        self.tokens: list[int] = []

    def __next__(self) -> Sequence[Any]:
        if self.tokens:
            self._stepping.passed(self.tokens[-1])
        self._stepping.waits()
        batches = next(self._batches)
        self.tokens.append(sum(batch.tokens for batch in batches))
        return batches


def _train(parts: Any) -> None:
    from benchmarks.product_run import run_of
    from engine.batches import Batches
    from engine.loop import train

    with Batches(parts.make, 0, parts.steps) as batches:
        run, oversight = run_of(parts, Gated(batches, _running[0]), parts.steps)
        with oversight.watchdog:
            train(run)


if __name__ == "__main__":
    serve({"start": start, "steps": steps})
