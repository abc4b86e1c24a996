"""The tables of a profile: phases, kinds of work, operators and memory, an average step of each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

PHASE = "phase: "
"""What the marks of phases begin with in the trace."""
MARKS = (PHASE, "profile begins")
LISTED = 25
MATRIX_PRODUCTS, ATTENTION, COMMUNICATION, OTHERS = (
    "matrix products",
    "fused attention",
    "communication",
    "other operators",
)
_PRODUCTS = frozenset(
    f"aten::{name}"
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "addbmm",
        "_addmm_activation",
        "_scaled_mm",
        "_grouped_mm",
        "mkldnn_linear",
        "mkldnn_linear_backward",
    )
)
_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention")
_COMMUNICATION = ("c10d::", "gloo:", "nccl:", "record_param_comms")


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of the loop in all the steps looked at.

    Attributes:
        calls: how often it came.
        seconds: of the main thread.
        device_seconds: from its first to its last work in the GPU's queue; None on a CPU.
    """

    name: str
    calls: int
    seconds: float
    device_seconds: float | None


def tables(profiler: Any, phases: Sequence[Phase], steps: int, *, on_gpu: bool) -> dict[str, Any]:
    """Everything JSON-able: seconds, calls and bytes of an average step, shares of the step.

    Operators count by their own time, without that of those they call: of the main thread (on a
    GPU: of the device). What is left of the step is ``outside operators`` (``idle``).

    Args:
        profiler: a torch.profiler.profile that has stopped.
        phases: what the loop's clock measured; their sum is the step.
        steps: how many there were.
        on_gpu: what they ran on.
    """
    whole = sum(phase.seconds for phase in phases) / steps
    operators = _operators(profiler, steps, whole, on_gpu=on_gpu)
    kinds = dict.fromkeys((MATRIX_PRODUCTS, ATTENTION, COMMUNICATION, OTHERS), 0.0)
    for operator in operators:
        kinds[_kind(operator["name"])] += operator["seconds"]
    kinds["idle" if on_gpu else "outside operators"] = whole - sum(kinds.values())
    return {
        "step_seconds": whole,
        "phases": [_phase(phase, steps, whole) for phase in phases],
        "kinds": [
            {"kind": name, "seconds": seconds, "share": seconds / whole}
            for name, seconds in kinds.items()
        ],
        "operators": operators[:LISTED],
        "memory": _memory(profiler, on_gpu=on_gpu),
    }


def _phase(phase: Phase, steps: int, whole: float) -> dict[str, Any]:
    seconds = phase.seconds / steps
    row = {"phase": phase.name, "calls": phase.calls / steps, "seconds": seconds}
    row["share"] = seconds / whole
    if phase.device_seconds is not None:
        row["device_seconds"] = phase.device_seconds / steps
    return row


def _operators(profiler: Any, steps: int, whole: float, *, on_gpu: bool) -> list[dict[str, Any]]:
    """Every operator, by falling time."""
    from torch._C._autograd import DeviceType

    rows = []
    for event in profiler.key_averages():
        # A kernel has a row of its own besides that of the operator that launched it.
        if event.device_type != DeviceType.CPU or event.key.startswith(MARKS):
            continue
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        memory = event.self_device_memory_usage if on_gpu else event.self_cpu_memory_usage
        seconds = time / 1e6 / steps
        rows.append(
            {
                "name": event.key,
                "calls": event.count / steps,
                "seconds": seconds,
                "share": seconds / whole,
                "allocated_bytes": memory / steps,
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])


def _kind(name: str) -> str:
    if name in _PRODUCTS:
        return MATRIX_PRODUCTS
    if any(part in name for part in _ATTENTION):
        return ATTENTION
    return COMMUNICATION if name.startswith(_COMMUNICATION) else OTHERS


def _memory(profiler: Any, *, on_gpu: bool) -> dict[str, float]:
    """How far the steps went above what was held when they began."""
    from torch._C._autograd import DeviceType

    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    changes = (
        event.nbytes()
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == wanted
    )
    return {"peak_above_start_bytes": max(accumulate(changes), default=0)}


def markdown(found: Mapping[str, Any]) -> str:
    """The same for people."""
    steps, memory = found["steps"], found["memory"]["peak_above_start_bytes"]
    lines = [
        f"# Profile of steps {steps['first']} to {steps['last']}",
        "",
        f"Rank {found['rank']} of {found['world']}, {found['device']}. A step takes "
        f"{_milliseconds(found['step_seconds'])} ms, under the profiler; at its peak "
        f"{memory / 2**20:.1f} MiB are in use above what is held when it begins. "
        f"{found['trace']} opens in chrome://tracing and in ui.perfetto.dev.",
        "",
        *_table("phase", found["phases"]),
        *_table("kind", found["kinds"]),
        *_table("name", found["operators"]),
    ]
    return "\n".join(lines)


_HEADS = {
    "phase": "Phase",
    "kind": "Kind of work",
    "name": "Operator, by its own time",
    "calls": "Calls",
    "seconds": "ms",
    "device_seconds": "ms on the device",
    "share": "Share",
    "allocated_bytes": "MiB allocated",
}


def _table(first: str, rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    columns = [first, *(key for key in rows[0] if key != first)] if rows else [first]
    yield "| " + " | ".join(_HEADS[key] for key in columns) + " |"
    yield "|" + "|".join("---" if key == first else "---:" for key in columns) + "|"
    for row in rows:
        yield "| " + " | ".join(_cell(key, row[key]) for key in columns) + " |"
    yield ""


def _cell(key: str, value: Any) -> str:
    if key in {"seconds", "device_seconds"}:
        return _milliseconds(value)
    if key == "share":
        return f"{value:.1%}"
    if key == "allocated_bytes":
        return f"{value / 2**20:.2f}"
    return f"{value:.4g}" if key == "calls" else str(value)


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"
