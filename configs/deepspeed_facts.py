"""What of a DeepSpeed JSON changes what is computed, and what only shares the work out otherwise.

The first is in a stage's key. The second may change between an interruption and the next start:
sums are then rounded otherwise, as with another number of ranks.
"""

from collections.abc import Mapping
from typing import Any

from configs.deepspeed_checks import QUANTIZED
from configs.deepspeed_json import (
    batch_plan,
    global_batch,
    gradient_clipping,
    precision,
    zero_stage,
)

MICRO_BATCH = "micro-batch"
# Of dynamic scaling: which steps are skipped depends on them. Defaults are DeepSpeed's.
_SCALING = {
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "consecutive_hysteresis": False,
    "min_loss_scale": 1,
}


def computed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that change results beyond rounding, defaults filled in; JSON-able.

    Raises:
        RecipeError: a value that cannot be read.
    """
    kind = precision(values)
    given = _part(values, kind)
    facts: dict[str, Any] = {
        "global_batch": global_batch(values),
        "precision": kind,
        "gradient_clipping": gradient_clipping(values),
    }
    if kind != "fp32":
        is_low = bool(given.get(f"{kind}_master_weights_and_grads", False))
        facts["master_weights"] = kind if is_low else "fp32"
    if kind == "bf16":
        facts["optimizer_states"] = "bf16" if given.get("bf16_optimizer_states") else "fp32"
    if kind == "fp16":
        fixed = float(given.get("loss_scale", 0))
        dynamic = {key: given.get(key, usual) for key, usual in _SCALING.items()}
        facts["loss_scale"] = fixed or dynamic
    zero = _part(values, "zero_optimization")
    # ZeRO++ sends weights and gradients in 8 or 4 bits: more than rounding.
    return facts | {key: True for key in QUANTIZED if zero.get(key)}


def shared_out(values: Mapping[str, Any], name: str, world: int) -> dict[str, str | int]:
    """How a backend of this name shares the work out over ``world`` ranks: fact -> value.

    Raises:
        RecipeError: the batch cannot be split so.
    """
    facts: dict[str, str | int] = {
        "backend": name,
        MICRO_BATCH: batch_plan(values, world).micro_batch,
    }
    if name == "plain":
        return facts
    zero = values.get("zero_optimization", {})
    if zero == "auto":
        return facts | {"ZeRO stage": "auto"}
    facts["ZeRO stage"] = zero_stage(values)
    for part in ("optimizer", "param"):
        device = (zero.get(f"offload_{part}") or {}).get("device", "none")
        if device != "none":
            facts[f"offload of {part}"] = device
    return facts


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = values.get(key, {})
    return found if isinstance(found, Mapping) else {}
