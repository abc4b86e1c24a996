"""L2-SP: stay near the starting point, in squared distance (Li et al., 2018)."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from configs.schema import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from engine.checkpoint.store import FragmentStore
    from engine.protocols import Piece


class StartingPoint(Config):
    """``strength / 2`` times the squared distance of every trained weight from its first value.

    Its gradient joins the loss's after clipping, so the logged norm is the loss's alone.
    """

    ON: ClassVar[Literal["weights"]] = "weights"

    name: Literal["l2_sp"] = "l2_sp"
    strength: float = Field(0.01, gt=0)

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the states it adds to each weight."""
        return StartingPointPull.keys

    @property
    def importances(self) -> tuple[str, ...]:
        """Locations of importances that it takes: none."""
        return ()

    @property
    def teachers(self) -> tuple[str, ...]:
        """Locations of models that it learns from: none."""
        return ()

    def build(self, stores: "Sequence[FragmentStore]" = ()) -> "StartingPointPull":
        """The pull that the optimizer applies; it reads nothing."""
        del stores
        return StartingPointPull(self.strength)


class StartingPointPull:
    """A WeightPenalty: the anchor is optimizer state, partitioned and saved with the moments."""

    keys = ("l2_sp.anchor",)

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def start(
        self,
        parameter: "Tensor",
        state: dict[str, Any],
        pieces: "Callable[[], Sequence[Piece]]",
    ) -> None:
        """Anchor at the present value."""
        del pieces
        state["l2_sp.anchor"].copy_(parameter.detach())

    def add_gradient(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Add ``strength * (parameter - anchor)`` to the gradient."""
        gap = parameter.detach() - state["l2_sp.anchor"]
        if parameter.grad is not None:
            parameter.grad.add_(gap, alpha=self._strength)
