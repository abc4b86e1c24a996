"""LoRA: low-rank updates beside frozen weights (Hu et al., 2021), through peft."""

import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt

from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.randomness import keyed

if TYPE_CHECKING:
    from torch import nn

    from engine.parameter_shapes import ModelShape
    from engine.trained_part import TrainedPart


FOLDER = "adapter"
"""Within an export: the updates by themselves, as peft loads them."""


class LowRank(Config):
    """Freeze the backbone and train rank-``rank`` updates of its linear layers."""

    name: Literal["lora"] = "lora"
    rank: PositiveInt = 8
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(
        None, description="ends of module names; absent: every linear layer but the vocabulary head"
    )

    def counted(self, shape: "ModelShape") -> "TrainedPart":
        """Two matrices beside each linear layer; a head made afresh is not foreseen."""
        from engine.parameter_shapes import low_rank
        from engine.trained_part import TrainedPart

        return TrainedPart(frozenset(), tuple(low_rank(shape, self.rank, self.targets)))

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

        The experts and the router of a mixture are no linear layers, and stay as they are.

        Raises:
            RecipeError: ``targets`` names no module of this model, or experts.
        """
        import torch
        from peft import LoraConfig, inject_adapter_in_model
        from transformers.pytorch_utils import Conv1D

        config = self._config
        settings = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(config.targets) if config.targets else _linear(backbone),
            # GPT-2 keeps its weights transposed.
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.modules()),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Of experts, which are refused below.
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern", RuntimeWarning)
            torch.manual_seed(keyed(self._seed, "lora"))
            try:
                adapted: nn.Module = inject_adapter_in_model(settings, backbone)
            except ValueError as error:
                msg = f"adaptation lora: targets {config.targets}: {error}"
                raise RecipeError(msg) from error
        _require_no_experts(adapted, config.targets)
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

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """The folder that ``peft.PeftModel.from_pretrained(model, ...)`` loads, in memory.

        For the model that training began with. None where the updates alone are not what was
        learned: beside a head made afresh, or on a model that carries additions.
        """
        from safetensors.torch import save

        from engine.additions import carried

        trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
        if carried(backbone) or any(".lora_" not in name for name in trained):
            return {}
        prefix = "base_model.model."
        tensors = {
            prefix + name.replace(".default.", "."): value.detach().contiguous()
            for name, value in backbone.state_dict().items()
            if ".lora_" in name
        }
        model: Any = backbone
        settings = model.peft_config["default"].to_dict() | {"inference_mode": True}
        # A set's order is another one in each process.
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        return {
            f"{FOLDER}/adapter_model.safetensors": save(tensors),
            f"{FOLDER}/adapter_config.json": json.dumps(plain, indent=2, sort_keys=True).encode(),
        }


def _linear(backbone: "nn.Module") -> str | list[str]:
    """Every linear layer but the head: peft's word for it, or names where peft means more by it.

    In a mixture of experts it would update the stacked experts, too, and write out each update in
    full at every pass, by swapping parameters that ZeRO and a compiler must find in their place.
    """
    from torch import nn

    if not _stacked(backbone):
        return "all-linear"
    model: Any = backbone
    head = model.get_output_embeddings()
    linear = (name for name, module in backbone.named_modules() if isinstance(module, nn.Linear))
    return [name for name in linear if backbone.get_submodule(name) is not head]


def _stacked(backbone: "nn.Module") -> bool:
    """Whether some weight holds several matrices: the experts of a mixture."""
    return any(parameter.ndim > 2 for parameter in backbone.parameters())


def _require_no_experts(adapted: "nn.Module", targets: tuple[str, ...] | None) -> None:
    from peft.tuners.lora.layer import ParamWrapper

    if any(isinstance(module, ParamWrapper) for module in adapted.modules()):
        msg = (
            f"adaptation lora: targets {targets} name experts or their router, which are no linear "
            "layers; name those of the attention, or train in full"
        )
        raise RecipeError(msg)
