"""What a recipe's pretraining stages will need, told without building or reading anything large."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any

from configs.deepspeed_json import AUTO, read_deepspeed
from configs.devices import Device
from configs.errors import DataError, OnwardError, RecipeError, ResourceError
from configs.stage import StageContext
from data_pipeline.shards.manifest import read_manifest
from engine import choosing, stage_memory
from engine.choosing import JobOf, Option, Split
from engine.parameter_shapes import ModelShape, model_shape
from engine.planner import Job, Widths, memory, state_bytes
from engine.pretraining import PretrainStage
from launcher.plan_models import PlannedModels
from launcher.plan_scaling import Scaled, scaling
from launcher.plan_times import Clock, Cluster, Work, work_of
from launcher.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """Of all stages that were asked for.

    Each entry of ``stages`` has, as far as it can be told:

    - ``stage``: its name; ``parameters``, ``trained``: how many values; ``teacher``: those of a
      model beside it.
    - ``batch``: ``rows`` a step = ``micro_batch`` x ``accumulation`` x ``ranks``.
    - ``steps``, ``tokens`` (padding included; ``is_about`` where they depend on the data's
      packing), ``tokens_there`` by source.
    - ``device``: ``name``, ``bytes``, ``usable`` of them.
    - ``memory``: a line for each ZeRO option: ``zero`` in words; ``rest``, ``pass``, ``update``,
      ``peak``, ``host``: bytes a rank; ``fits``; ``picked``; ``sent``: bytes that a rank
      sends in a step, along rings and without votes; ``communicated``: bytes of all tensors that
      its collectives reduce or gather, in ``calls`` of them;
      ``step_seconds``, but where states lie on the host.
    - ``time``, of the picked option: ``flops_step`` and ``flops`` of all ranks, recomputing not
      counted; ``step``: ``seconds``, of which ``compute``, ``communication`` (hidden or not) and
      ``update``; ``tokens_second``, ``tokens_day``; ``mfu``: share of the data sheet's FLOP/s;
      ``seconds`` and ``device_hours`` of the whole stage; ``assumed``: sentences.
    - ``disk``: ``checkpoint`` (bytes of one), ``most`` at once (one of them being written; without
      ``steps`` those are left out that ``keep_every`` keeps), ``checkpoints`` (bytes of so many),
      ``export``, and ``shards`` where they have been made.
    - ``scaling``, if asked for: see ``launcher.plan_scaling.scaling``.
    - ``pick``, ``warning``, ``notes``; ``error``: what is missing, or does not fit, and what would.

    Attributes:
        errors: why a stage cannot run, in the stages' order; empty: all of them can.
    """

    stages: list[dict[str, Any]]
    errors: list[OnwardError]


def plan(
    recipe: Recipe, names: Sequence[str], cluster: Cluster, *, is_scaled: bool = False
) -> Plan:
    """Of the pretraining stages among ``names`` (none: all of the recipe's).

    Raises:
        RecipeError: a name that is no pretraining stage.
    """
    known = [n for n, stage in recipe.stages.items() if isinstance(stage, PretrainStage)]
    for name in names:
        if name not in known:
            has = ", ".join(known) or "none"
            msg = f"no pretraining stage '{name}' in this recipe; it has {has}"
            raise RecipeError(msg)
    planner = _Planner(recipe, cluster, is_scaled=is_scaled)
    return Plan([planner.entry(name) for name in names or known], planner.errors)


class _Planner:
    def __init__(self, recipe: Recipe, cluster: Cluster, *, is_scaled: bool) -> None:
        self._recipe = recipe
        self._cluster = cluster
        self._is_scaled = is_scaled
        self._models = PlannedModels(recipe)
        self.errors: list[OnwardError] = []

    def entry(self, name: str) -> dict[str, Any]:
        stage: Any = self._recipe.stages[name]
        world = 1 if stage.backend.name == "plain" else self._cluster.world
        facts: dict[str, Any] = {"stage": name}
        try:
            facts["batch"] = _batch(stage, world)
        except RecipeError as error:
            return facts | self._failed(name, error)
        facts |= _budget(stage, self._models.context(name))
        try:
            found = self._models.config_of(name)
            shape = model_shape(found.config, stage_memory.architecture(stage), found.vocabulary)
        except (DataError, RecipeError) as error:
            return facts | {"error": f"memory and time cannot be told: {error}"}
        teacher, told_of = self._teacher(name, shape)
        try:
            told = _Stage(stage, shape, self._cluster.of(world), facts, teacher)
        except RecipeError as error:
            return facts | self._failed(name, error)
        facts.pop("shards", None)
        facts |= told.sizes(is_scaled=self._is_scaled)
        if told.trouble:
            facts |= self._failed(name, ResourceError(told.trouble))
        notes = [*found.notes, *told_of, *told.notes]
        return facts | ({"notes": notes} if notes else {})

    def _teacher(self, name: str, own: ModelShape) -> tuple[ModelShape | None, Sequence[str]]:
        """The shape of the model that a stage learns from, and what is not certain of it."""
        stage: Any = self._recipe.stages[name]
        location = stage_memory.teacher_of(stage)
        if location is None:
            return None, ()
        try:
            found = self._models.config_at(name, location)
            kind = stage_memory.architecture(stage)
            return model_shape(found.config, kind, found.vocabulary), found.notes
        except (DataError, RecipeError) as error:
            return own, (f"the teacher is taken to be as large as the model: {error}",)

    def _failed(self, name: str, error: OnwardError) -> dict[str, Any]:
        self.errors.append(type(error)(f"stage {name}: {error}"))
        return {"error": str(error)}


class _Stage:
    """One stage whose model is known."""

    def __init__(
        self,
        stage: PretrainStage,
        shape: ModelShape,
        cluster: Cluster,
        facts: Mapping[str, Any],
        teacher: ModelShape | None,
    ) -> None:
        self.trouble = ""
        self.notes = list(stage_memory.notes_of(stage, shape))
        self._stage = stage
        self._cluster = cluster
        self._device = cluster.device
        self._batch = facts["batch"]
        self._steps: int | None = facts.get("steps")
        there = facts.get("shards")
        self._shards = {} if there is None else {"shards": there}
        self._values = read_deepspeed(stage.backend.config)
        weights = stage_memory.weights_of(stage, shape, teacher)
        self._teacher = None if teacher is None else teacher.parameters
        self._jobs: JobOf = stage_memory.job_of(stage, shape, weights, self._device, teacher)
        self._split = stage_memory.asked_split(stage, cluster.world)
        self._job = self._jobs(self._split)
        self._clock = Clock(cluster, _work(stage, shape, self._split, teacher), self._values)

    def sizes(self, *, is_scaled: bool) -> dict[str, Any]:
        """Everything that depends on the model."""
        job, device = self._job, self._device
        asked = self._values.get("zero_optimization", {})
        room = choosing.usable(device)
        parameters = job.weights.all - (self._teacher or 0)
        facts: dict[str, Any] = {
            "parameters": parameters,
            "trained": job.weights.trained,
            "disk": _disk(self._stage, job, parameters, self._steps) | self._shards,
            "device": {"name": device.name, "bytes": device.memory, "usable": room},
        }
        if self._teacher is not None:
            facts["teacher"] = self._teacher
        given = None if asked == AUTO else Option(dict(asked), memory(job, asked))
        best, trouble = _best(self._jobs, self._split, device)
        picked = given or best
        rows = self._batch["rows"]
        facts["memory"] = [
            _row(option, device, is_picked=picked is not None and option.zero == picked.zero)
            | self._clock.row(job, option.zero, rows)
            for option in _options(job, device, given, best)
        ]
        if picked is not None:
            self.notes += self._host(picked)
            facts["time"] = self._clock.facts(job, picked.zero, rows, self._steps)
            facts["time"]["assumed"] = list(self._clock.assumed(picked.zero, self._cluster.world))
        if is_scaled and job.backend != "plain":
            facts["scaling"] = scaling(self._scaled(None if given is None else given.zero))
        if given is None:
            self.trouble = trouble
            return facts | self._reason(best)
        facts["pick"] = self._asked(given)
        if not choosing.fits(given.memory, device):
            self.trouble = self._does_not_fit(given, best, trouble)
        elif told := choosing.warning(job, given.zero, device):
            facts["warning"] = told
        return facts

    def _host(self, picked: Option) -> Iterator[str]:
        """What of the hosts' memory has not been compared with what there is."""
        device = self._device
        if picked.memory.host and device.host is None and not device.is_cpu:
            needed = choosing.gib(picked.memory.host * self._cluster.gpus_per_host)
            yield (
                f"{needed} GiB of each host's memory is needed; how much there is has not been "
                "checked: --host-memory takes it"
            )

    def _asked(self, given: Option) -> str:
        """Of the recipe's own setting, whether it fits or not."""
        said = f"the recipe asks for {given.title}"
        if not given.is_on_host or not choosing.fits(given.memory, self._device):
            return said
        told = choosing.recomputing_would(self._jobs, self._split, self._device)
        return f"{said}; {told}" if told else said

    def _reason(self, best: Option | None) -> dict[str, str]:
        """Of "auto"; empty where nothing fits."""
        if best is None:
            return {}
        return {"pick": stage_memory.reason(best, self._device, self._jobs, self._split)}

    def _does_not_fit(self, given: Option, best: Option | None, trouble: str) -> str:
        """Of the recipe's own setting: what it needs, and what would fit."""
        device = self._device
        room = choosing.usable(device)
        need = (
            f"{given.title} needs {choosing.gib(given.memory.peak)} of {choosing.gib(room)} GiB"
            f"{choosing.beside(given.memory, device)}"
        )
        told = choosing.recomputing_would(self._jobs, self._split, device, given.zero)
        parts = [need, f"{best.title} fits"] if best else [trouble]
        if told and told not in parts[-1]:
            parts.append(told)
        return "; ".join(parts)

    def _scaled(self, zero: Mapping[str, Any] | None) -> Scaled:
        return Scaled(
            self._jobs,
            self._split,
            self._batch["rows"],
            self._stage.data.length,
            zero,
            self._cluster,
            self._clock,
        )


def _work(
    stage: PretrainStage, shape: ModelShape, split: Split, teacher: ModelShape | None
) -> Work:
    part = stage.adaptation.counted(shape)
    length = stage_memory.row_length(stage)
    share = stage_memory.target_share(stage) * stage.data.length / length
    return work_of(shape, length, share, part, split.recomputed_every, teacher)


def _batch(stage: PretrainStage, world: int) -> dict[str, int]:
    """How it is split; RecipeError with the numbers of ranks that would do, if any would."""
    try:
        stage.backend.check()
        split = stage.backend.plan(world)
    except RecipeError as error:
        good = list(_possible_worlds(stage))
        would = f"; it can be over {', '.join(map(str, good))} ranks" if good else ""
        msg = f"{error}{would}"
        raise RecipeError(msg) from None
    return {
        "rows": split.global_batch,
        "micro_batch": split.micro_batch,
        "accumulation": split.accumulation,
        "ranks": split.world,
    }


def _possible_worlds(stage: PretrainStage) -> Iterator[int]:
    with suppress(RecipeError):
        stage.backend.check()
        total = stage.backend.global_batch
        for world in (n for n in range(1, total + 1) if total % n == 0):
            with suppress(RecipeError):
                stage.backend.plan(world)
                yield world


def _budget(stage: PretrainStage, context: StageContext) -> dict[str, Any]:
    """Steps and tokens, and the tokens there are; what has not been made yet is left out."""
    in_step = stage.backend.global_batch * stage.data.length
    there: dict[str, int] = {}
    size = 0
    for source, given in stage.data.sources.items():
        try:
            if context.is_made(given.shards):
                manifest = read_manifest(context.locate(given.shards))
                there[source] = manifest.tokens
                size += sum(f.bytes for shard in manifest.shards for f in shard.files.values())
        except OnwardError:
            continue
    facts: dict[str, Any] = {"tokens_there": there, "shards": size} if there else {}
    if stage.epochs is None:
        steps = stage.budget(0, stage.backend.global_batch)
        return {"steps": steps, "tokens": steps * in_step} | facts
    if len(there) < len(stage.data.sources):
        return facts
    tokens = round(stage.epochs * sum(there.values()))
    return {"steps": ceil(tokens / in_step), "tokens": tokens, "is_about": True} | facts


def _disk(stage: PretrainStage, job: Job, parameters: int, steps: int | None) -> dict[str, int]:
    """Weights and states of what trains; what `choose` and `forgetting` keep is counted, too."""
    widths = Widths.of(job.values)
    held = [sum(group.tensors) for group in job.weights.groups]
    one = job.weights.trained * widths.master + state_bytes(job, widths, held)
    policy = stage.checkpoint
    beside = (stage.choose is not None) + (stage.forgetting is not None)
    most = policy.keep + 1 + beside if steps is None else policy.most_at_once(steps, beside)
    exports = 1 + (stage.averaging is not None)
    return {
        "checkpoint": one,
        "most": most,
        "checkpoints": one * most,
        "export": 4 * parameters * exports,
    }


def _best(jobs: JobOf, split: Split, device: Device) -> tuple[Option | None, str]:
    """What "auto" comes to, or why nothing fits."""
    try:
        return choosing.choose(jobs, split, device), ""
    except ResourceError as error:
        return None, str(error)


def _options(job: Job, device: Device, given: Option | None, best: Option | None) -> list[Option]:
    """The ZeRO stages, and with them what is asked for; the rest only where none of those fits."""
    found = list(choosing.options(job, device))
    plain = [option for option in found if set(option.zero) <= {"stage", "reduce_bucket_size"}]
    shown = plain if best is None or best in plain else found[: found.index(best) + 1]
    if best is None:
        shown = found
    if given is None:
        return shown
    others = [option for option in shown if option.title != given.title]
    return sorted([*others, given], key=lambda option: int(option.zero.get("stage", 0)))


def _row(option: Option, device: Device, *, is_picked: bool) -> dict[str, Any]:
    need = option.memory
    return {
        "zero": option.title,
        "rest": need.rest,
        "pass": need.in_pass,
        "update": need.update,
        "peak": need.peak,
        "host": need.host,
        "fits": choosing.fits(need, device),
        "picked": is_picked,
    }
