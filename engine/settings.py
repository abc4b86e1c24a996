"""A stage's settings in few words: for the HParams page and for the page of its recipe."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import BatchPlan, precision, read_deepspeed, zero_stage

if TYPE_CHECKING:
    from configs.schema import Config
    from engine.backends import BackendConfig
    from engine.pretraining import PretrainStage

Value = bool | float | str
NONE = "none"


def pretraining_settings(
    stage: "PretrainStage", steps: int, batches: BatchPlan, seed: int
) -> dict[str, Value]:
    """What the runs of pretraining stages are compared by, name -> value.

    Beside the names that every stage has stand those settings of its parts that are not their
    defaults, such as ``optimizer.weight_decay``, each penalty's strength, and the weight of each
    source as the share of the rows that it begins with.
    """
    parts = {
        "objective": stage.objective,
        "adaptation": stage.adaptation,
        "optimizer": stage.optimizer,
        "schedule": stage.schedule,
    }
    found: dict[str, Value] = {"lr": stage.optimizer.lr, "model": _origin(stage)}
    found |= {name: str(part.name) for name, part in parts.items()}
    for name, part in parts.items():
        found |= changed(part, name)
    found["penalties"] = " + ".join(penalty.name for penalty in stage.penalties) or NONE
    for penalty in stage.penalties:
        found |= {f"penalty.{penalty.name}.{key}": value for key, value in leaves(penalty)}
    found["averaging"] = stage.averaging.name if stage.averaging else NONE
    if stage.averaging:
        found |= {f"averaging.{key}": value for key, value in leaves(stage.averaging)}
    found["masking rate"] = masking_rate(stage)
    found |= {f"share of {name}": share for name, share in shares(stage).items()}
    found |= {"steps": steps, "global batch": batches.global_batch, "length": stage.data.length}
    found |= {"seed": seed, **backend_settings(stage.backend)}
    return {name: value for name, value in found.items() if value != ""}


def backend_settings(backend: "BackendConfig") -> dict[str, Value]:
    """The precision, and how the state is split, where DeepSpeed computes."""
    values = read_deepspeed(backend.config)
    split: dict[str, Value] = {"precision": precision(values)}
    return split if backend.name == "plain" else {**split, "ZeRO stage": zero_stage(values)}


def _origin(stage: "PretrainStage") -> str:
    """Where the model comes from: its location, or the kind of the random one."""
    model = stage.model
    if model.name == "pretrained":
        return model.location
    shape = model.shape if isinstance(model.shape, str) else model.shape.get("model_type", "")
    return f"random {shape}"


def masking_rate(stage: "PretrainStage") -> Value:
    """The share of the tokens that are hidden; empty where none are."""
    rate = getattr(getattr(stage.objective, "masking", None), "rate", None)
    return "" if rate is None else float(rate)


def shares(stage: "PretrainStage") -> dict[str, float]:
    """The share of the rows that each of several sources begins with; empty for one alone."""
    sources = stage.data.sources
    total = sum(source.weight for source in sources.values())
    if len(sources) == 1:
        return {}
    return {name: round(source.weight / total, 6) for name, source in sources.items()}


def changed(part: "Config", prefix: str) -> dict[str, Value]:
    """The settings of a part that are not its defaults, under ``PREFIX.KEY``."""
    values = part.model_dump(mode="json", exclude_defaults=True)
    return {f"{prefix}.{key}": value for key, value in _leaves(values) if key not in {"name", "lr"}}


def leaves(part: "Config") -> list[tuple[str, Value]]:
    """All settings of a part but its name."""
    values = part.model_dump(mode="json", exclude_none=True)
    return [(key, value) for key, value in _leaves(values) if key != "name"]


def words(part: "Config") -> str:
    """A part in a line: its name and its settings."""
    name = str(getattr(part, "name", ""))
    told = ", ".join(f"{key} {value}" for key, value in leaves(part))
    return f"{name}: {told}" if name and told else name or told


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}.")
        elif isinstance(value, bool | int | float | str):
            yield path, value
        elif isinstance(value, Sequence | Mapping) and value:
            yield path, json.dumps(value, ensure_ascii=False)
