"""P1: our loop against a bare DeepSpeed loop on the same model and batches, stages 0 to 3."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any

from benchmarks import ranks, training_stage
from benchmarks.checkpoint_model import SHAPE
from benchmarks.product_run import run_of

if TYPE_CHECKING:
    from benchmarks.syncs import Syncs
    from engine.assemble import Parts
    from engine.protocols import Batch, Progress, StepRecord

WARM, LOGGED = 4, 10
"""Steps to warm up; a line of metrics every so many, as recipes have it: what is compared."""
VOTE = "engine/distributed:result"
TINY = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
MODELS: dict[str, dict[str, Any]] = {
    "30M": {
        "shape": {key: value for key, value in SHAPE.items() if key != "vocab_size"},
        "vocabulary": SHAPE["vocab_size"],
        "rows": 4,
        "length": 32,
        "windows": 3,
        # Whether a step waits for its device does not depend on the model's size.
        "counted": 0,
        "target": 1.03,
    },
    "tiny": {
        "shape": TINY,
        "vocabulary": 1024,
        "rows": 8,
        "length": 64,
        "windows": 10,
        "counted": LOGGED,
        "target": 1.10,
    },
}
CASES = (
    *(("tiny", stage, 1) for stage in range(4)),
    ("tiny", 2, 2),
    *(("30M", stage, 1) for stage in range(4)),
)


def measure() -> dict[str, Any]:
    """CPU time of our steps over the bare ones', A B B A; median of windows of ten steps.

    Ours: the product's loop with all that a recipe's run has around it (metrics, TensorBoard, an
    idle checkpoint hook, the vote on a stop, the watchdog, what explains a lack of memory). Bare:
    forward, backward and step of a DeepSpeed engine over a learner with the same weights, the same
    JSON, the same fused AdamW and attention kernels, and nothing else. Both take the same ready
    batches in the same process, in turn. Host syncs are counted in a window of its own; a step
    whose metrics are logged reads them, and is told apart.
    """
    with tempfile.TemporaryDirectory() as place:
        for name, model in MODELS.items():
            lengths = training_stage.abstracts(0, 1500)
            training_stage.write(Path(place) / name, model["vocabulary"], lengths)
        with ranks.ready(Path(place)) as call:
            details = [_case(call, Path(place), *case) for case in CASES]
    worst = {
        name: max(line["ratio"] for line in details if line["model"] == name) for name in MODELS
    }
    return {
        "id": "P1",
        "value": worst["30M"],
        "target": MODELS["30M"]["target"],
        "reached": all(line["reached"] for line in details),
        "details": details,
    }


def _case(call: ranks.Call, place: Path, name: str, stage: int, world: int) -> dict[str, Any]:
    answer = place / f"{name}-{stage}-{world}.json"
    arguments = {"place": str(place), "name": name, "stage": stage, "answer": str(answer)}
    found = ranks.answered(call, "benchmarks.loop_cost:on_rank", arguments, world)
    pairs = list(zip(found["ours"], found["bare"], strict=True))
    ratios = sorted(ours / bare for ours, bare in pairs)
    ratio, target = round(median(ratios), 3), MODELS[name]["target"]
    counted = _counted(found["syncs"])
    return {
        "model": name,
        "stage": stage,
        "ranks": world,
        "ratio": ratio,
        "target": target,
        "lowest": round(ratios[0], 3),
        "highest": round(ratios[-1], 3),
        "bare_ms_a_step": round(1000 * median(found["bare"]) / LOGGED, 2),
        "extra_ms_a_step": round(1000 * median(a - b for a, b in pairs) / LOGGED, 2),
        **counted,
        "losses_equal": found["equal"],
        "reached": ratio <= target and counted.get("extra_syncs_a_step", 0) <= 0 and found["equal"],
    }


def _counted(told: dict[str, list[dict[str, int]]]) -> dict[str, float]:
    """Host syncs of the steps that were counted, one of which was logged; none were: no extra."""
    syncs = {who: [_waits(places) for places in steps] for who, steps in told.items()}
    if not syncs["ours"]:
        return {}
    extra = [a - b for a, b in zip(syncs["ours"], syncs["bare"], strict=True)]
    return {
        "bare_syncs_a_step": sum(syncs["bare"]) / LOGGED,
        "extra_syncs_a_step": sorted(extra)[-2],
        "extra_syncs_logged": max(extra),
    }


def _waits(places: dict[str, int]) -> int:
    """Host syncs among those seen: the vote on a stop is on the CPU, whatever the device."""
    return sum(count for place, count in places.items() if place != VOTE)


def on_rank(place: str, name: str, stage: int, answer: str) -> None:
    """One model at one stage; rank 0 leaves the answer."""
    from engine import distributed
    from engine.assemble import assemble

    model = MODELS[name]
    folder = Path(place) / name
    with distributed.joined():
        config = training_stage.deepspeed_json(model["rows"], stage, distributed.world())
        shape = model["shape"] | training_stage.QUIET
        asked = training_stage.stage(folder, shape, model["length"], config)
        context = training_stage.context(Path(place) / f"run-{name}-{stage}-{distributed.world()}")
        parts = assemble(asked, context)
        timed = WARM + LOGGED * model["windows"]
        # One more step, which only ends the last one.
        steps = timed + model["counted"] + 1
        ready = [parts.make(step) for step in range(steps)]
        turns = Turns(ready, Bare(parts), counted=timed)
        losses = _train(parts, turns, steps)
        equal = losses[: len(turns.bare.losses)] == [float(loss) for loss in turns.bare.losses]
        told = {
            "ours": _windows(turns.ours[WARM:timed]),
            "bare": _windows(turns.theirs[WARM:timed]),
            "syncs": turns.syncs,
            "equal": all(distributed.all_gather_object(equal)),
        }
        everybody = distributed.all_gather_object(told)
        for key in ("ours", "bare"):
            told[key] = [sum(times) for times in zip(*(each[key] for each in everybody))]  # noqa: B905 -- alike
        if parts.backend.rank == 0:
            Path(answer).write_text(json.dumps(told), encoding="utf-8")


def _windows(times: Sequence[float]) -> list[float]:
    """CPU seconds of each ten steps, of which one is logged."""
    return [sum(times[at : at + LOGGED]) for at in range(0, len(times), LOGGED)]


def _train(parts: "Parts", turns: "Turns", steps: int) -> list[float]:
    """Our loop over the batches, with what a run has around it; the losses of its steps."""
    from engine.loop import train
    from engine.protocols import Hook

    class Losses(Hook):
        name = "losses"

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def after_step(self, backend: Any, progress: "Progress", record: "StepRecord") -> None:
            self.seen.append(record.losses)

    kept = Losses()
    run, oversight = run_of(parts, turns, steps, [kept])
    with oversight.watchdog:
        train(run)
    return [float(losses[0]) for losses in kept.seen]


class Bare:
    """The least that trains with DeepSpeed."""

    def __init__(self, parts: "Parts") -> None:
        import copy

        import deepspeed
        import torch

        from engine.assemble import build_learner
        from engine.kernels.choice import quicken
        from engine.optimization.parameter_groups import parameter_groups

        learner, _, _ = build_learner(parts.stage, parts.context, parts.objective)
        kind = "bf16" if parts.stage.backend.config["bf16"]["enabled"] else "fp32"
        quicken(learner.backbone, parts.backend.device, kind, parts.stage.data.length)
        wanted = parts.stage.optimizer
        optimizer = torch.optim.AdamW(
            parameter_groups(learner, wanted.weight_decay),
            lr=wanted.lr,
            betas=(wanted.beta1, wanted.beta2),
            eps=wanted.eps,
            fused=True,
        )
        config = copy.deepcopy(parts.stage.backend.config)
        self.engine, *_ = deepspeed.initialize(
            model=learner,
            optimizer=optimizer,
            model_parameters=list(learner.parameters()),
            config=config,
        )
        self.engine.train()
        self.device = parts.backend.device
        self.losses: list[Any] = []

    def step(self, batch: "Batch", scale: float) -> None:
        """One optimizer step; ``scale``: from the summed loss to the mean over all ranks."""
        total, *_ = self.engine(batch.tensors)
        self.engine.backward(total * scale)
        self.engine.step()
        self.losses.append(total.detach())


class Turns(Iterator[Sequence["Batch"]]):
    """Hands our loop its batches; between two of them the bare loop takes its steps.

    Ours, bare, bare, ours: the bare loop takes two steps at a time. Times are of this process, all
    threads.
    """

    def __init__(self, ready: Sequence[Sequence["Batch"]], bare: Bare, counted: int) -> None:
        """``counted``: from this step on host syncs are counted, and times are not looked at."""
        self._ready = ready
        self.bare = bare
        self._counted = counted
        self._scales = _scales(ready)
        self._syncs: Syncs | None = None
        self._began = 0.0
        self._given = 0
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self.syncs: dict[str, list[dict[str, int]]] = {"ours": [], "bare": []}

    def __next__(self) -> Sequence["Batch"]:
        from benchmarks.syncs import Syncs

        ended = process_time()
        if self._given:
            self.ours.append(ended - self._began)
        self._stop_counting()
        if self._given % 2 or self._given + 1 == len(self._ready):
            while len(self.theirs) < min(self._given + 1, len(self._ready) - 1):
                self._take_bare(len(self.theirs))
        step, self._given = self._given, self._given + 1
        if self._counted <= step < len(self._ready) - 1:
            self._syncs = Syncs()
            self._syncs.__enter__()
        self._began = process_time()
        return self._ready[step]

    def _stop_counting(self) -> None:
        if self._syncs is not None:
            self._syncs.__exit__(None, None, None)
            self.syncs["ours"].append(dict(self._syncs.places))
            self._syncs = None

    def _take_bare(self, step: int) -> None:
        from contextlib import nullcontext

        from benchmarks.syncs import Syncs

        [batch] = self._ready[step]
        syncs = Syncs()
        counting = syncs if step >= self._counted else nullcontext()
        with counting:
            began = process_time()
            self.bare.step(batch, self._scales[step])
            self.theirs.append(process_time() - began)
        if step >= self._counted:
            self.syncs["bare"].append(dict(syncs.places))


def _scales(ready: Sequence[Sequence["Batch"]]) -> list[float]:
    """What DeepSpeed's mean over ranks is multiplied with, of each step."""
    from engine import distributed

    counts = distributed.all_gather_object([batch.count for [batch] in ready])
    return [distributed.world() / sum(step) for step in zip(*counts, strict=True)]
