"""A pretraining stage's training: from its newest checkpoint to its last step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import offload_device, read_deepspeed, zero_stage
from data_pipeline.streaming import Cursor
from engine.activation_checkpointing import recomputable
from engine.assemble import Parts, make_hooks
from engine.leaving import Finish, GoBack, GoOn

if TYPE_CHECKING:
    from engine.checkpoint import Checkpoint
    from engine.out_of_memory import OutOfMemory
    from engine.oversight import Oversight
    from engine.protocols import Batch, Hook, Progress, Schedule


def train_from_newest(parts: Parts) -> int:
    """Resume if there is a checkpoint, train to the end; returns the step to export.

    That is the last one, unless the stage chooses another. ``choice.json`` tells which, and why.

    Raises:
        Preempted: it was asked to stop; the state is saved.
        NumericalError: steps that are not to be learned from, and no rollback helps.
    """
    from engine import distributed, faults
    from engine.checkpoint import newest
    from engine.oversight import Oversight
    from engine.protocols import Progress
    from engine.rollback import step_back

    oversight = Oversight.of(parts.context, parts.backend, parts.stage.hang_after)
    hooks = make_hooks(parts, oversight)
    root, key = parts.context.folder / "checkpoints", parts.context.key
    found = newest(root, key, distributed)
    progress = Progress() if found is None else restore(parts, hooks, found)
    faults.reached("start")
    with parts.context.stop.heeded(), oversight.watchdog:
        while True:
            try:
                step, why = _train(parts, oversight, hooks, progress), ""
            except Finish as ended:
                step, why = ended.step, ended.why
            except GoOn as asked:
                progress = Progress(asked.step)
                continue
            except GoBack as asked:
                oversight.watchdog.enter("rollback", asked.last)
                _settle(hooks)
                progress = restore(parts, hooks, step_back(root, key, asked), asked)
                continue
            return _chosen(parts, hooks, step, why)


def _chosen(parts: Parts, hooks: Sequence["Hook"], last: int, why: str) -> int:
    """The step to export after ``last``; rank 0 writes which, where there was a choice."""
    from engine import distributed
    from engine.choice import CHOICE, verdict
    from engine.hooks import ChoiceHook, TensorBoardHook
    from engine.hooks.numbers import write_object

    contest = next((hook.contest for hook in hooks if isinstance(hook, ChoiceHook)), None)
    best = contest.best() if contest else None
    path = parts.context.folder / CHOICE
    if contest is None and not why:
        distributed.on_first(lambda: path.unlink(missing_ok=True))
    else:
        distributed.on_first(lambda: write_object(path, verdict(contest, last, why)))
    for hook in hooks:
        if isinstance(hook, TensorBoardHook):
            hook.finish(parts.backend, last)
    return best.step if best else last


def _settle(hooks: Sequence["Hook"]) -> None:
    """No checkpoint is on its way any more."""
    from engine.hooks import CheckpointHook

    for hook in hooks:
        if isinstance(hook, CheckpointHook):
            hook.settle()


def _train(
    parts: Parts, oversight: "Oversight", hooks: Sequence["Hook"], progress: "Progress"
) -> int:
    """From ``progress`` to the last step; a Leave, on all ranks, if a hook asks for it."""
    from engine.batches import Batches
    from engine.delivery import delivery_to
    from engine.forgetting import EasedSchedule
    from engine.hooks import ForgettingHook, GuardHook, MetricsHook, ProfileHook, Stragglers
    from engine.loop import train
    from engine.protocols import Run

    memory = _memory(parts)
    watching = MetricsHook | Stragglers | ProfileHook
    timed = [hook.enter for hook in hooks if isinstance(hook, watching)]
    guard = next((hook for hook in hooks if isinstance(hook, GuardHook)), None)
    schedule: Schedule = parts.stage.schedule
    for hook in hooks:
        if isinstance(hook, ForgettingHook):
            schedule = EasedSchedule(schedule, hook.rate)

    def make(step: int) -> list["Batch"]:
        return [] if guard and guard.avoids(step) else parts.make(step)

    delivery = delivery_to(parts.backend.device)
    with Batches(make, progress.step, parts.steps, delivery=delivery) as batches:
        run = Run(
            parts.backend,
            batches,
            schedule,
            parts.stage.optimizer.lr,
            parts.steps,
            parts.seed,
            hooks,
            guard=guard,
            stop=oversight.stop,
            observers=(oversight.watchdog.enter, memory.enter, *timed),
        )
        with memory.explained():
            return train(run, progress).step


def _memory(parts: Parts) -> "OutOfMemory":
    """What explains a lack of memory in this run."""
    from engine.out_of_memory import MemorySettings, OutOfMemory

    stage, backend = parts.stage, parts.backend
    values, backbone = read_deepspeed(stage.backend.config), backend.learner.backbone
    recomputed = stage.activation_checkpointing
    settings = MemorySettings(
        parts.batches,
        stage.data.length,
        zero_stage(values),
        frozenset(
            part for part in ("optimizer", "param") if offload_device(values, part) != "none"
        ),
        every=recomputed.every if recomputed else None,
        can_recompute=bool(recomputable(backbone)),  # type: ignore[arg-type]  # nn.Module hides it
        is_compiled=stage.compile is not None,
        on_accelerator=backend.device.type != "cpu",
    )
    return OutOfMemory(parts.context.name, backend.rank, settings)


def restore(
    parts: Parts, hooks: Sequence["Hook"], found: "Checkpoint", asked: GoBack | None = None
) -> "Progress":
    """Put weights, optimizer and hooks where the checkpoint left them.

    ``asked``: it is a rollback; the hook that asks for it is told, and rollbacks stay known.
    """
    from engine.frozen import require_same_frozen
    from engine.hooks import ForgettingHook, GuardHook

    require_same_frozen(found.state, parts.frozen, found.folder)
    cursor = Cursor.from_json(found.state["cursor"])
    parts.stream = parts.stream.following(cursor)
    parts.stream.resume(cursor)
    for hook in hooks:
        goes_back: Any = hook if asked and isinstance(hook, GuardHook | ForgettingHook) else None
        lasting = goes_back.lasting() if goes_back else None
        # A hook that the checkpoint does not know begins as in a new run, at a rollback, too.
        hook.load_state_dict(found.state["hooks"].get(hook.name, {}))
        if goes_back:
            goes_back.keep(lasting)
        if asked and hook.name == asked.hook:
            goes_back.go_on(asked, found.step)
    return found.restore(parts.backend)
