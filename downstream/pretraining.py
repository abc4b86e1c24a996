"""The pretraining stage with probes: what a recipe's ``kind: pretrain`` is."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from configs.stage import StageContext
from downstream.probing import ProbeConfig
from engine.pretraining import PretrainStage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.assemble import Parts
    from engine.protocols import Hook
    from engine.watching import Surroundings

ProbeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]*$")]


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
