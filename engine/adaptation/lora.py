"""LoRA: low-rank updates beside frozen weights (Hu et al., 2021), through peft."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.randomness import keyed

if TYPE_CHECKING:
    from torch import nn


class LowRank(Config):
    """Freeze the backbone and train rank-``rank`` updates of its linear layers."""

    name: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(
        None, description="ends of module names; absent: every linear layer but the vocabulary head"
    )

    def build(self, seed: int) -> "LowRankAdaptation":
        """The adaptation with its first weights keyed by ``seed``."""
        return LowRankAdaptation(self, seed)


class LowRankAdaptation:
    """Injects the updates in place, and folds them in again."""

    def __init__(self, config: LowRank, seed: int) -> None:
        self._config = config
        self._seed = seed

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """The same backbone, its linear layers wrapped; only the updates are trainable.

        Raises:
            RecipeError: ``targets`` names no module of this model.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        config = self._config
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets) if config.targets else "all-linear",
            # GPT-2 keeps its weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed(self._seed, "lora"))
            try:
                adapted: nn.Module = inject_adapter_in_model(settings, backbone)
            except ValueError as error:
                msg = f"adaptation lora: targets {config.targets}: {error}"
                raise RecipeError(msg) from error
        return adapted

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The plain model with the updates added to its weights, in place."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        wrapped: list[tuple[str, Any]] = [
            (name, module)
            for name, module in backbone.named_modules()
            if isinstance(module, BaseTunerLayer)
        ]
        for name, module in wrapped:
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(backbone.get_submodule(parent), child, module.get_base_layer())
        if hasattr(backbone, "peft_config"):
            del backbone.peft_config
        return backbone.requires_grad_()
