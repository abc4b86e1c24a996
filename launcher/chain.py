"""Where each stage of a chain stands, and the step from one state to the next."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.errors import (
    CheckpointError,
    DataError,
    OnwardError,
    Preempted,
    RecipeError,
    ResourceError,
)
from configs.stage import Artifact, Share, StageConfig, StageContext
from configs.yaml_source import nearest
from launcher.begun import Begun
from launcher.interruption import Interrupted
from launcher.links import ChainRecipe, inputs_of
from launcher.run_folder import Failure, RunFolder, Status, Workers, make_folder, now
from launcher.secrecy import mask

State = Literal["open", "waiting", "unfinished", "done", "foreign"]
_SHOWN = 6
_LONGEST = 200
"""Characters of a value that are shown of a change."""
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Standing:
    """What a run folder holds of a stage, against what the recipe asks for.

    Attributes:
        state: ``open``: nothing is there that counts. ``waiting``: an input is not done.
            ``unfinished``: it was begun with this key. ``done``: with this key. ``foreign``: made
            with another, or begun with another and something is there that is worth keeping.
        key: the key that the recipe gives it; None while an input is not done.
        inputs: the inputs that are done.
        changes: what a foreign one differs in.
        artifact: what it handed on, if done.
        leftover: another recipe's attempt lies there, which left nothing that is worth keeping.
    """

    state: State
    key: str | None
    inputs: Mapping[str, Artifact]
    changes: tuple[str, ...] = ()
    artifact: Artifact | None = None
    leftover: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """Which stages to run (none named: all), and which to make anew."""

    stages: tuple[str, ...] = ()
    redo: frozenset[str] = frozenset()


def survey(recipe: ChainRecipe, run: RunFolder) -> dict[str, Standing]:
    """Where every stage stands, in the recipe's order; reads status files alone."""
    found: dict[str, Standing] = {}
    for name in recipe.stages:
        found[name] = _stand(recipe, run, name, found)
    return found


def _stand(
    recipe: ChainRecipe, run: RunFolder, name: str, found: Mapping[str, Standing]
) -> Standing:
    stage: StageConfig = recipe.stages[name]
    needed = inputs_of(stage)
    made = {other: found[other].artifact for other in needed}
    inputs = {other: artifact for other, artifact in made.items() if artifact is not None}
    complete = len(inputs) == len(needed)
    key = stage_key(stage, recipe.seed, inputs) if complete else None
    try:
        status = run.status(name)
    except CheckpointError:
        return Standing("foreign", key, inputs, ("its status.json cannot be read",))
    begun: State = "open" if complete else "waiting"
    if status is None:
        return Standing(begun, key, inputs)
    changes = tuple(_changes(status, stage, recipe.seed, inputs))
    if changes or (key is not None and status.key != key):
        if _is_worth_keeping(stage, status, run.stage(name)):
            return Standing("foreign", key, inputs, changes or ("the key itself",))
        return Standing(begun, key, inputs, leftover=True)
    if not complete or status.state != "done" or status.fingerprint is None:
        return Standing("unfinished" if complete else "waiting", key, inputs)
    artifact = Artifact(run.stage(name), status.fingerprint)
    return Standing("done", key, inputs, artifact=artifact)


def _is_worth_keeping(stage: StageConfig, status: Status, folder: Path) -> bool:
    """Whether a change of the recipe must not discard what lies in a stage's folder unasked.

    Not so an attempt that came to nothing: a recipe is corrected after each error that it gives.
    """
    of_this_kind = status.config.get("kind") == stage.keyed_facts().get("kind")
    if status.state == "done" or status.submitted or not of_this_kind:
        return True
    return any(True for pattern in stage.KEPT for _ in folder.glob(pattern))


def stage_key(stage: StageConfig, seed: int, inputs: Mapping[str, Artifact]) -> str:
    """Hash of what a stage's result depends on: config, code version, seed, inputs.

    Of the config without UNKEYED, and without APPENDED: that may grow on the way to the result.
    """
    facts = {
        "config": _without(stage.keyed_facts(), stage.UNKEYED | stage.APPENDED),
        "version": stage.VERSION,
        "seed": seed,
        "inputs": {name: artifact.fingerprint for name, artifact in inputs.items()},
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _changes(
    status: Status, stage: StageConfig, seed: int, inputs: Mapping[str, Artifact]
) -> Iterator[str]:
    if status.seed != seed:
        yield f"seed: {status.seed} -> {seed}"
    if status.version != stage.VERSION:
        yield f"the code of this kind of stage: version {status.version} -> {stage.VERSION}"
    apart = stage.UNKEYED if status.state == "done" else stage.UNKEYED | stage.APPENDED
    yield from _differences(_without(status.config, apart), _without(stage.keyed_facts(), apart))
    for name, artifact in inputs.items():
        old = status.inputs.get(name, "absent")
        if name in status.inputs and old != artifact.fingerprint:
            yield f"stage '{name}' made something else: {old[:12]} -> {artifact.fingerprint[:12]}"


def _without(value: Any, paths: Iterable[str]) -> Any:
    """A copy of nested mappings without what lies at the dotted paths."""
    if not isinstance(value, Mapping):
        return value
    below = [path.partition(".") for path in paths]
    gone = {key for key, _, rest in below if not rest}
    return {
        key: _without(inner, [rest for first, _, rest in below if first == key])
        for key, inner in value.items()
        if key not in gone
    }


def _differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """``PATH: OLD -> NEW`` for the innermost places at which two values of a config differ."""
    old, new = _parts(before), _parts(after)
    if isinstance(before, Mapping) != isinstance(after, Mapping) or not old or not new:
        if _text(before) != _text(after):
            yield f"{path}: {_cut(_text(before))} -> {_cut(_text(after))}"
        return
    for key in dict.fromkeys([*old, *new]):
        inner = f"{path}.{key}" if path else str(key)
        yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)


def _parts(value: Any) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, list | tuple) else {}


def _text(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def select(recipe: ChainRecipe, run: RunFolder, request: Request) -> list[str]:
    """The stages to work on, in order; done ones among them are skipped later.

    Raises:
        RecipeError: a stage that is not in the recipe.
        DataError: a named stage whose inputs are neither done nor named.
        CheckpointError: the run folder holds results of another recipe.
    """
    for name in (*request.stages, *sorted(request.redo)):
        if name not in recipe.stages:
            msg = f"no stage '{name}' in this recipe; {nearest(name, recipe.stages)}"
            raise RecipeError(msg)
    chosen = [name for name in recipe.stages if not request.stages or name in request.stages]
    standings = survey(recipe, run)
    refuse_foreign(run, standings, set(chosen) - replaceable(recipe, request.redo))
    for name in chosen:
        _refuse_missing_inputs(recipe, standings, name, chosen)
    return chosen


def replaceable(recipe: ChainRecipe, redo: Iterable[str]) -> set[str]:
    """The stages to make anew, and all that are built on them."""
    found = set(redo)
    for name, stage in recipe.stages.items():
        if found.intersection(inputs_of(stage)):
            found.add(name)
    return found


def refuse_foreign(run: RunFolder, standings: Mapping[str, Standing], names: Iterable[str]) -> None:
    """CheckpointError that tells what changed, if one of the stages is another recipe's."""
    wanted = set(names)
    foreign = {n: s for n, s in standings.items() if n in wanted and s.state == "foreign"}
    if not foreign:
        return
    lines = []
    for name, standing in foreign.items():
        lines.append(f"{run.stage(name)}: made with another recipe; what changed:")
        lines += [f"    {change}" for change in standing.changes[:_SHOWN]]
        if len(standing.changes) > _SHOWN:
            lines.append(f"    and {len(standing.changes) - _SHOWN} more")
    redo = " ".join(f"--redo {name}" for name in foreign)
    lines.append(f"Give {redo} to discard and make anew, or output=FOLDER to start another run.")
    raise CheckpointError("\n".join(lines))


def _refuse_missing_inputs(
    recipe: ChainRecipe, standings: Mapping[str, Standing], name: str, chosen: Sequence[str]
) -> None:
    for needed in inputs_of(recipe.stages[name]):
        if needed not in chosen and standings[needed].state != "done":
            msg = (
                f"stage {name} reads from stage {needed}, which is not done; "
                f"run it first, or name both: {needed} {name}"
            )
            raise DataError(msg)


def context_for_check(
    recipe: ChainRecipe, run: RunFolder, name: str, standing: Standing
) -> StageContext:
    """What a stage may know before its inputs are all made; its folder may not exist."""
    status = run.status(name)
    key = standing.key or (status.key if status else "")
    return StageContext(name, run.stage(name), recipe.seed, key, standing.inputs)


def check(recipe: ChainRecipe, run: RunFolder, names: Iterable[str]) -> None:
    """Let every stage that is not done check what it can; writes nothing."""
    standings = survey(recipe, run)
    for name in names:
        if standings[name].state not in {"done", "foreign"}:
            recipe.stages[name].check(context_for_check(recipe, run, name, standings[name]))


def refuse_outdated(recipe: ChainRecipe, run: RunFolder, names: Iterable[str]) -> None:
    """DataError if what a done stage was made from is not as it was; writes nothing."""
    standings = survey(recipe, run)
    for name in names:
        if standings[name].state != "done":
            continue
        stage: StageConfig = recipe.stages[name]
        changed = stage.outdated(context_for_check(recipe, run, name, standings[name]))
        if changed is not None:
            msg = (
                f"stage {name} is done, but what it was made from has changed since: {changed}; "
                f"give --redo {name} to make it anew, with all that is built on it, "
                "or put back what was there"
            )
            raise DataError(msg)


def join(
    recipe: ChainRecipe, run: RunFolder, name: str, share: Share, seconds: float = 300.0
) -> StageContext | None:
    """The context of a stage that several hosts run, for one of them; None if it is done already.

    The first marks it as running and discards another recipe's attempt; the others wait until that
    is gone and its inputs are seen to be done, which a shared file system may tell late.

    Raises:
        CheckpointError: the run folder holds it from another recipe.
        DataError: its inputs are not done, or the attempt is still there, after so many seconds.
    """
    if share.index == 0:
        entered = enter(recipe, run, name)
        return entered and dataclasses.replace(entered, share=share)
    end = time.monotonic() + seconds
    while _is_early(standing := survey(recipe, run)[name]) and time.monotonic() < end:
        time.sleep(0.5)
    refuse_foreign(run, {name: standing}, [name])
    if standing.key is None:
        _refuse_missing_inputs(recipe, survey(recipe, run), name, [name])
    if standing.leftover:
        msg = (
            f"{run.stage(name)}: another recipe's attempt lies there, and the first host has not "
            f"begun anew within {seconds:.0f} s; see what it says"
        )
        raise DataError(msg)
    if standing.state == "done" or standing.key is None:
        return None
    make_folder(run.stage(name))
    return StageContext(name, run.stage(name), recipe.seed, standing.key, standing.inputs, share)


def _is_early(standing: Standing) -> bool:
    return standing.key is None or standing.leftover


def enter(
    recipe: ChainRecipe,
    run: RunFolder,
    name: str,
    replace: Iterable[str] = (),
    workers: Workers | None = None,
) -> StageContext | None:
    """Mark a stage as running and give its context; None if it is done already.

    A foreign one is discarded if ``replace`` names it, and refused otherwise; another recipe's
    attempt that left nothing worth keeping is discarded, too. ``workers`` are the processes of a
    launched one; a line warns if it was begun with others, or they share the work otherwise now.
    """
    standings = survey(recipe, run)
    foreign = standings[name].state == "foreign" and name in set(replace)
    if foreign or standings[name].leftover:
        run.discard(name)
        standings = survey(recipe, run)
    refuse_foreign(run, standings, [name])
    standing = standings[name]
    if standing.state == "done":
        return None
    if standing.key is None:
        _refuse_missing_inputs(recipe, standings, name, [name])
        msg = f"stage {name}: an input is not done"
        raise DataError(msg)
    stage: StageConfig = recipe.stages[name]
    now_with = Begun.now(stage, workers)
    begun = Begun.of(run.status(name)) or now_with
    status = Status(
        state="running",
        key=standing.key,
        started=now(),
        inputs={other: artifact.fingerprint for other, artifact in standing.inputs.items()},
        config=stage.keyed_facts(),
        version=stage.VERSION,
        seed=recipe.seed,
        workers=begun.workers,
        shared_out=begun.shared_out,
    )
    if workers:
        begun.compare(name, now_with, stage.REDRAWN)
    run.write_status(name, status)
    return StageContext(name, run.stage(name), recipe.seed, standing.key, standing.inputs)


def note_submitted(run: RunFolder, name: str) -> None:
    """Mark a running stage as given to a queue."""
    status = run.status(name)
    if status is not None:
        run.write_status(name, status.model_copy(update={"submitted": True}))


def finish(run: RunFolder, name: str, fingerprint: str) -> None:
    """Mark a stage as done with what it made."""
    status = run.status(name)
    if status is None:
        msg = f"{run.stage(name)}: its status.json was removed while it ran"
        raise CheckpointError(msg)
    done = {
        "state": "done",
        "fingerprint": fingerprint,
        "finished": now(),
        "outputs": run.outputs(name),
    }
    run.write_status(name, status.model_copy(update=done))


def fail(run: RunFolder, name: str, error: BaseException) -> None:
    """Mark a running stage as failed or stopped; anything else is left as it is.

    On a full disk it stays marked as running, which is taken up again just so: what is told is
    ``error``, not that it could not be noted.
    """
    status = run.status(name)
    if status is None or status.state != "running":
        return
    code = error.exit_code if isinstance(error, OnwardError | Interrupted) else 1
    failure = Failure(kind=type(error).__name__, message=mask(str(error)), exit_code=code)
    state = "stopped" if isinstance(error, Preempted | Interrupted) else "failed"
    update = {"state": state, "finished": now(), "error": failure}
    with suppress(ResourceError):
        run.write_status(name, status.model_copy(update=update))
