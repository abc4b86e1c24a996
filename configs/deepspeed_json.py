"""What a DeepSpeed JSON says about batches, precision, ZeRO and clipping: its only reader here.

The file is passed to DeepSpeed untouched; this reads the facts the rest needs from it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.errors import RecipeError

PRESETS = Path(__file__).parent / "deepspeed"
AUTO = "auto"
Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How a global batch is split: ``global_batch = micro_batch * accumulation * world``."""

    global_batch: int
    micro_batch: int
    accumulation: int
    world: int


def read_deepspeed(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A preset's bare name, a path to a JSON file, or the mapping itself -> the mapping."""
    if not isinstance(given, str):
        return dict(given)
    bare = "/" not in given and not given.endswith(".json")
    path = PRESETS / f"{given}.json" if bare else Path(given)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.json")))
        msg = f"DeepSpeed config '{given}': no file {path}; presets are: {known}"
        raise RecipeError(msg) from None
    except json.JSONDecodeError as error:
        msg = f"{path}:{error.lineno}: not JSON: {error.msg}"
        raise RecipeError(msg) from None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path}: cannot be read as JSON: {getattr(error, 'strerror', None) or error}"
        raise RecipeError(msg) from None
    if not isinstance(values, dict):
        msg = f"{path}: expected a JSON object, found {type(values).__name__}"
        raise RecipeError(msg)
    return values


def precision(values: Mapping[str, Any]) -> Precision:
    """The precision that the file asks for; RecipeError if it asks for two."""
    on = [kind for kind in ("bf16", "fp16") if _is_enabled(values, kind)]
    if len(on) > 1:
        msg = "DeepSpeed config: bf16 and fp16 are both enabled; choose one"
        raise RecipeError(msg)
    return on[0] if on else "fp32"  # type: ignore[return-value]


def zero_stage(values: Mapping[str, Any]) -> int:
    """The ZeRO stage, 0 when absent."""
    key = "zero_optimization.stage"
    stage = _whole(key, block(values, "zero_optimization").get("stage", 0), least=0)
    if stage > 3:
        msg = f"DeepSpeed config: {key}: expected 0, 1, 2 or 3; given: {stage}"
        raise RecipeError(msg)
    return stage


def offload_device(values: Mapping[str, Any], part: str) -> str:
    """Where ``part`` (``optimizer`` or ``param``) lies between its uses: none, cpu or nvme."""
    given = block(block(values, "zero_optimization"), f"offload_{part}").get("device", "none")
    return str(given)


def gradient_clipping(values: Mapping[str, Any]) -> float:
    """The largest gradient norm; DeepSpeed clips at 1.0 when the key is absent, 0 turns it off."""
    given = values.get("gradient_clipping", 1.0)
    if isinstance(given, bool) or not isinstance(given, int | float) or not given >= 0:
        raise unexpected("gradient_clipping", given, "a number, 0 or more")
    return float(given)


def global_batch(values: Mapping[str, Any]) -> int:
    """Rows a step, the same on any number of ranks; RecipeError if the file does not say."""
    if "train_batch_size" not in values:
        msg = "DeepSpeed config: train_batch_size is missing; it is the constant global batch"
        raise RecipeError(msg)
    return _whole("train_batch_size", values["train_batch_size"])


def batch_plan(values: Mapping[str, Any], world: int) -> BatchPlan:
    """Split ``train_batch_size`` over ranks and accumulation; RecipeError if it does not divide."""
    total = global_batch(values)
    if total % world:
        msg = (
            f"DeepSpeed config: train_batch_size {total} cannot be split over {world} ranks: give "
            "a multiple, or start a number of ranks that divides it"
        )
        raise RecipeError(msg)
    key = "train_micro_batch_size_per_gpu"
    micro = _whole(key, values.get(key, total // world))
    if (total // world) % micro:
        msg = (
            f"DeepSpeed config: train_batch_size {total} on {world} ranks is {total // world} "
            f"rows a rank, which train_micro_batch_size_per_gpu {micro} does not divide; "
            "leave the micro batch out, or give one that does"
        )
        raise RecipeError(msg)
    accumulation = total // world // micro
    key = "gradient_accumulation_steps"
    asked = _whole(key, values.get(key, accumulation))
    if asked != accumulation:
        msg = (
            f"DeepSpeed config: gradient_accumulation_steps is {asked}, but train_batch_size "
            f"{total} = micro batch {micro} x ranks {world} x accumulation {accumulation}"
        )
        raise RecipeError(msg)
    return BatchPlan(total, micro, accumulation, world)


def block(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under a key, empty when absent; RecipeError if it is none."""
    found = values.get(key, {})
    if not isinstance(found, Mapping):
        raise unexpected(key, found, "an object in braces")
    return found


def _is_enabled(values: Mapping[str, Any], kind: str) -> bool:
    given = block(values, kind).get("enabled", False)
    if not isinstance(given, bool):
        raise unexpected(f"{kind}.enabled", given, "true or false")
    return given


def _whole(key: str, given: object, least: int = 1) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        raise unexpected(key, given, f"a whole number, {least} or more")
    return given


def unexpected(key: str, given: object, expected: str) -> RecipeError:
    """The error for a value of the wrong kind, to be raised."""
    hint = "; 'auto' is filled in by other programs, not here" if given == AUTO else ""
    return RecipeError(f"DeepSpeed config: {key}: expected {expected}; given: {given!r}{hint}")
