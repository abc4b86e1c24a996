"""A prepare stage on datatrove's executors instead of this program's own processes."""

import importlib.util
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from configs.errors import LaunchError, RecipeError
from data_pipeline.prepare import PrepareStage
from launcher import chain
from launcher.conduct import Conductor
from launcher.interruption import signals_interrupt

ExecutorName = Literal["local", "slurm", "ray"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How the work is spread.

    Attributes:
        executor: which of datatrove's.
        tasks: ranks that share each phase.
        logs: where datatrove logs; None: in the stage's folder, hidden.
        settings: further arguments of the executor, as ``key=value``.
    """

    executor: ExecutorName
    tasks: int
    logs: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """``key=value`` as arguments: numbers, true, false, null and JSON as such, the rest as text."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            msg = f"--set {word}: expected KEY=VALUE, such as partition=cpu or time=20:00:00"
            raise RecipeError(msg)
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def run_spread(conductor: Conductor, name: str, spread: Spread) -> None:
    """Run a prepare stage by datatrove; on Slurm: submit it.

    What datatrove's jobs have done is noted by `onward run`, which also finishes what is left.

    Raises:
        RecipeError: no prepare stage, a package that is missing, or a wrong setting; before
            anything is written.
        LaunchError: Slurm's commands are missing.
        OnwardError: what stopped a task.
    """
    stage = conductor.recipe.stages.get(name)
    if not isinstance(stage, PrepareStage):
        msg = f"stage {name}: datatrove runs prepare stages alone"
        raise RecipeError(msg)
    _require(spread.executor)
    from data_pipeline.preparing.on_datatrove import build_executor, require_settings

    require_settings(spread.executor, spread.settings)
    conductor.check()
    with signals_interrupt(), conductor.folder.lock():
        context = chain.enter(conductor.recipe, conductor.folder, name)
        if context is None:
            conductor.tell(f"{name}: done already")
            return
        logs = spread.logs or context.folder / ".datatrove"
        kind, settings = spread.executor, spread.settings
        try:
            built = build_executor(stage, context, kind, spread.tasks, logs.absolute(), settings)
            if kind == "slurm":
                # From its first job on the queue may work in the folder.
                chain.note_submitted(conductor.folder, name)
            built.run()
        except BaseException as error:
            chain.fail(conductor.folder, name, error)
            raise
    if spread.executor == "slurm":
        conductor.tell(f"{name}: submitted; when its jobs have ended, `onward run` goes on from it")
    else:
        conductor.run()


def _require(executor: ExecutorName) -> None:
    needed = {"datatrove": "'onward[scale]'"} | ({"ray": "ray"} if executor == "ray" else {})
    for package, install in needed.items():
        if importlib.util.find_spec(package) is None:
            msg = f"datatrove's {executor} executor needs {package}: pip install {install}"
            raise RecipeError(msg)
    if executor == "slurm" and shutil.which("sbatch") is None:
        msg = (
            "datatrove's slurm executor needs Slurm's command sbatch, which is not on PATH here; "
            "submit from a machine of the cluster, or give --executor local"
        )
        raise LaunchError(msg)
