"""Counts what a rank asks torch.distributed for in a real optimizer step."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.communication import Collective

WARM_UP = 3
"""Steps before the one that is counted: stage 3 traces the model in its first ones."""
Counted = dict[str, tuple[int, int]]
"""Kind of collective -> (calls, bytes of the full tensors)."""

_KINDS = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "allgather_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "reduce_": ("reduce", 0),
}
"""Torch's operator -> (kind, which argument is the full tensor); any other counts by its name."""


class Recorder(TorchDispatchMode):
    """Hears of every collective: torch.distributed calls all of them through its dispatcher."""

    def __init__(self) -> None:
        """Begin with nothing."""
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Note a collective, and do what was asked for."""
        del types
        if func.namespace == "c10d":
            name = func.overloadpacket.__name__
            kind, place = _KINDS.get(name, (name, 0))
            whole = _tensors(args[place])
            self.calls.append((kind, sum(each.numel() * each.element_size() for each in whole)))
        return func(*args, **(kwargs or {}))


def _tensors(given: Any) -> Iterator[Tensor]:
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _tensors(each)


def summed(calls: Iterable[tuple[str, int]]) -> Counted:
    """By kind."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for kind, size in calls:
        count, total = found[kind]
        found[kind] = (count + 1, total + size)
    return dict(found)


def planned(collectives: Iterable[Collective]) -> Counted:
    """The same of what the planner tells."""
    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for each in collectives:
        count, total = found[each.kind]
        found[each.kind] = (count + each.calls, total + each.bytes)
    return dict(found)


def count(folder: str, cases: Mapping[str, Mapping[str, Any]]) -> None:
    """Each case on all ranks; every rank writes ``rank-N.json``: case -> kind -> counts.

    Args:
        folder: where to.
        cases: name -> ``shape`` and ``changes`` of the model, ``values`` of DeepSpeed's JSON, and
            perhaps ``rank`` of low-rank updates, ``optimizer``, ``teacher`` (its changes).
    """
    from engine import distributed

    distributed.start()
    place = Path(folder) / f"{distributed.rank()}"
    found = {name: _counted(place, case) for name, case in cases.items()}
    (Path(folder) / f"rank-{distributed.rank()}.json").write_text(json.dumps(found))


def optimizer(case: Mapping[str, Any]) -> Any:
    """AdamW unless the case says otherwise."""
    from pydantic import TypeAdapter

    from engine.optimization import AdamW, OptimizerConfig

    if "optimizer" not in case:
        return AdamW(lr=1e-3)
    return TypeAdapter[Any](OptimizerConfig).validate_python(case["optimizer"])


def taught(folder: Path, learner: Any, case: Mapping[str, Any]) -> Any:
    """The same model, which is to predict what another one does."""
    from engine.learner import Learner
    from engine.penalties import Distillation
    from engine.penalties.distillation import DistilledObjective
    from tests.engine import tiny

    def load() -> Any:
        return tiny.learner(folder, case["shape"], **case["teacher"]).backbone

    told = DistilledObjective(Distillation(teacher="elsewhere"), learner.objective, load)
    return Learner(learner.backbone, told)


def _counted(folder: Path, case: Mapping[str, Any]) -> Counted:
    from configs.stop import StopRequest
    from engine.adaptation import FullTraining
    from engine.adaptation.lora import LowRank
    from engine.backends import DeepSpeedZero
    from engine.loop import train_step
    from engine.optimization import Constant
    from engine.protocols import Run
    from engine.stopping import Stopping
    from tests.engine import tiny

    rank = case.get("rank")
    adaptation = LowRank(rank=rank).build(1) if rank else FullTraining().build(1)
    learner = tiny.learner(folder, case["shape"], adaptation, **case["changes"])
    if "teacher" in case:
        learner = taught(folder, learner, case)
    backend = DeepSpeedZero(config=case["values"]).build(learner, optimizer(case))
    sizes = (backend.rank, backend.world, backend.accumulation)
    batches = (tiny.step_batches(learner.objective, step, *sizes) for step in range(WARM_UP + 1))
    stop = Stopping(StopRequest())
    run = Run(backend, batches, Constant(), 1e-3, WARM_UP + 1, 7)
    for step in range(WARM_UP):
        train_step(run, step)
    with Recorder() as recorder:
        stop.begin()
        train_step(run, WARM_UP)
        stop.agreed()
    backend.close()
    return summed(recorder.calls)
