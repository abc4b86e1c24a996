"""Python's garbage collector under control: it runs between given steps, on all ranks at once.

Left to itself it runs in the middle of any step, on another one on each rank, and all the others
wait for that rank. What counts references frees memory as ever; only cycles wait for a collection.
"""

import gc

from engine.protocols import Backend, Hook, Progress, StepRecord

SETTLED = 3
"""Steps after which what is there will stay: weights, optimizer states, compiled graphs."""
EVERY = 20
"""Steps between two collections."""


class Garbage(Hook):
    """Collects after step SETTLED of this process and sets aside what is left then, as long-lived.

    From there on a collection, which looks at what is younger alone, comes every EVERY steps and at
    no other time. Afterwards, also when a step raised, the collector is as it was before.
    """

    name = "garbage"

    def __init__(self) -> None:
        self._settled_at: int | None = None
        self._was_enabled = False

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Note how the collector is, and when this process will have settled."""
        del backend
        self._settled_at = progress.step + SETTLED
        self._was_enabled = gc.isenabled()

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Set aside, or collect, if it is time."""
        del backend, record
        if self._settled_at is None or progress.step < self._settled_at:
            return
        if progress.step == self._settled_at:
            gc.collect()
            gc.freeze()
            gc.disable()
        elif progress.step % EVERY == 0:
            gc.collect()

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Let the collector see everything again, and run by itself if it did before."""
        del backend, progress
        if self._settled_at is None:
            return
        self._settled_at = None
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()
