"""ZeRO stages 1 to 3: flat fp32 partitions, one or more a rank, cut back into parameters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed import contents
from engine.checkpoint.import_deepspeed.contents import (
    MOMENTS,
    WEIGHT,
    Contents,
    ModelState,
    Parameter,
    Piece,
    require,
    require_tensor,
)
from engine.checkpoint.import_deepspeed.files import Files
from engine.checkpoint.import_deepspeed.model_state import require_same_run
from engine.checkpoint.import_deepspeed.reading import Reader, ZeroStage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Cut:
    """``length`` values of a parameter from ``start``, at ``offset`` of a rank's partition."""

    name: str
    rank: int
    group: int
    offset: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Partition:
    """What one rank holds of one flat group.

    Attributes:
        size: values in it, the padding at its end included.
        tensors: ``fp32`` and the moments, flat; padding may be missing from them.
    """

    size: int
    tensors: Mapping[str, "Tensor"]
    steps: int | None


@dataclass(frozen=True, slots=True)
class RankState:
    """One rank's ``*_optim_states.pt``."""

    path: Path
    stage: int
    values: Mapping[str, Any]
    partitions: Sequence[Partition]
    groups: Sequence[Mapping[str, Any]]


def read_partitioned(reader: Reader, files: Files, models: Sequence[ModelState]) -> Contents:
    """A checkpoint of stage 1, 2 or 3; one rank's file after another is opened."""
    first = models[0]
    for other in models[1:]:
        require_same_run(first, other)
    if first.shapes is None:
        msg = f"{first.path}: no param_shapes, though *_optim_states.pt are there; not of one save"
        raise CheckpointError(msg)
    ranks = [
        _rank_state(reader.load(path), path, len(files.optimizers)) for path in files.optimizers
    ]
    _require_one_save(first, ranks)
    stage = ranks[0].stage
    cuts = list(_sharded(first, ranks) if stage == 3 else _flat(first, ranks))
    trained = _joined(first, ranks, cuts)
    steps = [p.steps for rank in ranks for p in rank.partitions if p.steps is not None]
    second, second_is = _second(first, ranks, trained)
    return Contents(
        kind=f"ZeRO stage {stage}",
        version=str(first.values.get("ds_version", "unknown")),
        world=len(ranks),
        step=first.values["global_steps"],
        adam_steps=contents.one_step_count(steps, files.folder),
        trained=trained,
        aliases=first.aliases,
        second=second,
        second_is=second_is,
        frozen=_frozen(models, trained),
        loss_scale=contents.loss_scale(ranks[0].values),
        groups=contents.group_settings(ranks[0].groups),
    )


def _rank_state(saved: Mapping[str, Any], path: Path, world: int) -> RankState:
    values = require(saved, "optimizer_state_dict", dict, path)
    if values.get("ds_zero_partition_groups"):
        msg = f"{path}: experts spread over ranks, which is not imported"
        raise CheckpointError(msg)
    counts = values.get("partition_count")
    counts = counts if isinstance(counts, list) else [counts]
    if set(counts) != {world}:
        msg = (
            f"{path}: one of {counts[0]} ranks' files, but {world} are here: some are missing, or "
            "files of two checkpoints are mixed; copy the whole folder again"
        )
        raise CheckpointError(msg)
    stage = _stage(values)
    base = values.get("optimizer_state_dict" if stage == 3 else "base_optimizer_state")
    state, groups = _optimizer(base, path)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    weights = require(values, key, list, path)
    padding = values.get("group_paddings") or [0] * len(weights)
    parts = [
        _partition(index, tensor, int(padding[index]), state, groups, path)
        for index, tensor in enumerate(weights)
    ]
    return RankState(path, stage, values, parts, groups)


def _stage(values: Mapping[str, Any]) -> int:
    """DeepSpeed's bf16 wrapper of stage 1 does not say so."""
    stage = values.get("zero_stage", 1)
    return int(stage.values[0]) if isinstance(stage, ZeroStage) else int(stage)


def _optimizer(base: Any, path: Path) -> tuple[list[Any], list[Mapping[str, Any]]]:
    """(state of each flat group, or None; the groups' settings) of torch's or a lean one."""
    if isinstance(base, list):
        return list(base), []
    if not isinstance(base, dict):
        msg = f"{path}: no state of the optimizer in it"
        raise CheckpointError(msg)
    groups = require(base, "param_groups", list, path)
    held = require(base, "state", dict, path)
    return [held.get(index) for group in groups for index in group["params"]], groups


def _partition(
    index: int,
    weights: "Tensor",
    padding: int,
    states: Sequence[Any],
    groups: Sequence[Mapping[str, Any]],
    path: Path,
) -> Partition:
    where = f"{path}: group {index}"
    size = weights.numel() + padding
    state = states[index] if index < len(states) else None
    if not state:
        return Partition(size, {WEIGHT: weights}, None)
    adam = contents.adam(state, groups[min(index, len(groups) - 1)] if groups else {}, where)
    moments = {}
    for key, tensor in adam.moments.items():
        if tensor.numel() not in {size, weights.numel()}:
            msg = f"{where}: {tensor.numel()} values of '{key}' for {size} weights"
            raise CheckpointError(msg)
        moments[key] = tensor.detach().reshape(-1)
    flat = require_tensor(weights, weights.numel(), where)
    return Partition(size, {WEIGHT: flat, **moments}, adam.steps)


def _require_one_save(model: ModelState, ranks: Sequence[RankState]) -> None:
    if model.world != len(ranks):
        msg = (
            f"{model.path}: written by {model.world} ranks, but {len(ranks)} *_optim_states.pt are "
            "here; copy the whole folder again"
        )
        raise CheckpointError(msg)
    number = len(model.shapes or ())
    for rank in ranks:
        sizes = [part.size for part in rank.partitions]
        if rank.stage != ranks[0].stage or sizes != [p.size for p in ranks[0].partitions]:
            msg = f"{rank.path}: cut otherwise than rank 0's file: files of two checkpoints"
            raise CheckpointError(msg)
        if len(sizes) != number:
            msg = f"{rank.path}: {len(sizes)} groups of parameters, {number} in {model.path.name}"
            raise CheckpointError(msg)


def _flat(model: ModelState, ranks: Sequence[RankState]) -> Iterator[Cut]:
    """Stages 1 and 2: each group is one run of parameters, cut into equal parts over the ranks.

    By the shapes, whose order is that of the run. DeepSpeed's ``param_slice_mappings`` are not
    looked at: with ``round_robin_gradients`` they tell another order than the one that is there.
    """
    alignment = ranks[0].values.get("param_alignment_paddings")
    for group, shapes in enumerate(model.shapes or ()):
        size = ranks[0].partitions[group].size
        gaps = alignment[group] if alignment else [0] * len(shapes)
        yield from _along(shapes, gaps, group, size, len(ranks))


def _along(
    shapes: Mapping[str, tuple[int, ...]],
    gaps: Sequence[int],
    group: int,
    size: int,
    world: int,
) -> Iterator[Cut]:
    at = 0
    for (name, shape), gap in zip(shapes.items(), gaps, strict=True):
        start, left = 0, prod(shape)
        while left:
            rank, offset = divmod(at + start, size) if size else (world, 0)
            length = min(left, size - offset)
            if rank >= world:
                msg = f"{name}: the ranks' partitions end before it does; a shard was cut"
                raise CheckpointError(msg)
            yield Cut(name, rank, group, offset, start, length)
            start, left = start + length, left - length
        at += prod(shape) + gap


def _sharded(model: ModelState, ranks: Sequence[RankState]) -> Iterator[Cut]:
    """Stage 3: every parameter is cut into equal parts over the ranks, the last one padded."""
    for group, shapes in enumerate(model.shapes or ()):
        offset = 0
        for name, shape in shapes.items():
            share = -(-prod(shape) // len(ranks))
            for rank in range(len(ranks)):
                start = share * rank
                length = max(0, min(share, prod(shape) - start))
                if length:
                    yield Cut(name, rank, group, offset, start, length)
            offset += share
        size = ranks[0].partitions[group].size
        if offset > size:
            msg = f"{model.path}: group {group} needs {offset} values a rank, each has {size}"
            raise CheckpointError(msg)


def _joined(
    model: ModelState, ranks: Sequence[RankState], cuts: Sequence[Cut]
) -> dict[str, Parameter]:
    pieces: dict[str, dict[str, list[Piece]]] = {}
    for cut in cuts:
        tensors = ranks[cut.rank].partitions[cut.group].tensors
        if (has := len(tensors[WEIGHT])) < cut.offset + cut.length:
            msg = f"{ranks[cut.rank].path}: {cut.name}: {has} values, it ends before the parameter"
            raise CheckpointError(msg)
        for key, tensor in tensors.items():
            held = pieces.setdefault(cut.name, {}).setdefault(key, [])
            held.append(Piece(cut.start, tensor[cut.offset : cut.offset + cut.length]))
    shapes = {name: shape for group in model.shapes or () for name, shape in group.items()}
    found = {}
    for name, shape in shapes.items():
        found[name] = contents.joined(
            shape, pieces.get(name, {WEIGHT: []}), f"{model.path}: {name}"
        )
    _require_all_moments(found, model.path)
    return found


def _require_all_moments(found: Mapping[str, Parameter], path: Path) -> None:
    with_moments = [name for name, p in found.items() if set(MOMENTS) <= set(p.states)]
    if with_moments and len(with_moments) != len(found):
        without = next(name for name in found if name not in with_moments)
        msg = f"{path}: {without} has no moments of Adam, {with_moments[0]} has; a part is missing"
        raise CheckpointError(msg)


def _second(
    model: ModelState, ranks: Sequence[RankState], trained: Mapping[str, Parameter]
) -> tuple[Mapping[str, "Tensor | Parameter"], str]:
    """The weights once more: the forward pass's own, or else read by another rule."""
    held = {name: model.module[name] for name in trained if name in model.module}
    if len(held) == len(trained) and all(
        tensor.numel() == prod(trained[name].shape) for name, tensor in held.items()
    ):
        kind = next(iter(held.values())).dtype if held else "no"
        return held, f"the checkpoint's own {str(kind).removeprefix('torch.')} weights"
    if ranks[0].stage != 3:
        msg = f"{model.path}: 'module' does not hold the weights of every trained parameter"
        raise CheckpointError(msg)
    return _end_to_end(model, ranks), "the fp32 partitions read end to end"


def _end_to_end(model: ModelState, ranks: Sequence[RankState]) -> dict[str, Parameter]:
    """Stage 3 by one running offset over all of a rank's groups, which must end where they end."""
    ends, total = [], 0
    for part in ranks[0].partitions:
        total += part.size
        ends.append(total)
    found, offset = {}, 0
    for shapes in model.shapes or ():
        for name, shape in shapes.items():
            share = -(-prod(shape) // len(ranks))
            values = [v for rank in ranks for v in _run(rank, ends, offset, offset + share)]
            found[name] = _trimmed(name, shape, values, model.path)
            offset += share
    if offset != total:
        msg = f"{model.path}: its parameters fill {offset} values of a rank, {total} are there"
        raise CheckpointError(msg)
    return found


def _run(rank: RankState, ends: Sequence[int], low: int, high: int) -> Iterator["Tensor"]:
    begin = 0
    for part, end in zip(rank.partitions, ends, strict=True):
        if low < end and high > begin:
            yield part.tensors[WEIGHT][max(low, begin) - begin : min(high, end) - begin]
        begin = end


def _trimmed(
    name: str, shape: tuple[int, ...], values: Sequence["Tensor"], path: Path
) -> Parameter:
    pieces, start = [], 0
    for tensor in values:
        kept = tensor[: max(0, prod(shape) - start)]
        if kept.numel():
            pieces.append(Piece(start, kept))
        start += kept.numel()
    return contents.joined(shape, {WEIGHT: pieces}, f"{path}: {name}")


def _frozen(models: Sequence[ModelState], trained: Mapping[str, Parameter]) -> dict[str, "Tensor"]:
    import torch

    first = models[0]
    found = {
        name: tensor
        for name, tensor in first.module.items()
        if name not in trained and name not in first.aliases and tensor.numel()
    }
    shapes = first.values.get("frozen_param_shapes") or {}
    if len(models) > 1:
        for name, shape in shapes.items():
            parts = [model.values["frozen_param_fragments"][name].reshape(-1) for model in models]
            found[first.own(name)] = torch.cat(parts)[: prod(shape)].reshape(tuple(shape))
    return found
