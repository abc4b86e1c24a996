"""Prepare as datatrove pipelines, one a phase, for its local, Slurm and Ray executors.

For corpora beyond what one launch reaches: Slurm's queue starts the tasks of each phase when those
of the one before are done. The records on the shared file system are the same as everywhere, so
what one way has begun another one can finish. datatrove is imported here: import this when used.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datatrove.executor import (
    LocalPipelineExecutor,
    RayPipelineExecutor,
    SlurmPipelineExecutor,
)
from datatrove.pipeline.base import PipelineStep

from configs.errors import RecipeError
from configs.stage import Share, StageContext
from data_pipeline.parallel import Workers
from data_pipeline.preparing.crew import perform
from data_pipeline.preparing.job import PHASES, SINGLE, Job
from data_pipeline.tokenization.block import one_thread

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor

    from data_pipeline.prepare import PrepareStage

ExecutorName = Literal["local", "slurm", "ray"]
_KINDS = {
    "local": LocalPipelineExecutor,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
}
_OURS = frozenset({"self", "pipeline", "tasks", "logging_dir", "depends", "skip_completed"})


class PreparePhase(PipelineStep):  # type: ignore[misc] # datatrove has no types
    """One phase of a prepare stage: rank r of n does the tasks r, r + n, r + 2n, ...

    It reads no documents from the step before it, and hands on those that come.
    """

    type = "Onward"

    def __init__(self, stage: "PrepareStage", context: StageContext, phase: str) -> None:
        self.name = phase
        super().__init__()
        self.stage = stage
        self.context = context
        self.phase = phase

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do this rank's tasks that are not done yet."""
        if self.phase not in SINGLE:
            one_thread()
        job = Job(self.stage, self.context)
        phase = job.phase(self.phase)
        with self.track_time("task"):
            perform(job.board(self.phase), phase, Share(rank, world_size), Workers(1))
        self.stat_update("tasks", value=len(phase.tasks[rank::world_size]), unit="rank")
        yield from data or ()


def build_executor(
    stage: "PrepareStage",
    context: StageContext,
    kind: ExecutorName,
    tasks: int,
    logs: Path,
    settings: Mapping[str, Any],
) -> "PipelineExecutor":
    """The executor of the last phase, which depends on that of the one before, and so on.

    Args:
        stage: what is prepared.
        context: of the run it stands in.
        kind: which of datatrove's executors.
        tasks: how many ranks share each phase that can be shared.
        logs: folder for datatrove's logs, one below it for each phase.
        settings: further arguments of the executor.

    Raises:
        RecipeError: a setting that the executor does not have, or lacks.
    """
    require_settings(kind, settings)
    made = _KINDS[kind]
    given = {**_environment(kind, settings), **settings}
    last = None
    for phase in PHASES:
        if kind == "slurm" and "job_name" not in settings:
            given["job_name"] = f"{context.name}-{phase}"
        last = made(
            pipeline=[PreparePhase(stage, context, phase)],
            tasks=1 if phase in SINGLE else tasks,
            logging_dir=str(logs / phase),
            depends=last,
            # The records tell what is done; datatrove's own notes may be of other files.
            skip_completed=False,
            **given,
        )
    return last


def _environment(kind: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """On Slurm's nodes the same virtual environment as here, unless another is named."""
    named = {"env_command", "condaenv", "venv_path"}.intersection(settings)
    activate = Path(sys.prefix) / "bin" / "activate"
    if kind != "slurm" or named or not activate.is_file():
        return {}
    return {"venv_path": str(activate)}


def require_settings(kind: ExecutorName, settings: Mapping[str, Any]) -> None:
    """RecipeError for an argument that the executor does not have, or lacks."""
    parameters = inspect.signature(_KINDS[kind].__init__).parameters
    known = {name: parameter for name, parameter in parameters.items() if name not in _OURS}
    for name in settings:
        if name not in known:
            msg = f"--set {name}: datatrove's {kind} executor has {', '.join(known)}"
            raise RecipeError(msg)
    needed = [n for n, p in known.items() if p.default is p.empty and n not in settings]
    if needed:
        msg = f"datatrove's {kind} executor needs " + ", ".join(f"--set {n}=..." for n in needed)
        raise RecipeError(msg)
