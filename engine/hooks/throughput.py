"""How much of the device's arithmetic the training uses: MFU against a matmul rate measured here.

FLOPs: 6 for each matrix weight a token is multiplied with (4 if the weight is frozen, 2 below the
lowest layer with anything that trains), the head's only for targets; attention 12*L*d*s for
encoders, 6*L*d*s for decoders. Recomputing does not count.
"""

from time import perf_counter
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError
from engine.flops import Cost
from engine.layers import layer_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engine.protocols import Architecture, Backend

_FORWARD = _INPUT_GRADIENT = _WEIGHT_GRADIENT = 2


def training_cost(backbone: "nn.Module", architecture: "Architecture", length: int) -> Cost:
    """What a transformers model costs on rows of ``length`` tokens."""
    model: Any = backbone
    inside = {id(module) for module in model.base_model.modules()}
    below = _below_training(backbone)
    token = target = 0.0
    for name, module in backbone.named_modules():
        flops = _matrix_flops(module, model.config, has_gradient=f"{name}." not in below)
        if id(module) in inside:
            token += flops
        else:
            target += flops
    config = model.config
    per_layer = (6 if architecture == "causal_lm" else 12) * config.hidden_size * length
    return Cost(token + per_layer * config.num_hidden_layers, target)


def _below_training(backbone: "nn.Module") -> set[str]:
    """Names, with a dot, of modules below the lowest layer with anything that trains.

    Their backward pass is never made. Of a model whose layers cannot be told: none.
    """
    try:
        depths = layer_of(backbone)
    except RecipeError:
        return set()
    trained = [depths[name] for name, p in backbone.named_parameters() if p.requires_grad]
    lowest = min(trained, default=0)
    return {f"{name.rpartition('.')[0]}." for name, depth in depths.items() if depth < lowest}


def _matrix_flops(module: "nn.Module", config: Any, *, has_gradient: bool) -> float:
    """FLOPs a token of the matrices that the module itself holds; looked-up tables cost nothing."""
    from torch import nn

    if isinstance(module, nn.Embedding):
        return 0.0
    flops = 0.0
    for parameter in module.parameters(recurse=False):
        # ZeRO-3 leaves an empty tensor behind and keeps the real shape beside it.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if len(shape) < 2:
            continue
        size = float(shape.numel())
        if len(shape) == 3 and hasattr(config, "num_experts_per_tok"):
            size *= config.num_experts_per_tok / shape[0]
        backward = _INPUT_GRADIENT * has_gradient + _WEIGHT_GRADIENT * parameter.requires_grad
        flops += size * (_FORWARD + backward)
    return flops


def matmul_rate(device: "torch.device", dtype: "torch.dtype") -> float:
    """FLOP/s of a square matrix product on the device, the best of a few."""
    import torch

    size = 768 if device.type == "cpu" else 8192
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        _wait(device)
        began = perf_counter()
        left @ left
        _wait(device)
        best = min(best, perf_counter() - began)
    return 2 * size**3 / best


def _wait(device: "torch.device") -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Throughput:
    """FLOP/s of the model in a run, and their utilisation; ``start`` measures the device once."""

    def __init__(self, architecture: "Architecture", length: int) -> None:
        self._architecture = architecture
        self._length = length
        self._cost = Cost(0.0, 0.0)
        self._rate = 0.0
        self._world = 1

    def start(self, backend: "Backend") -> None:
        """Count the model's FLOPs and measure the device in the model's precision."""
        backbone: nn.Module = backend.learner.backbone  # type: ignore[assignment]  # nn.Module hides it
        self._cost = training_cost(backbone, self._architecture, self._length)
        dtype = next(backbone.parameters()).dtype
        self._rate = matmul_rate(backend.device, dtype)
        self._world = backend.world

    @property
    def rate(self) -> float:
        """FLOP/s of a matrix product on this rank's device, as measured at the start."""
        return self._rate

    def speed(self, tokens: float, targets: float, seconds: float) -> float:
        """FLOP/s of the model that a rank reached; ``tokens`` and ``targets``: of all ranks."""
        flops = self._cost.token * tokens + self._cost.target * targets
        return flops / (seconds * self._world)

    def utilisation(self, tokens: float, targets: float, seconds: float) -> float:
        """Share of the measured matmul rate of all ranks that went into the model; 1.0 is all."""
        return self.speed(tokens, targets, seconds) / self._rate
