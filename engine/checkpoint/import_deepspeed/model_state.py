"""Reads ``*_model_states.pt``: the names, shapes and ties that the other files go by."""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed.contents import ModelState, require
from engine.checkpoint.import_deepspeed.reading import Reader

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("module.", "_orig_mod.")
_EXPERTS = ("ds_autoep_layers", "autoep_layers")


def read_model_state(reader: Reader, path: Path) -> ModelState:
    """A rank's model states.

    Raises:
        CheckpointError: not what DeepSpeed writes, or of another parallelism than ZeRO's.
    """
    values = reader.load(path)
    _require_plain(values, path)
    module = require(values, "module", dict, path)
    require(values, "global_steps", int, path)
    prefix = _prefix(module)
    shapes = _shapes(values, prefix, path)
    buffers = set(values.get("buffer_names") or ())
    kept = {
        name.removeprefix(prefix): tensor for name, tensor in module.items() if name not in buffers
    }
    shared = values.get("shared_params")
    named = {k.removeprefix(prefix): v.removeprefix(prefix) for k, v in (shared or {}).items()}
    aliases = named if shared is not None else _aliases(kept)
    return ModelState(path, values, kept, shapes, aliases, prefix)


def require_same_run(first: ModelState, other: ModelState) -> None:
    """CheckpointError unless two ranks' model states are of one save."""
    for key in ("global_steps", "skipped_steps", "dp_world_size", "ds_version"):
        if first.values.get(key) != other.values.get(key):
            msg = (
                f"{other.path}: its {key} is {other.values.get(key)}, that of {first.path.name} is "
                f"{first.values.get(key)}: files of two checkpoints"
            )
            raise CheckpointError(msg)
    if first.shapes != other.shapes:
        msg = f"{other.path}: other parameters than in {first.path.name}: files of two checkpoints"
        raise CheckpointError(msg)


def _require_plain(values: Mapping[str, Any], path: Path) -> None:
    dims = values.get("checkpoint_parallel_dimensions") or {}
    degrees = {
        "model parallelism": values.get("mp_world_size", 1),
        "tensor parallelism": dims.get("tp_degree", 1),
        "pipeline parallelism": dims.get("pp_degree", 1),
    }
    found = [f"{kind} of {degree}" for kind, degree in degrees.items() if degree not in {None, 1}]
    if any(values.get(key) for key in _EXPERTS):
        found.append("experts spread over ranks")
    if "module" in values and values["module"] is None:
        found.append("pipeline parallelism")
    if found:
        msg = (
            f"{path}: written with {', '.join(found)}, which is not imported; export the weights "
            "there, in Hugging Face's format, and name that folder as the stage's model"
        )
        raise CheckpointError(msg)


def _prefix(names: Iterable[str]) -> str:
    """What wrappers such as DistributedDataParallel and torch.compile put before every name."""
    prefix, rest = "", list(names)
    while rest:
        wrapper = next((w for w in _WRAPPERS if all(name.startswith(w) for name in rest)), None)
        if wrapper is None:
            break
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


def _shapes(
    values: Mapping[str, Any], prefix: str, path: Path
) -> tuple[Mapping[str, tuple[int, ...]], ...] | None:
    groups = values.get("param_shapes")
    if groups is None:
        return None
    require(values, "param_shapes", list, path)
    return tuple(
        {name.removeprefix(prefix): tuple(shape) for name, shape in group.items()}
        for group in groups
    )


def _aliases(module: Mapping[str, "Tensor"]) -> dict[str, str]:
    """Names of one and the same tensor, which torch keeps one when it saves and loads."""
    first: dict[tuple[Any, ...], str] = {}
    found = {}
    for name, tensor in module.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if prod(tensor.shape) and first.setdefault(place, name) != name:
            found[name] = first[place]
    return found
