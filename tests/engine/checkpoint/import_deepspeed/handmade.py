"""Checkpoints in the forms that DeepSpeed 0.19.8 writes, made without it, to be spoilt by tests.

That the forms are right is held by the tests that import what DeepSpeed itself wrote.
"""

import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

import torch

STEPS = 3
ADAM_STEPS = 2
WORLD = 2
KINDS = ("zero0", "zero1", "zero2_fp16", "zero3", "universal")
_SHARDS = [f"global_step3/zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(WORLD)]
FILES = {
    "zero0": ["global_step3/mp_rank_00_model_states.pt"],
    "zero1": ["global_step3/mp_rank_00_model_states.pt", *_SHARDS],
    "zero3": [
        *_SHARDS,
        *(f"global_step3/zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(WORLD)),
    ],
    "universal": [
        "global_step3/mp_rank_00_model_states.pt",
        "global_step3/zero/optimizer_state.pt",
        *(
            f"global_step3/zero/transformer.wte.weight/{key}.pt"
            for key in ("fp32", "exp_avg", "exp_avg_sq")
        ),
    ],
}
Values = dict[str, Any]
Named = dict[str, torch.Tensor]


def write_all(folder: Path) -> None:
    """One of each kind, of the model in ``folder / "model"`` with a little noise."""
    from safetensors.torch import load_file

    given = load_file(folder / "model" / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    weights = {n: t + 0.01 * torch.randn(t.shape, generator=draw) for n, t in given.items()}
    with deepspeed_classes() as classes:
        for kind in KINDS:
            root = folder / kind
            (root / "global_step3").mkdir(parents=True)
            (root / "latest").write_text("global_step3")
            writer = {"zero0": _zero0, "zero3": _zero3, "universal": _universal}.get(kind, _flat)
            half = kind.endswith("fp16")
            chosen = {n: t.half().float() for n, t in weights.items()} if half else weights
            writer(root / "global_step3", chosen, classes, half)


class Classes(types.SimpleNamespace):
    """DeepSpeed's classes by their names."""


@contextmanager
def deepspeed_classes() -> Iterator[Classes]:
    """Classes that are pickled under the names of DeepSpeed's."""

    def made(path: str, kind: type) -> Any:
        module, _, name = path.rpartition(".")
        kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
        modules.setdefault(module, types.ModuleType(module)).__dict__[name] = kind
        return kind

    modules: dict[str, types.ModuleType] = {}
    scaling = "deepspeed.runtime.fp16.loss_scaler"
    stage = Enum("ZeroStageEnum", {"one": 1, "two": 2, "three": 3}, type=int)
    classes = Classes(
        stage=made("deepspeed.runtime.zero.config.ZeroStageEnum", stage),
        static=made(f"{scaling}.LossScaler", type("LossScaler", (), {})),
        dynamic=made(f"{scaling}.DynamicLossScaler", type("DynamicLossScaler", (), {})),
    )
    for name in list(modules):
        parts = name.split(".")
        for end in range(1, len(parts)):
            modules.setdefault(".".join(parts[:end]), types.ModuleType(parts[0]))
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield classes
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _groups(weights: Named) -> list[Named]:
    decayed = {n: t for n, t in weights.items() if t.ndim > 1}
    return [decayed, {n: t for n, t in weights.items() if t.ndim == 1}]


def _settings(members: Sequence[Sequence[int]]) -> list[Values]:
    decays = (0.01, 0.0)
    return [
        {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": d, "params": list(m)}
        for d, m in zip(decays, members, strict=True)
    ]


def _moments(weight: torch.Tensor) -> Values:
    step = torch.tensor(float(ADAM_STEPS))
    return {"step": step, "exp_avg": weight * 0.1, "exp_avg_sq": weight.square() * 0.01}


def _model(weights: Named, half: bool, **changes: Any) -> Values:
    module = OrderedDict((n, t.half() if half else t.clone()) for n, t in weights.items())
    module["lm_head.weight"] = module["transformer.wte.weight"]
    shapes = [OrderedDict((n, t.shape) for n, t in group.items()) for group in _groups(weights)]
    return {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": shapes,
        "shared_params": {"lm_head.weight": "transformer.wte.weight"},
        "skipped_steps": STEPS - ADAM_STEPS,
        "global_steps": STEPS,
        "dp_world_size": WORLD,
        "mp_world_size": 1,
        "ds_version": "0.19.8",
    } | changes


def _zero0(folder: Path, weights: Named, classes: Classes, half: bool) -> None:
    del classes
    groups = _groups(weights)
    ends = [0, len(groups[0]), len(weights)]
    members = [range(ends[0], ends[1]), range(ends[1], ends[2])]
    ordered = [tensor for group in groups for tensor in group.values()]
    optimizer = {
        "state": {index: _moments(tensor) for index, tensor in enumerate(ordered)},
        "param_groups": _settings(members),
    }
    values = _model(weights, half, optimizer=optimizer, param_shapes=None, shared_params=None)
    torch.save(values, folder / "mp_rank_00_model_states.pt")


def _scaler(classes: Classes, half: bool) -> Any:
    scaler = classes.dynamic() if half else classes.static()
    fields = {"cur_scale": 512.0, "cur_iter": 3, "last_overflow_iter": 1, "cur_hysteresis": 2}
    vars(scaler).update({"dynamic": half, "dtype": torch.half, **fields})
    return scaler


def _flat(folder: Path, weights: Named, classes: Classes, half: bool) -> None:
    torch.save(_model(weights, half), folder / "mp_rank_00_model_states.pt")
    runs = []
    for group in _groups(weights):
        run = torch.cat([tensor.reshape(-1) for tensor in group.values()])
        runs.append(torch.nn.functional.pad(run, (0, -len(run) % (2 * WORLD))))
    for rank in range(WORLD):
        parts = [run.tensor_split(WORLD)[rank].clone() for run in runs]
        pads = []
        for group, run in zip(_groups(weights), runs, strict=True):
            own = len(run) - sum(t.numel() for t in group.values())
            pads.append(own if rank == WORLD - 1 else 0)
        lean = [part[: len(part) - pad].clone() for part, pad in zip(parts, pads, strict=True)]
        values = {
            "loss_scaler": _scaler(classes, half),
            "zero_stage": classes.stage(2 if half else 1),
            "base_optimizer_state": {
                "state": {index: _moments(part) for index, part in enumerate(parts)},
                "param_groups": _settings([[0], [1]]),
            },
            "single_partition_of_fp32_groups": lean,
            "group_paddings": pads,
            "partition_count": [WORLD, WORLD],
        }
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": values, "ds_version": "0.19.8"}, path)


def _zero3(folder: Path, weights: Named, classes: Classes, half: bool) -> None:
    for rank in range(WORLD):
        empty = {n: torch.empty(0) for n in [*weights, "lm_head.weight"]}
        values = _model(weights, half) | {"module": empty}
        torch.save(values, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        flats = []
        for group in _groups(weights):
            shares = [_share(tensor, rank) for tensor in group.values()]
            flats.append(torch.cat(shares))
        state = {
            "zero_stage": classes.stage(3),
            "loss_scaler": _scaler(classes, half),
            "partition_count": WORLD,
            "optimizer_state_dict": {
                "state": {index: _moments(flat) for index, flat in enumerate(flats)},
                "param_groups": _settings([[0], [1]]),
            },
            "fp32_flat_groups": flats,
        }
        path = folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": state, "ds_version": "0.19.8"}, path)


def _share(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    flat = tensor.reshape(-1)
    size = -(-len(flat) // WORLD)
    return torch.nn.functional.pad(flat, (0, size * WORLD - len(flat)))[rank * size :][:size]


def _universal(folder: Path, weights: Named, classes: Classes, half: bool) -> None:
    torch.save(_model(weights, half), folder / "mp_rank_00_model_states.pt")
    common = {"loss_scaler": _scaler(classes, half), "param_groups": _settings([[0], [1]])}
    for name, tensor in weights.items():
        place = folder / "zero" / name
        place.mkdir(parents=True)
        state = _moments(tensor)
        torch.save(state.pop("step"), place / "step.pt")
        for key, value in {"fp32": tensor, **state}.items():
            torch.save({"param": value, "cat_dim": 0}, place / f"{key}.pt")
    torch.save(common, folder / "zero" / "optimizer_state.pt")


def _states(values: Values) -> dict[int, Values]:
    states: dict[int, Values] = values["optimizer_state_dict"]["base_optimizer_state"]["state"]
    return states


def as_momentum(values: Values) -> None:
    """As if SGD had been used."""
    for state in _states(values).values():
        state["momentum_buffer"] = state.pop("exp_avg")
        state.pop("exp_avg_sq")


def count_on(values: Values) -> None:
    """One more step of Adam."""
    for state in _states(values).values():
        state["step"] += 1


def damage_moment(values: Values) -> None:
    """A second moment below zero."""
    _states(values)[0]["exp_avg_sq"][7] = -1.0


def reshape(values: Values) -> None:
    """The embeddings lie the other way round."""
    name = "transformer.wte.weight"
    shape = values["param_shapes"][0][name]
    values["param_shapes"][0][name] = torch.Size(reversed(shape))
    assert prod(shape) == values["module"][name].numel()


def wrap(values: Values) -> None:
    """Names as in a checkpoint of a wrapped model."""

    def wrapped(group: Values) -> Values:
        return OrderedDict((f"module._orig_mod.{name}", value) for name, value in group.items())

    values["module"] = wrapped(values["module"])
    values["param_shapes"] = [wrapped(group) for group in values["param_shapes"]]
    values["shared_params"] = {
        f"module._orig_mod.{k}": f"module._orig_mod.{v}" for k, v in values["shared_params"].items()
    }
