"""What the last bits of a launched stage's sums depend on: then, and now."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from configs.stage import StageConfig
from launcher.run_folder import Status, Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """Who ran a stage, and how they shared the work.

    Attributes:
        workers: None for a stage that is not launched.
        shared_out: fact -> value, as the stage names them.
    """

    workers: Workers | None
    shared_out: Mapping[str, str | int]

    @classmethod
    def of(cls, status: Status | None) -> "Begun | None":
        """What a stage was begun with; None if it was not launched before."""
        if status is None or status.workers is None:
            return None
        return cls(status.workers, status.shared_out)

    @classmethod
    def now(cls, stage: StageConfig, workers: Workers | None) -> "Begun":
        """What it goes on with."""
        return cls(workers, stage.shared_out(workers.processes) if workers else {})

    def compare(self, name: str, now: "Begun", redrawn: Iterable[str]) -> None:
        """Warn if the two differ; ``redrawn``: facts by which dropout is drawn."""
        keys = dict.fromkeys([*self.shared_out, *now.shared_out])
        changed = [key for key in keys if self.shared_out.get(key) != now.shared_out.get(key)]
        crews = [self.workers, now.workers] if self.workers != now.workers else ["", ""]
        if not changed and self.workers == now.workers:
            return
        logger.warning(
            "%s: begun with %s, goes on with %s: "
            "its losses will agree with an uninterrupted run's to rounding, not bit for bit%s",
            name,
            _told(crews[0], self.shared_out, changed),
            _told(crews[1], now.shared_out, changed),
            "; dropout falls elsewhere" if set(changed) & set(redrawn) else "",
        )


def _told(crew: object, facts: Mapping[str, str | int], keys: Iterable[str]) -> str:
    values = [f"{key} {facts[key]}" if key in facts else f"no {key}" for key in keys]
    return ", ".join([str(crew), *values] if crew else values)
