"""The fine-tuning stage: every arm with every seed on one task, each cell by the engine's loop."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, StringConstraints, field_validator

from configs import deepspeed_facts
from configs.deepspeed_json import AUTO, read_deepspeed
from configs.errors import RecipeError
from configs.stage import Runs, StageConfig, StageContext
from downstream.heads import Head, LinearHead
from downstream.records import read_json
from downstream.tasks.rows import TaskData
from engine.adaptation import AdaptationConfig, FullTraining
from engine.backends import BackendConfig
from engine.models import PretrainedModel
from engine.optimization import OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from downstream.cell import Cell
    from downstream.table import Table

ArmName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_+.-]*$")]


class FinetuneStage(StageConfig):
    """Fine-tunes every arm with the same seeds, the same rows and the same settings.

    With the plain backend, cells are spread over the ranks; with DeepSpeed, all ranks work on
    one cell after the other. Finished cells are not run again.
    """

    VERSION: ClassVar[int] = 3
    RUNS: ClassVar[Runs] = "ranks"
    REDRAWN: ClassVar[frozenset[str]] = frozenset({deepspeed_facts.MICRO_BATCH})
    KEPT: ClassVar[frozenset[str]] = frozenset({"cells/*.json"})

    kind: Literal["finetune"] = "finetune"
    task: str = Field(description="location of a task folder")
    arms: dict[ArmName, str] = Field(min_length=1, description="name -> location of a model")
    seeds: tuple[int, ...] = Field(min_length=2, description="the same for every arm")
    length: int = Field(128, ge=4, description="tokens a text is cut at, special ones included")
    head: Head = LinearHead()
    adaptation: AdaptationConfig = Field(
        FullTraining(), description="of every arm alike; the head always trains"
    )
    epochs: PositiveInt = 3
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    backend: BackendConfig

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            msg = f"seeds {list(seeds)}: each must be another one"
            raise ValueError(msg)
        return seeds

    def run(self, context: StageContext) -> str:
        """Run what is missing of the table, gather it, and return the predictions' digest."""
        from downstream.table import Table
        from engine import distributed

        table = Table(self, context)
        for cell in self._mine(table):
            table.run(cell)
        distributed.wait_for_all()
        fingerprint = table.gather() if distributed.rank() == 0 else ""
        return str(distributed.broadcast_object(fingerprint))

    def keyed_facts(self) -> dict[str, Any]:
        """The config, and of the backend what changes more than rounding."""
        facts = deepspeed_facts.computed(read_deepspeed(self.backend.config))
        return super().keyed_facts() | {"backend": facts}

    def shared_out(self, ranks: int) -> dict[str, str | int]:
        """ZeRO stage, offload, micro-batch, and which backend it is; plain cells are alone."""
        values, name = read_deepspeed(self.backend.config), self.backend.name
        return deepspeed_facts.shared_out(values, name, 1 if name == "plain" else ranks)

    def check(self, context: StageContext) -> None:
        """Task, models and the batch split against one another."""
        self.backend.check()
        self.backend.plan(1)
        if read_deepspeed(self.backend.config).get("zero_optimization") == AUTO:
            msg = (
                f"stage {context.name}: backend.config: zero_optimization 'auto' is worked out for "
                "pretraining alone; name a ZeRO stage here"
            )
            raise RecipeError(msg)
        if context.is_made(self.task):
            TaskData.open(context.locate(self.task))
            read_json(context.locate(self.task) / "card.json")
        for location in self.arms.values():
            PretrainedModel(location=location).check(context.is_made, context.locate)

    def cells(self) -> list["Cell"]:
        """The table, seed by seed."""
        from downstream.cell import Cell

        return [Cell(arm, seed) for seed in self.seeds for arm in self.arms]

    def _mine(self, table: "Table") -> list["Cell"]:
        """The unfinished cells of this rank, as rank 0 sees them."""
        from engine import distributed

        found = [cell for cell in self.cells() if not table.is_finished(cell)]
        missing: list[Cell] = distributed.broadcast_object(found)
        if self.backend.name == "plain":
            return missing[distributed.rank() :: distributed.world()]
        return missing
