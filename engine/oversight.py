"""What may end a run before its last step: a request to stop, or that it hangs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import distributed, watchdog
from engine.stopping import Stopping

if TYPE_CHECKING:
    from configs.stage import StageContext
    from engine.protocols import Backend


@dataclass(frozen=True, slots=True)
class Oversight:
    """Both, for one run on all ranks."""

    stop: Stopping
    watchdog: watchdog.Watchdog

    @classmethod
    def of(cls, context: "StageContext", backend: "Backend", hang_after: float) -> "Oversight":
        """Every rank calls it; ``hang_after``: seconds without progress that are too many."""
        # Without a launcher there is nobody who reads it but people.
        folder = context.launch or context.folder / "launch"
        distributed.on_first(lambda: watchdog.forget(folder))
        stop = Stopping(context.stop)
        ranks = (backend.rank, backend.world)
        leave = context.stop.leave
        dog = watchdog.Watchdog(folder, hang_after, ranks, leave, lambda: stop.has_lost_a_rank)
        dog.is_wanted = context.stop.is_wanted
        return cls(stop, dog)

    def goes_on(self, step: int) -> bool:
        """A turn of a validation begins; False, on all ranks, if the run is to end first."""
        self.watchdog.enter("validation", step)
        return not self.stop.agreed()
