"""In which order a model's passes come to its tensors: stage 3 gathers by it, buckets fill by it.

Pure: from the names of a model's weights alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.parameter_shapes import ModelShape


@dataclass(frozen=True, slots=True)
class Module:
    """One module in the order in which a pass enters them: after what holds it.

    Attributes:
        depth: how many modules hold it.
        tensors: numbers of those that it uses itself.
        is_whole: DeepSpeed knows no modules within it, as with a mixture of experts.
        has_backward: a gradient passes it; a teacher has none.
    """

    depth: int
    tensors: tuple[int, ...] = ()
    is_whole: bool = False
    has_backward: bool = True


Layout = tuple[Module, ...]

_FORWARD = {
    "LayerNorm": 1,
    "input_layernorm": -2,
    "post_attention_layernorm": 1,
    "mlp": 2,
    "token_type_embeddings": -1,
    "word_embeddings": -2,
}
"""Places among siblings in a forward pass, where it is not the order of the weights."""


@dataclass
class _Node:
    tensors: list[int] = field(default_factory=list)
    children: dict[str, "_Node"] = field(default_factory=dict)
    is_whole: bool = False

    def at(self, path: Sequence[str]) -> "_Node":
        node = self
        for name in path:
            node = node.children.setdefault(name, _Node())
        return node

    def walk(self, depth: int) -> Iterator[Module]:
        yield Module(depth, tuple(self.tensors), self.is_whole)
        order = _ordered(list(self.children))
        for name in order:
            yield from self.children[name].walk(depth + 1)


def _ordered(names: list[str]) -> list[str]:
    """Siblings in forward order."""
    if {"self_attn", "word_embeddings"} & set(names):
        return sorted(names, key=lambda name: _FORWARD.get(name, 0))
    return names


def layout_of(shape: "ModelShape", numbers: Sequence[int]) -> Layout:
    """A model's modules.

    Args:
        shape: of the model.
        numbers: of its weights, in its order: as which tensor each one counts.
    """
    root = _Node()
    biases: list[int] = []
    for weight, number in zip(shape.weights, numbers, strict=True):
        path, is_whole = _module(weight.name)
        node = root.at(path)
        node.tensors.append(number)
        node.is_whole = is_whole
        if weight.head and len(weight.shape) == 1 and weight.shape[0] == shape.sizes.vocabulary:
            biases.append(number)
    names = [weight.name for weight in shape.weights]
    if shape.output is not None and not _is_head(shape, shape.output):
        tied = root.at(_output(shape))
        tied.tensors[:] = [numbers[names.index(shape.output)], *biases]
    return tuple(root.walk(0))


def _module(name: str) -> tuple[list[str], bool]:
    """The path of the module that uses a weight, and whether it is a mixture of experts."""
    *path, _ = name.split(".")
    if "experts" in path or path[-2:] == ["mlp", "gate"]:
        return path[: path.index("mlp") + 1], True
    return path, False


def _is_head(shape: "ModelShape", name: str) -> bool:
    return next(weight.head for weight in shape.weights if weight.name == name)


def _output(shape: "ModelShape") -> list[str]:
    """The path of the module that turns hidden states into logits with the embeddings' matrix."""
    paths = {
        "bert": ["cls", "predictions", "decoder"],
        "modernbert": ["decoder"],
        "gpt2": ["lm_head"],
    }
    is_roberta = any(weight.name.startswith("lm_head.dense") for weight in shape.weights)
    return ["lm_head", "decoder"] if is_roberta else paths.get(shape.model_type, ["lm_head"])


def backward(layout: Layout) -> Iterator[int]:
    """Positions in the layout in the order in which a backward pass enters the modules."""
    for position in _reversed_children(layout, 0, len(layout)):
        if layout[position].has_backward:
            yield position


def _reversed_children(layout: Layout, start: int, end: int) -> Iterator[int]:
    """Of the subtrees between two positions, the last one first."""
    roots: list[int] = []
    position = start
    while position < end:
        roots.append(position)
        position = after(layout, position)
    for root in reversed(roots):
        yield root
        yield from _reversed_children(layout, root + 1, after(layout, root))


def after(layout: Layout, position: int) -> int:
    """Where the subtree of a module ends."""
    depth = layout[position].depth
    rest = range(position + 1, len(layout))
    return next((p for p in rest if layout[p].depth <= depth), len(layout))
