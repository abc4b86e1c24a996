"""What the product's loop is given for a stage, around batches of one's own."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.assemble import Parts
    from engine.oversight import Oversight
    from engine.protocols import Batch, Hook, Run


def run_of(
    parts: "Parts", batches: Iterator[Sequence["Batch"]], steps: int, more: Sequence["Hook"] = ()
) -> tuple["Run", "Oversight"]:
    """The run with its hooks and observers, as ``engine.training`` puts it together.

    ``more``: further hooks, after its own.
    """
    from engine.assemble import make_hooks
    from engine.hooks import MetricsHook, Stragglers
    from engine.oversight import Oversight
    from engine.protocols import Run
    from engine.training import _memory

    oversight = Oversight.of(parts.context, parts.backend, parts.stage.hang_after)
    hooks = make_hooks(parts, oversight)
    timed = [hook.enter for hook in hooks if isinstance(hook, MetricsHook | Stragglers)]
    run = Run(
        parts.backend,
        batches,
        parts.stage.schedule,
        parts.stage.optimizer.lr,
        steps,
        parts.seed,
        [*hooks, *more],
        stop=oversight.stop,
        observers=(oversight.watchdog.enter, _memory(parts).enter, *timed),
    )
    return run, oversight
