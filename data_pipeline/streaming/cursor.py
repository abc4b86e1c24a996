"""Where a run stands in its data: one number, and all that the number means something under."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from configs.errors import CheckpointError
from data_pipeline.streaming.mixture import Phase
from data_pipeline.streaming.order import IndexRange
from data_pipeline.streaming.schedule import Raised


@dataclass(frozen=True, slots=True)
class SourceState:
    """A source as the cursor knows it; the name is for people."""

    name: str
    digest: str
    rows: int


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in an order.

    Attributes:
        index: rows consumed by finished optimizer steps, over all ranks.
        order_version: of the code that orders.
        seed: of the order.
        length: tokens a row.
        packing: the packing's identity.
        shuffle: the shuffle's identity.
        block: rows a block of the mixture.
        sources: in the order of the recipe.
        phases: the mixture's schedule, with what becomes of shares where a source ends.
        skip: rows left out, in the numbering without any skip.
        raised: what the run itself has decided; ``phases`` tell of it, too.
    """

    index: int
    order_version: int
    seed: int
    length: int
    packing: str
    shuffle: str
    block: int
    sources: tuple[SourceState, ...]
    phases: tuple[Phase, ...]
    skip: tuple[IndexRange, ...]
    raised: tuple[Raised, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-able values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["sources"] = [asdict(source) for source in self.sources]
        values["phases"] = [[phase.first_block, list(phase.quotas)] for phase in self.phases]
        values["skip"] = [list(span) for span in self.skip]
        values["raised"] = [asdict(each) for each in self.raised]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Cursor":
        """Back from ``to_json``; CheckpointError when it is no such thing."""
        try:
            lists = {
                "sources": tuple(SourceState(**source) for source in values["sources"]),
                "phases": tuple(Phase(first, tuple(quota)) for first, quota in values["phases"]),
                "skip": tuple(IndexRange(*span) for span in values["skip"]),
                "raised": tuple(Raised(**each) for each in values.get("raised", ())),
            }
            return cls(**{**values, **lists})
        except (KeyError, TypeError, ValueError) as error:
            msg = f"data cursor: not what this version writes ({error}); it cannot be resumed from"
            raise CheckpointError(msg) from error

    def require_same_order(self, present: "Cursor") -> None:
        """CheckpointError naming every difference that would change what has been read.

        The schedule is append-only: what begins after the rows that were read may differ.
        """
        found = [*_settings(self, present), *_sources(self, present), *_schedule(self, present)]
        if found:
            listed = "\n  ".join(found)
            msg = (
                f"data cursor at row {self.index}: the data is no longer what was read up to there:"
                f"\n  {listed}\nrestore it, or start the stage again"
            )
            raise CheckpointError(msg)


_LEGEND = {"mixture": " [from block, rows a block ...]"}


def _settings(saved: Cursor, present: Cursor) -> list[str]:
    names = ("order_version", "seed", "length", "packing", "shuffle", "block")
    return [
        f"{name}: {getattr(saved, name)!r} was saved, {getattr(present, name)!r} is given"
        for name in names
        if getattr(saved, name) != getattr(present, name)
    ]


def _sources(saved: Cursor, present: Cursor) -> list[str]:
    if len(saved.sources) != len(present.sources):
        names = [", ".join(source.name for source in each.sources) for each in (saved, present)]
        return [f"sources: {names[0]} were saved, {names[1]} are given"]
    return [
        f"digest of source {then.name}: {then.digest[:16]} with {then.rows} rows was saved, "
        f"{now.digest[:16]} with {now.rows} rows ({now.name}) is given"
        for then, now in zip(saved.sources, present.sources, strict=True)
        if (then.digest, then.rows) != (now.digest, now.rows)
    ]


def _schedule(saved: Cursor, present: Cursor) -> list[str]:
    read = saved.index
    for span in saved.skip:
        read += span.stop - span.start if read > span.start else 0
    then, now = _read_under(saved, read), _read_under(present, read)
    block = -(-read // saved.block) * saved.block
    first = {"mixture": f"changes may begin after row {block}", "skip": f"skips at row {read}"}
    return [
        f"{name}{_LEGEND.get(name, '')} of the rows that were read: {then[name]} was saved, "
        f"{now[name]} is given; {first[name]}, or later"
        for name in then
        if then[name] != now[name]
    ]


def _read_under(cursor: Cursor, read: int) -> dict[str, list[list[int]]]:
    """The parts of the schedule that the first ``read`` rows (skipped ones counted) depend on."""
    phases = [phase for phase in cursor.phases if phase.first_block * cursor.block < read]
    return {
        "mixture": [[p.first_block, *p.quotas] for p in phases],
        "skip": [list(span) for span in cursor.skip if span.start < read],
    }
