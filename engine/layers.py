"""Which transformer layer a parameter belongs to, for any model of transformers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import RecipeError
from engine.isolation import PROMPT

if TYPE_CHECKING:
    from torch import nn

# A module before the layers in the order of definition comes before them in the pass, too, but
# where its name says otherwise (OPT's ``final_layer_norm`` and ``project_out``).
_LATER = ("final", "_out")


def layer_of(backbone: "nn.Module") -> Mapping[str, int]:
    """Name of each parameter -> its depth, as ``backbone.named_parameters()`` has them.

    0: the embeddings, with what prepares them for the first layer; a matrix onto the vocabulary
    that is tied to them is one of them. 1 to L: the L layers. L + 1: what comes after them, that
    is the last norm and all heads. What an adaptation added belongs where it was put.

    Args:
        backbone: a transformers model, adapted or not, that no backend holds yet.

    Raises:
        RecipeError: it is not a pile of ``config.num_hidden_layers`` layers.
    """
    path, layers = layer_list(backbone)
    base = _base(backbone)
    outside = _path_of(backbone, base)
    first = _preparing(base, path)
    depths = {}
    for name, _ in backbone.named_parameters():
        inside = name.removeprefix(outside)
        if outside and inside == name:
            depths[name] = len(layers) + 1
        elif inside.startswith(f"{path}."):
            depths[name] = 1 + int(inside[len(path) + 1 :].split(".")[0])
        else:
            is_first = any(inside == part or inside.startswith(f"{part}.") for part in first)
            depths[name] = 0 if is_first else len(layers) + 1
    return depths


def layer_list(backbone: "nn.Module") -> "tuple[str, nn.ModuleList]":
    """The layers, from the lowest one, and their name within the base model.

    Raises:
        RecipeError: as ``layer_of``.
    """
    from torch import nn

    config: Any = backbone.config
    count = getattr(config, "num_hidden_layers", None)
    lists: dict[str, nn.ModuleList] = {}
    for name, module in _base(backbone).named_modules():
        is_inner = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not is_inner:
            lists[name] = module
    found = [(name, layers) for name, layers in lists.items() if len(layers) == count]
    if len(found) != 1:
        sizes = {name: len(layers) for name, layers in lists.items()}
        msg = (
            f"model {config.model_type}: cannot tell its layers: config.num_hidden_layers is "
            f"{count}, its lists of modules are {sizes}; expected exactly one of that length"
        )
        raise RecipeError(msg)
    return found[0]


def _base(backbone: "nn.Module") -> "nn.Module":
    """The model without its head."""
    model: Any = backbone
    base: nn.Module = model.base_model
    return base


def _path_of(backbone: "nn.Module", base: "nn.Module") -> str:
    """With its dot; empty if the backbone has no head."""
    names = (name for name, module in backbone.named_modules() if module is base)
    name = next(names)
    return f"{name}." if name else ""


def _preparing(base: "nn.Module", path: str) -> list[str]:
    """Names within the base model of what comes before the layers.

    What is defined before them, on the way down to their list, any table of embeddings beside, and
    a soft prompt, which is added last and stands first.
    """
    from torch import nn

    names = [PROMPT]
    steps = path.split(".")
    for depth, step in enumerate(steps):
        parent = base.get_submodule(".".join(steps[:depth]))
        above = "".join(f"{part}." for part in steps[:depth])
        names += [f"{above}{name}" for name, _ in parent.named_parameters(recurse=False)]
        is_before = True
        for name, child in parent.named_children():
            if name == step:
                is_before = False
                continue
            is_table = any(isinstance(module, nn.Embedding) for module in child.modules())
            if is_table or (is_before and not any(word in name for word in _LATER)):
                names.append(f"{above}{name}")
    return names
