"""The modules of bottleneck adapters, and where in a layer their output goes."""

from functools import partial
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from engine.adaptation.adapter import ATTENTION
from engine.adaptation.sublayers import Sublayers, sublayers_of
from engine.additions import Adding
from engine.layers import layer_list

if TYPE_CHECKING:
    from engine.adaptation.adapter import Adapter

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
_SPREAD = 0.02


class Bottleneck(nn.Module):
    """``scale * up(activation(down(x)))``; 0 until ``up`` has learned.

    Args:
        width: of the residual stream.
        size: between the two matrices.
        activation: a name.
        scale: of what comes out.
    """

    def __init__(self, width: int, size: int, activation: str, scale: float) -> None:
        super().__init__()
        self.down = nn.Linear(width, size)
        self.activation = _ACTIVATIONS[activation]()
        self.up = nn.Linear(size, width)
        self.scale = scale
        nn.init.normal_(self.down.weight, std=_SPREAD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, stream: Tensor) -> Tensor:
        """What is added to the stream: [..., width] -> [..., width]."""
        change: Tensor = self.up(self.activation(self.down(stream)))
        return change if self.scale == 1 else change * self.scale


class BottleneckAdapters(Adding):
    """One or two bottlenecks in every layer, as modules of the layer."""

    def __init__(self, config: "Adapter", seed: int) -> None:
        super().__init__(config, seed)
        self._config = config

    def insert(self, backbone: "nn.Module") -> tuple[str, ...]:
        """A layer's own modules stay as they are: hooks on them add what the bottlenecks say."""
        config, model = self._config, cast("Any", backbone)
        places = sublayers_of(backbone, "adaptation adapter")
        path, layers = layer_list(backbone)
        names = []
        for number, layer in enumerate(layers):
            for name in config.in_layer:
                width = model.config.hidden_size
                made = Bottleneck(width, config.size, config.activation, config.factor)
                layer.add_module(name, made)
                self._connect(layer, places, name, made)
                names.append(f"{path}.{number}.{name}")
        return tuple(names)

    def _connect(self, layer: nn.Module, places: Sublayers, name: str, adapter: Bottleneck) -> None:
        if self._config.placement != "parallel":
            place = places.attended if name == ATTENTION else places.fed
            layer.get_submodule(place).register_forward_hook(partial(_after, adapter))
        elif places.adding is None:
            layer.get_submodule(places.fed).register_forward_hook(partial(_beside, adapter))
        else:
            adding = layer.get_submodule(places.adding)
            adding.register_forward_pre_hook(partial(_into_sum, adapter))


def _after(adapter: Bottleneck, module: nn.Module, inputs: Any, output: Any) -> Any:
    """The sublayer's output, changed by what the adapter makes of it."""
    del module, inputs
    if isinstance(output, tuple):
        return (output[0] + adapter(output[0]), *output[1:])
    return output + adapter(output)


def _beside(adapter: Bottleneck, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The sublayer's output, and beside it what the adapter makes of the same input."""
    del module
    changed: Tensor = output + adapter(inputs[0])
    return changed


def _into_sum(adapter: Bottleneck, module: nn.Module, inputs: Any) -> Any:
    """The same where a module adds the feed-forward part to its input: it is given their sum."""
    del module
    inner, stream = inputs
    return inner, stream + adapter(stream)
