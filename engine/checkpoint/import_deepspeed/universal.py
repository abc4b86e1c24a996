"""Universal checkpoints of ``ds_to_universal``: a folder a parameter, whole tensors in it."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed import contents
from engine.checkpoint.import_deepspeed.contents import (
    MOMENTS,
    WEIGHT,
    Contents,
    ModelState,
    Parameter,
    Piece,
    require_tensor,
)
from engine.checkpoint.import_deepspeed.files import Files
from engine.checkpoint.import_deepspeed.reading import Reader

_OPTIMIZER = "optimizer_state.pt"


def read_universal(reader: Reader, files: Files, models: Sequence[ModelState]) -> Contents:
    """A universal checkpoint, made of any stage's.

    Raises:
        CheckpointError: a parameter's file is missing or has another number of values.
    """
    first = models[0]
    root = files.folder / "zero"
    shapes = {name: shape for group in first.shapes or () for name, shape in group.items()}
    if not shapes:
        msg = f"{first.path}: no param_shapes; ds_to_universal converts ZeRO stages 1 to 3"
        raise CheckpointError(msg)
    common = reader.load(root / _OPTIMIZER)
    trained: dict[str, Parameter] = {}
    counts = []
    for name, shape in shapes.items():
        folder = root / (first.prefix + name)
        _require_folder(root, folder)
        trained[name] = _parameter(reader, folder, shape)
        if (folder / "step.pt").exists():
            counts.append(int(reader.load_tensor(folder / "step.pt")))
    whole = {name: tensor for name, tensor in first.module.items() if tensor.numel()}
    second = {name: whole[name] for name in trained if name in whole}
    kind = str(next(iter(second.values())).dtype).removeprefix("torch.") if second else ""
    return Contents(
        kind="universal checkpoint",
        version=str(first.values.get("ds_version", "unknown")),
        world=first.world,
        step=first.values["global_steps"],
        adam_steps=contents.one_step_count(counts or _counts(common), files.folder),
        trained=trained,
        aliases=first.aliases,
        second=second if len(second) == len(trained) else {},
        second_is=f"the checkpoint's own {kind} weights" if second else "",
        frozen={n: t for n, t in whole.items() if n not in trained and n not in first.aliases},
        loss_scale=contents.loss_scale(common),
        groups=contents.group_settings(common.get("param_groups") or ()),
    )


def _require_folder(root: Path, folder: Path) -> None:
    """A parameter's name comes out of a file: it must not lead out of the checkpoint."""
    if folder.parent != root or not folder.is_dir():
        msg = f"{folder}: no folder of that parameter in {root}; convert the checkpoint again"
        raise CheckpointError(msg)


def _parameter(reader: Reader, folder: Path, shape: tuple[int, ...]) -> Parameter:
    keys = [WEIGHT, *(key for key in MOMENTS if (folder / f"{key}.pt").exists())]
    if len(keys) == 2:
        msg = f"{folder}: one of {', '.join(MOMENTS)} is missing; convert the checkpoint again"
        raise CheckpointError(msg)
    states = {}
    for key in keys:
        path = folder / f"{key}.pt"
        states[key] = [Piece(0, require_tensor(reader.load_tensor(path), prod(shape), path))]
    return contents.joined(shape, states, folder)


def _counts(common: Mapping[str, Any]) -> list[int]:
    """Adam's counts where no parameter has its own: made of stage 3."""
    inner = common.get("optimizer_state_dict") or {}
    return [int(state["step"]) for state in inner.get("state", {}).values() if "step" in state]
