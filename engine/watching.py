"""The hooks that measure a model in training and decide by it, from a stage's parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.errors import DataError
from data_pipeline.shards import find_shards
from data_pipeline.streaming import FixedRows, TokenStream
from engine.pretraining import packing_cache, require_word_starts

if TYPE_CHECKING:
    from engine.assemble import Parts
    from engine.hooks import ChoiceHook, ForgettingHook, Measured, Sink, ValidationHook
    from engine.oversight import Oversight
    from engine.protocols import Batch


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a measuring hook is given beside the stage's parts.

    Attributes:
        oversight: tells whether the run is to go on, before each turn.
        sinks: who gets the numbers.
        measured: where every rank keeps them for the hooks that decide.
    """

    oversight: "Oversight"
    sinks: "Sequence[Sink]"
    measured: "Measured"


@dataclass(frozen=True, slots=True)
class HeldOutRows:
    """The validation sets' rows; always the same ones."""

    parts: "Parts"
    rows: "dict[str, FixedRows]"

    @classmethod
    def open(cls, parts: "Parts") -> "HeldOutRows":
        """Every set of the stage; none without validation.

        Raises:
            DataError: a damaged shard, another tokenizer, or no word starts where they are needed.
        """
        stage, found = parts.stage, {}
        if stage.validation is None:
            return cls(parts, {})
        for name, location in stage.validation.sets.items():
            rows = FixedRows.open(
                find_shards(location, parts.context.locate),
                stage.data.length,
                stage.validation.rows,
                stage.data.packing,
                packing_cache(parts.context),
                shards=stage.data.cache,
            )
            _require_same_tokenizer(name, rows, parts.stream)
            require_word_starts(stage.objective, rows.reader)
            found[name] = rows
        return cls(parts, found)

    def batches(self, name: str, draw: int = 0) -> "list[Batch]":
        """A set's rows with the masks of a draw, whatever the run: 0 is that of each validation."""
        from engine.assemble import collate_all

        rows = self.rows[name]
        examples, size = rows.examples(0, len(rows)), self.parts.batches.micro_batch
        return collate_all(self.parts.objective, examples, size, draw, 1)

    def row_by_row(self, name: str) -> "list[Batch]":
        """The same with each row as a source of its own, so that its loss comes out."""
        import numpy as np

        rows = self.rows[name]
        examples, size = rows.examples(0, len(rows)), self.parts.batches.micro_batch
        pieces = [examples[at : at + size] for at in range(0, len(examples), size)]
        return [
            # The source's number is no part of what masks are keyed by: they stay the same.
            self.parts.objective.collate(piece.with_sources(np.arange(len(piece))), 0, len(piece))
            for piece in pieces
        ]


def validation(
    parts: "Parts", held_out: HeldOutRows, around: Surroundings
) -> "list[ValidationHook]":
    """The validation that the stage asks for."""
    from engine.hooks import ValidationHook

    asked = parts.stage.validation
    if asked is None:
        return []
    hook = ValidationHook(
        parts.context.folder / "validation.jsonl",
        {name: held_out.batches(name) for name in asked.sets},
        asked.every,
        parts.steps,
        around.sinks,
        around.oversight.goes_on,
        around.measured,
        parts.objective.measures,
        parts.backend.average_key if asked.average else None,
    )
    return [hook]


def forgetting(
    parts: "Parts", held_out: HeldOutRows, around: Surroundings
) -> "list[ForgettingHook]":
    """The watch over what must not be forgotten."""
    from engine.hooks import ForgettingHook
    from engine.hooks.noise import HeldOut

    asked = parts.stage.forgetting
    if asked is None:
        return []
    rows = HeldOut(
        lambda draw: held_out.batches(asked.set, draw), lambda: held_out.row_by_row(asked.set)
    )
    path, goes_on = parts.context.folder / "forgetting.jsonl", around.oversight.goes_on
    raises = _raising(parts)
    return [ForgettingHook(asked, path, rows, around.measured, raises, around.sinks, goes_on)]


def choice(parts: "Parts", around: Surroundings) -> "list[ChoiceHook]":
    """The choice of a checkpoint."""
    from engine.hooks import ChoiceHook

    asked = parts.stage.choose
    return [ChoiceHook(asked, around.measured)] if asked else []


def _raising(parts: "Parts") -> Callable[[int, str, float], None]:
    def raise_source(step: int, source: str, factor: float) -> None:
        batch = parts.batches.global_batch
        # Batches that have been made ahead are made anew: the loop is left at this step.
        parts.stream = parts.stream.raising(source, factor, step * batch, parts.steps * batch)

    return raise_source


def _require_same_tokenizer(name: str, rows: FixedRows, stream: TokenStream) -> None:
    if rows.tokenizer.sha256 != stream.tokenizer_sha256:
        msg = (
            f"validation set '{name}' was made with tokenizer {rows.tokenizer.sha256[:16]}, the "
            f"training data with {stream.tokenizer_sha256[:16]}; prepare both with the same one"
        )
        raise DataError(msg)
