"""Which checkpoint of a stage is the one to export, and whether more steps are worth it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from configs.schema import Config

CHOICE = "choice.json"
Better = Literal["lower", "higher"]
_DIRECTIONS: dict[str, Better] = {
    "loss": "lower",
    "change": "lower",
    "accuracy": "higher",
    "macro_f1": "higher",
}


class ChooseConfig(Config):
    """The checkpoint with the best value is kept and exported, in place of the last step's.

    Values are those that validation and probes measure. One is the best if it is better than the
    best before it by more than ``least_change``; of equal ones the first stays. The model before
    the first step has no checkpoint, and is not chosen.
    """

    by: str = Field(
        description="validation/SET/loss, validation/SET/average/loss, probe/NAME/macro_f1, ..."
    )
    better: Better | None = Field(None, description="absent: told by the measure's name")
    patience: PositiveInt | None = Field(
        None, description="measurements without a better one that end the stage; absent: none do"
    )
    least_change: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="what a better value differs by, at least"
    )

    @model_validator(mode="after")
    def _is_clear(self) -> "ChooseConfig":
        measure = self.by.rpartition("/")[2]
        if self.better is None and measure not in _DIRECTIONS:
            msg = (
                f"by '{self.by}': whether more of '{measure}' is better is not known, as it is of "
                f"{', '.join(_DIRECTIONS)}; name one of these, or "
                "give better: lower or better: higher"
            )
            raise ValueError(msg)
        return self

    @property
    def direction(self) -> Better:
        """What is better."""
        return self.better or _DIRECTIONS[self.by.rpartition("/")[2]]


@dataclass(frozen=True, slots=True)
class Value:
    """What was measured after a step."""

    step: int
    value: float


@dataclass
class Contest:
    """The best value so far, and how long there has been none better.

    Attributes:
        before: the value before the first step, if it was measured.
        bests: each that was the best when it was measured, in order.
        values: all of them, in order, that before the first step left out.
    """

    config: ChooseConfig
    before: float | None = None
    bests: list[Value] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def take_in(self, step: int, value: float) -> bool:
        """A measurement; True if it is the best one."""
        if step == 0:
            self.before = value
            return False
        self.values.append(Value(step, value))
        if self.bests and not self._is_better(value, self.bests[-1].value):
            return False
        self.bests.append(self.values[-1])
        return True

    def best(self, most: int | None = None) -> Value | None:
        """The best one; of those up to step ``most``, if that is given."""
        found = [each for each in self.bests if most is None or each.step <= most]
        return found[-1] if found else None

    def given_up(self) -> str:
        """Why more steps are not worth it; empty if they may be."""
        best, patience = self.best(), self.config.patience
        if best is None or patience is None:
            return ""
        since = sum(each.step > best.step for each in self.values)
        if since < patience:
            return ""
        return (
            f"{self.config.by} was {best.value:.6g} after step {best.step} and not "
            f"{self.config.direction} in {since} measurements since"
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-able; floats come back as they were."""
        return {
            "before": self.before,
            "bests": [[each.step, each.value] for each in self.bests],
            "values": [[each.step, each.value] for each in self.values],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave; empty: begin anew."""
        self.before = state.get("before")
        self.bests = [Value(*each) for each in state.get("bests", ())]
        self.values = [Value(*each) for each in state.get("values", ())]

    def _is_better(self, value: float, than: float) -> bool:
        gain = than - value if self.config.direction == "lower" else value - than
        return gain > self.config.least_change


def verdict(contest: Contest | None, last: int, why: str) -> dict[str, Any]:
    """Which step is exported, and why; JSON-able.

    Args:
        contest: None: nothing was chosen by, so that it is the last step.
        last: the last step that was taken.
        why: what ended the stage early; empty: nothing did.
    """
    best = contest.best() if contest else None
    facts: dict[str, Any] = {"step": best.step if best else last, "last_step": last}
    if contest is not None:
        facts |= {
            "by": contest.config.by,
            "better": contest.config.direction,
            "value": best.value if best else None,
            "before": contest.before,
            "measured": [{"step": each.step, "value": each.value} for each in contest.values],
        }
    return facts | {"ended_early": why or None}


def read_choice(folder: Path) -> dict[str, Any] | None:
    """What a stage's folder says of it; None: it has not come to an end, or chooses nothing."""
    path = folder / CHOICE
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts
