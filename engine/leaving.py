"""Ways out of the training loop before its last step, which every rank takes alike."""


class Leave(Exception):  # noqa: N818 -- events, not mistakes
    """The loop is left after a step; what is done then is training's business, not the loop's."""


class Finish(Leave):
    """The stage is finished early: its state is saved."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"finished after step {step}: {why}")
        self.step = step
        self.why = why


class GoOn(Leave):
    """Go on at the same step with batches made anew: the data has changed, its state is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"on from step {step} with other data")
        self.step = step


class GoBack(Leave):
    """Back to an earlier checkpoint, and on from there in another way.

    Attributes:
        hook: name of the hook that asks for it, and is told where the run has gone back to.
        most: the latest step whose checkpoint will do.
        last: the step that led to it, counted from 0.
    """

    def __init__(self, why: str, hook: str, most: int, last: int) -> None:
        super().__init__(why)
        self.hook = hook
        self.most = most
        self.last = last

    def missing(self) -> str:
        """What to do where there is no such checkpoint."""
        return (
            f"there is no checkpoint from before step {self.most + 1} to go back to: save more "
            "often (checkpoint.every)"
        )

    def onward(self, step: int) -> str:
        """How the run goes on from the checkpoint of ``step``."""
        return f"back at the checkpoint of step {step}"
