"""Whether a model has positions for the rows it is to read."""

from typing import TYPE_CHECKING

from configs.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn


def require_positions(backbone: "nn.Module", length: int, what: str) -> None:
    """RecipeError if rows of ``length`` tokens are longer than the model can number."""
    from engine.isolation import longest_document

    longest = longest_document(backbone)
    if longest is not None and length > longest:
        msg = (
            f"{what}: length is {length}, but the model has positions for {longest} tokens; "
            "shorten the rows, or take a model with more positions"
        )
        raise RecipeError(msg)
