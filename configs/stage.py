"""The seam of a chain: what a stage is given, what it hands on, and how it names earlier ones."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict

from configs.errors import DataError, RecipeError
from configs.schema import Config
from configs.stop import StopRequest

STAGE_PREFIX = "stage:"


@dataclass(frozen=True, slots=True)
class Artifact:
    """What a finished stage hands on: its folder, and a digest of what lies there."""

    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Share:
    """Which of those who do a stage's work together this process is; they share a file system.

    Attributes:
        index: from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1


Runs = Literal["once", "hosts", "ranks"]
"""``once``: in one process. ``hosts``: in one process a host. ``ranks``: on every rank."""


@dataclass(frozen=True, slots=True)
class StageContext:
    """All that a stage may know of the run it stands in.

    Attributes:
        name: the stage's name in the recipe.
        folder: the stage's own folder in the run; it exists, though not always during ``check``.
        seed: the recipe's seed.
        key: hash of the stage's config (but ``UNKEYED``), its inputs' fingerprints and its
            code's version.
        inputs: the earlier stages it names, by name. During ``check`` a stage that has not
            run yet is absent from it.
        share: of a stage that runs on every host: which of the hosts this is.
        stop: of this process alone: what asks a stage in mid-run to save its state and end.
        launch: where the processes of a launch leave word for the launcher; None without one.
    """

    name: str
    folder: Path
    seed: int
    key: str
    inputs: Mapping[str, Artifact]
    share: Share = Share()
    stop: StopRequest = field(default_factory=StopRequest, compare=False)
    launch: Path | None = field(default=None, compare=False)

    def locate(self, location: str) -> Path:
        """The path behind ``stage:NAME/rest`` or a plain path; DataError if nothing is there."""
        name, rest = split_location(location)
        if name is None:
            path = Path(location)
        elif name in self.inputs:
            path = self.inputs[name].folder / rest
        else:
            msg = f"stage {self.name}: {location}: stage '{name}' has not been run"
            raise DataError(msg)
        if not path.exists():
            msg = f"stage {self.name}: {location}: nothing at {path}"
            raise DataError(msg)
        return path

    def is_made(self, location: str) -> bool:
        """False only for a location in a stage that has not run yet."""
        name, _ = split_location(location)
        return name is None or name in self.inputs


def split_location(location: str) -> tuple[str | None, str]:
    """``stage:NAME/rest`` -> (NAME, rest); any other location -> (None, location)."""
    if not location.startswith(STAGE_PREFIX):
        return None, location
    name, _, rest = location.removeprefix(STAGE_PREFIX).partition("/")
    if not name:
        msg = f"{location}: expected stage:NAME or stage:NAME/PATH"
        raise RecipeError(msg)
    return name, rest


class StageConfig(Config, ABC):
    """One link of the chain. Every string in it that starts with ``stage:`` is an input.

    Class attributes:
        VERSION: raised when the code changes what the stage makes; part of the stage's key.
        RUNS: ``ranks``: ``run`` is called on every rank under the deepspeed launcher, and only
            rank 0's answer counts. ``hosts``: called once on every host of a hostfile, without
            torch's collectives; the hosts share the work as ``context.share`` says, and the first
            one's answer counts; without a hostfile of several hosts it is called once. ``once``:
            called once, in a process without torch's collectives.
        UNKEYED: dotted paths of fields that do not change what the stage makes; left out of its
            key, so that they may change between an interruption and the next start.
        APPENDED: dotted paths of fields that may grow while the stage is unfinished, as long as
            what has been done stays as it was, which ``run`` and ``check`` see to. Left out of
            its key; of a finished stage they must be what it was made with.
        REDRAWN: names in ``shared_out`` by which random numbers are drawn: where such a one
            changes on the way, dropout falls elsewhere.
        KEPT: globs of what an unfinished stage may have in its folder that cost much. While one is
            there, a change of the stage's key is refused until the user asks for ``--redo``;
            otherwise it is begun anew, in an empty folder.
        ADVANCES: globs of what appears in its folder, beside KEPT, as the stage comes further: from
            there it goes on after an interruption.
    """

    # A recipe is built of its stages' schemas: made here they serve it and the stage, made later
    # each is made twice.
    model_config = ConfigDict(defer_build=False)

    VERSION: ClassVar[int] = 1
    RUNS: ClassVar[Runs] = "once"
    UNKEYED: ClassVar[frozenset[str]] = frozenset()
    APPENDED: ClassVar[frozenset[str]] = frozenset()
    REDRAWN: ClassVar[frozenset[str]] = frozenset()
    KEPT: ClassVar[frozenset[str]] = frozenset()
    ADVANCES: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def run(self, context: StageContext) -> str:
        """Do the work in ``context.folder``; return the fingerprint of what was made.

        Called again after an interruption with the same key: it goes on from what it finds.
        """

    def keyed_facts(self) -> dict[str, Any]:
        """What decides on what it makes, JSON-able: its config, or what parts of that amount to.

        Such as a part that says one thing in several ways, or that says, too, what changes nothing.
        UNKEYED and APPENDED are still in it.
        """
        return self.model_dump(mode="json")

    def shared_out(self, ranks: int) -> dict[str, str | int]:
        """Of a stage that runs on ranks: how they share the work, fact -> value.

        These may change between an interruption and the next start, but sums are rounded otherwise
        then, which is told.
        """
        del ranks
        return {}

    def check(self, context: StageContext) -> None:
        """Raise the OnwardError that ``run`` would meet, as far as can be told without running."""
        del context

    def outdated(self, context: StageContext) -> str | None:
        """Of a finished stage: what it was made from that is not as it was; None if all is.

        Writes nothing. What ``context.inputs`` tells need not be looked at again.
        """
        del context
        return None
