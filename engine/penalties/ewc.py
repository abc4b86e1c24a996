"""EWC: stay near a point, in the directions that mattered there (Kirkpatrick et al., 2017).

How much each weight mattered is the diagonal of the Fisher information, which the stage ``fisher``
estimates. For one running sum of several (online EWC, Schwarz et al., 2018) give that stage
``online``; several apart are given here, each with its own anchor.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from configs.schema import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from engine.checkpoint.store import FragmentStore
    from engine.protocols import Piece

FISHER = "fisher"
"""The key of the importances in what the stage ``fisher`` saves, and its folder there."""
HEADS = "heads."
"""Parameters that begin so are not the backbone's."""


class ElasticWeights(Config):
    """``strength / 2`` times the sum over tasks and weights of importance x squared distance.

    Importances are those of one target's loss, so that 1.0 weighs an old target as much as a new
    one, for small distances. The gradient joins the loss's after clipping.
    """

    ON: ClassVar[Literal["weights"]] = "weights"

    name: Literal["ewc"] = "ewc"
    strength: float = Field(1.0, gt=0)
    fisher: str | tuple[str, ...] = Field(
        description="location of a stage `fisher`, or of several", min_length=1
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """Of the states it adds to each weight."""
        return ElasticPull.keys

    @property
    def importances(self) -> tuple[str, ...]:
        """Locations of importances that it takes."""
        return (self.fisher,) if isinstance(self.fisher, str) else self.fisher

    @property
    def teachers(self) -> tuple[str, ...]:
        """Locations of models that it learns from: none."""
        return ()

    def build(self, stores: "Sequence[FragmentStore]") -> "ElasticPull":
        """The pull that the optimizer applies; ``stores``: what lies at ``importances``."""
        return ElasticPull(self.strength, stores)


class ElasticPull:
    """A WeightPenalty: the sum of the importances, and the anchor that they have together.

    A sum of parabolas is one parabola around their weighted mean, and a constant.
    """

    keys = ("ewc.importance", "ewc.anchor")

    def __init__(self, strength: float, stores: "Sequence[FragmentStore]") -> None:
        self._strength = strength
        self._stores = tuple(stores)

    def start(
        self,
        parameter: "Tensor",
        state: dict[str, Any],
        pieces: "Callable[[], Sequence[Piece]]",
    ) -> None:
        """Read importances and anchors of what the partition holds."""
        importance = state["ewc.importance"].view(-1)
        anchor = state["ewc.anchor"].view(-1)
        anchor.copy_(parameter.detach().reshape(-1))
        for piece in pieces():
            here = slice(piece.offset, piece.offset + piece.length)
            # As they are saved: where the states are bf16 their sum would be another than theirs.
            total = importance[here].double()
            weighted = total.clone()
            for store in self._stores:
                if piece.name.startswith(HEADS) and not store.has(piece.name, FISHER):
                    # A head that the old tasks did not know is free.
                    continue
                own = store.read(piece.name, FISHER, piece.start, piece.length)
                at = store.read(piece.name, "fp32", piece.start, piece.length)
                total += own.to(total)
                weighted += (own.double() * at.double()).to(weighted)
            importance[here] = total.to(importance.dtype)
            mean = (weighted / total).to(anchor.dtype)
            anchor[here] = mean.where(total > 0, anchor[here])

    def add_gradient(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Add ``strength * importance * (parameter - anchor)`` to the gradient."""
        gap = parameter.detach() - state["ewc.anchor"]
        if parameter.grad is not None:
            parameter.grad.addcmul_(gap, state["ewc.importance"], value=self._strength)
