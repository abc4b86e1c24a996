"""The pretraining stage with probes: what a recipe's ``kind: pretrain`` is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt, StringConstraints

from configs.errors import DataError
from configs.schema import Config
from configs.stage import StageContext
from downstream.tasks.rows import Side, TaskData, limited
from engine.pretraining import PretrainStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.assemble import Parts
    from engine.protocols import Hook
    from engine.watching import Surroundings

SIDES: tuple[Side, Side] = ("train", "dev")
ProbeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]*$")]


class ProbeRows(Config):
    """The most rows that a probe reads of a side; which ones depends on their ids alone."""

    train: PositiveInt = 1000
    dev: PositiveInt = 500


class ProbeConfig(Config):
    """How well a linear classifier on the frozen model does on a task's dev side.

    Features are the mean of a text's hidden states, each scaled to variance 1 over train; the
    classifier is a logistic regression. The test side is not looked at.
    """

    task: str = Field(description="location of a task folder")
    every: PositiveInt = Field(description="steps between two probes")
    rows: ProbeRows = ProbeRows()
    length: int = Field(128, ge=4, description="tokens a text is cut at, special ones included")

    def load(self, locate: Callable[[str], Path]) -> TaskData:
        """The rows of train and dev that it reads; DataError if those of train are of one class."""
        data = TaskData.open(locate(self.task))
        most = self.rows
        sides = {side: limited(data.sides[side], getattr(most, side), 0) for side in SIDES}
        if len({row.label for row in sides["train"]}) < 2:
            msg = f"probe on {self.task}: its train rows are of one class; give more (rows.train)"
            raise DataError(msg)
        return replace(data, sides=sides)


class ProbedPretraining(PretrainStage):
    """Continued pretraining, watched by what tasks can be told from the model's features."""

    probes: dict[ProbeName, ProbeConfig] = Field(
        default_factory=dict, description="name -> a linear probe on a task, while it trains"
    )

    def measured(self) -> list[str]:
        """Those of the probes, too."""
        return [*super().measured(), *(f"probe/{name}/" for name in self.probes)]

    def more_hooks(self, parts: "Parts", around: "Surroundings") -> "Sequence[Hook]":
        """The hook of all probes, if there are any."""
        from downstream.probing import Probe, ProbeHook

        if not self.probes:
            return ()
        probes = {name: Probe.build(asked, parts) for name, asked in self.probes.items()}
        return [ProbeHook(parts.context.folder / "probes.jsonl", probes, parts.steps, around)]

    def check(self, context: StageContext) -> None:
        """Their task folders, too."""
        super().check(context)
        for asked in self.probes.values():
            if context.is_made(asked.task):
                asked.load(context.locate)
