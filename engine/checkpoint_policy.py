"""When the state is saved, how, and how much of it is kept: what a recipe says about it."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from configs.schema import Config


class CheckpointConfig(Config):
    """When the state is saved, and how much of it is kept."""

    every: PositiveInt = Field(description="steps between two checkpoints")
    keep: PositiveInt = Field(2, description="how many of the newest stay")
    keep_every: PositiveInt | None = Field(
        None, description="checkpoints of steps that it divides stay for ever; absent: none"
    )
    mode: Literal["sync", "async"] = Field(
        "sync",
        description="async: copied to host memory, then written while training goes on",
    )
    on_disk_error: Literal["stop", "go_on"] = Field(
        "stop",
        description=(
            "go_on: warn and try again at the next checkpoint; the last one, and one that choose "
            "or forgetting asks for, must succeed"
        ),
    )

    @model_validator(mode="after")
    def _is_reached(self) -> Self:
        if self.keep_every is not None and self.keep_every % self.every:
            msg = (
                f"'keep_every' is {self.keep_every}, which is no multiple of 'every' "
                f"({self.every}): nothing is saved at most of those steps; give a multiple"
            )
            raise ValueError(msg)
        return self

    def most_at_once(self, steps: int, beside: int = 0) -> int:
        """How many checkpoints lie on the disk at most in a run of ``steps``, one being written.

        ``beside``: those that other hooks keep, which may be of steps that ``every`` leaves out.
        """
        for_ever = steps // self.keep_every if self.keep_every else 0
        return min(-(-steps // self.every), self.keep + for_ever + 1) + beside
