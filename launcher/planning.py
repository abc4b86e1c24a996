"""What a recipe's pretraining stages will need, told without building or reading anything large."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from configs.deepspeed_json import AUTO, read_deepspeed
from configs.devices import Device
from configs.errors import DataError, OnwardError, RecipeError, ResourceError
from configs.hub import is_hub_name
from configs.stage import StageContext, split_location
from data_pipeline.prepare import PrepareStage
from data_pipeline.shards.manifest import read_manifest
from engine import choosing, stage_memory
from engine.choosing import JobOf, Option, Split
from engine.models import PretrainedModel, RandomModel, read_shape
from engine.parameter_shapes import ModelShape, model_shape
from engine.planner import Job, memory
from engine.pretraining import PretrainStage
from engine.vocabulary import VocabularyStage
from launcher.chain import context_for_check, survey
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run is planned for."""

    hosts: int
    gpus_per_host: int
    device: Device

    @property
    def world(self) -> int:
        """How many ranks."""
        return self.hosts * self.gpus_per_host

    def __str__(self) -> str:
        return f"{self.hosts} x {self.gpus_per_host} {self.device.title}"


@dataclass(frozen=True, slots=True)
class Found:
    """A model's config, and what of it is not certain yet.

    Attributes:
        vocabulary: rows of its embeddings; None: the config's own.
    """

    config: Mapping[str, Any]
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()


def plan(recipe: Recipe, names: Sequence[str], cluster: Cluster) -> list[dict[str, Any]]:
    """One entry a pretraining stage among ``names`` (none: all of the recipe's).

    A stage that cannot be told, or does not fit, has ``error`` in the place of what is missing.

    Raises:
        RecipeError: a name that is no pretraining stage, a batch that does not divide, or settings
            of the backend that could not be honoured.
    """
    planner = _Planner(recipe, cluster)
    wanted = names or [n for n, s in recipe.stages.items() if isinstance(s, PretrainStage)]
    return [planner.entry(name) for name in wanted]


class _Planner:
    def __init__(self, recipe: Recipe, cluster: Cluster) -> None:
        self._recipe = recipe
        self._cluster = cluster
        self._run = RunFolder(recipe.output.absolute())
        self._standings = survey(recipe, self._run)

    def entry(self, name: str) -> dict[str, Any]:
        stage = self._recipe.stages.get(name)
        if not isinstance(stage, PretrainStage):
            known = [n for n, s in self._recipe.stages.items() if isinstance(s, PretrainStage)]
            msg = (
                f"no pretraining stage '{name}' in this recipe; it has {', '.join(known) or 'none'}"
            )
            raise RecipeError(msg)
        context = self._context(name)
        world = 1 if stage.backend.name == "plain" else self._cluster.world
        facts = {"stage": name, "batch": _batch(stage, name, world), **_budget(stage, context)}
        try:
            found = self._config_of(name)
            shape = model_shape(found.config, stage_memory.architecture(stage), found.vocabulary)
        except (DataError, RecipeError) as error:
            return facts | {"error": f"memory cannot be told: {error}"}
        notes = {"notes": list(found.notes)} if found.notes else {}
        return facts | self._sizes(stage, shape, world) | notes

    def _context(self, name: str) -> StageContext:
        return context_for_check(self._recipe, self._run, name, self._standings[name])

    def _sizes(self, stage: PretrainStage, shape: ModelShape, world: int) -> dict[str, Any]:
        device = self._cluster.device
        weights = stage_memory.weights_of(stage, shape)
        jobs = stage_memory.job_of(stage, shape, weights, device)
        split = stage_memory.asked_split(stage, world)
        job = jobs(split)
        asked = read_deepspeed(stage.backend.config).get("zero_optimization", {})
        facts: dict[str, Any] = {"parameters": weights.all, "trained": weights.trained}
        facts |= _checkpoint(stage, job)
        room = choosing.usable(device)
        facts |= {"device": {"name": device.name, "bytes": device.memory, "usable": room}}
        given = None if asked == AUTO else Option(dict(asked), memory(job, asked))
        best, trouble = _best(jobs, split, device)
        picked = given or best
        facts["memory"] = [
            _row(option, device, picked=picked is not None and option.zero == picked.zero)
            for option in _options(job, device, given, best)
        ]
        if given is not None:
            return facts | _judged(job, given, best, device, trouble)
        told = {"pick": stage_memory.reason(best, device)} if best else {"error": trouble}
        return facts | told

    def _config_of(self, name: str) -> Found:
        """Of the model that a stage trains."""
        stage: Any = self._recipe.stages[name]
        model: RandomModel | PretrainedModel = stage.model
        if isinstance(model, RandomModel):
            rows, note = self._vocabulary(name, model.tokenizer)
            return Found(read_shape(model.shape), rows, note)
        return self._pretrained(name, model.location)

    def _pretrained(self, name: str, location: str) -> Found:
        context = self._context(name)
        if is_hub_name(location):
            return Found(_read(_cached(location, "config.json")))
        if context.is_made(location):
            return Found(_read(context.locate(location) / "config.json"))
        before, _ = split_location(location)
        earlier = self._recipe.stages[str(before)]
        found = self._config_of(str(before))
        if isinstance(earlier, VocabularyStage):
            rows = (found.vocabulary or int(found.config["vocab_size"])) + earlier.add
            note = f"up to {earlier.add} words that stage {before} may add are counted"
            return Found(found.config, rows, (*found.notes, note))
        return found

    def _vocabulary(self, name: str, location: str) -> tuple[int, tuple[str, ...]]:
        """Ids of a tokenizer, and what is not certain of it."""
        context = self._context(name)
        if is_hub_name(location):
            return _ids(_cached(location, "tokenizer.json")), ()
        if context.is_made(location):
            return _ids(context.locate(location) / "tokenizer.json"), ()
        before, _ = split_location(location)
        earlier = self._recipe.stages[str(before)]
        if isinstance(earlier, PrepareStage):
            made: Any = earlier.tokenizer
            size = getattr(made, "vocabulary_size", None)
            if size is not None:
                return int(size), (
                    f"the vocabulary has the {size} tokens that stage {before} may make",
                )
            return self._vocabulary(str(before), made.location)
        found = self._config_of(str(before))
        return found.vocabulary or int(found.config["vocab_size"]), found.notes


def _batch(stage: PretrainStage, name: str, world: int) -> dict[str, int]:
    """How it is split; RecipeError with the numbers of ranks that would do, if any would."""
    try:
        stage.backend.check()
        split = stage.backend.plan(world)
    except RecipeError as error:
        good = list(_possible_worlds(stage))
        would = f"; it can be over {', '.join(map(str, good))} ranks" if good else ""
        msg = f"stage {name}: {error}{would}"
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
    for source, given in stage.data.sources.items():
        try:
            if context.is_made(given.shards):
                there[source] = read_manifest(context.locate(given.shards)).tokens
        except OnwardError:
            continue
    facts: dict[str, Any] = {"tokens_there": there} if there else {}
    if stage.epochs is None:
        steps = stage.budget(0, stage.backend.global_batch)
        return {"steps": steps, "tokens": steps * in_step} | facts
    if len(there) < len(stage.data.sources):
        return facts
    tokens = round(stage.epochs * sum(there.values()))
    return {"steps": ceil(tokens / in_step), "tokens": tokens, "is_about": True} | facts


def _checkpoint(stage: PretrainStage, job: Job) -> dict[str, Any]:
    """Weights and states of what trains; one more than are kept is there while one is written."""
    is_low = any(
        job.values.get(kind, {}).get(f"{kind}_master_weights_and_grads")
        for kind in ("bf16", "fp16")
    )
    width = 2 if is_low else 4
    states = 2 if job.values.get("bf16", {}).get("bf16_optimizer_states") else 4
    one = job.weights.trained * (width + job.states * states + 4 * job.averages)
    keep = stage.checkpoint.keep
    return {"checkpoint": {"bytes": one, "keep": keep, "disk": one * (keep + 1)}}


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


def _row(option: Option, device: Device, *, picked: bool) -> dict[str, Any]:
    need = option.memory
    return {
        "zero": option.title,
        "rest": need.rest,
        "pass": need.in_pass,
        "update": need.update,
        "peak": need.peak,
        "host": need.host,
        "fits": choosing.fits(need, device),
        "picked": picked,
    }


def _judged(
    job: Job, given: Option, best: Option | None, device: Device, trouble: str
) -> dict[str, Any]:
    """What is to be said of settings that the recipe names itself."""
    room = choosing.usable(device)
    facts: dict[str, Any] = {"pick": f"the recipe asks for {given.title}"}
    if not choosing.fits(given.memory, device):
        need = f"{given.title} needs {choosing.gib(given.memory.peak)} of {choosing.gib(room)} GiB"
        facts["error"] = f"{need}; {best.title} fits" if best else trouble
    elif told := choosing.warning(job, given.zero, device):
        facts["warning"] = told
    return facts


def _cached(name: str, file: str) -> Path:
    """A file of a model on the hub, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    if not isinstance(found, str):
        msg = (
            f"{name} is on the hub, and its {file} is not in the cache here; "
            f"where there is a network: hf download {name} {file}"
        )
        raise DataError(msg)
    return Path(found)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from None
    if not isinstance(values, dict):
        msg = f"{path}: expected a JSON object"
        raise DataError(msg)
    return values


def _ids(path: Path) -> int:
    """The largest id of a tokenizer.json, and one more."""
    values = _read(path)
    vocabulary = values.get("model", {}).get("vocab", {})
    # Unigram's is a list of pairs; the others map tokens to ids.
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [int(token["id"]) for token in values.get("added_tokens", [])]
    return 1 + max([*ids, *added], default=-1)
