"""Prompt tuning: learned embeddings in front of the text (Lester et al., 2021)."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from configs.schema import Config

if TYPE_CHECKING:
    from engine.adaptation.soft_prompt import PromptAdaptation
    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


class Prompt(Config):
    """Freeze the backbone; train embeddings that stand before each row's text.

    A row then holds one document alone. They take the first positions, the text those behind.
    """

    name: Literal["prompt"] = "prompt"
    length: PositiveInt = Field(20, description="learned embeddings")

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """One table; it is looked up."""
        from engine.parameter_shapes import Weight
        from engine.trained_part import TrainedPart

        table = Weight("soft_prompt.weight", (self.length, shape.sizes.hidden), is_table=True)
        return TrainedPart(frozenset(), (table,))

    def build(self, seed: int) -> "PromptAdaptation":
        """The adaptation; ``seed`` draws which words' embeddings it begins with."""
        from engine.adaptation.soft_prompt import PromptAdaptation

        return PromptAdaptation(self, seed)
