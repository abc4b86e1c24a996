"""How the stages of a recipe refer to one another: the rules that cross stages."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config, validate
from configs.stage import STAGE_PREFIX, StageConfig, split_location
from configs.yaml_source import Key, YamlSource, nearest, read_yaml

_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_RESERVED = {"recipe.yaml", "provenance.json", "restarts.jsonl"}


class ChainRecipe(Config):
    """What every recipe says; a subclass redeclares ``stages`` with its union of stages."""

    name: str = Field(min_length=1, description="names the run in reports")
    output: Path = Field(description="the run folder")
    seed: int = Field(0, ge=0, description="every random number of the run is keyed by it")
    stages: dict[str, Any] = Field(min_length=1, description="the chain: name -> stage, in order")


AnyRecipe = TypeVar("AnyRecipe", bound=ChainRecipe)


@dataclass(frozen=True, slots=True)
class Reference:
    """A ``stage:NAME/rest`` in a stage's config, and the keys that lead to it."""

    keys: tuple[Key, ...]
    location: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place of a recipe."""

    keys: tuple[Key, ...]
    message: str


def load_chain(path: Path, schema: type[AnyRecipe], overrides: Iterable[str] = ()) -> AnyRecipe:
    """Read, validate and link a recipe; RecipeError with file, line and key."""
    source = read_yaml(path, overrides)
    recipe = validate(source, schema)
    refuse(source, problems(recipe.stages))
    return recipe


def refuse(source: YamlSource, found: Iterable[Problem]) -> None:
    """RecipeError that lists all problems, if there are any."""
    lines = [f"{source.where(problem.keys)}: {problem.message}" for problem in found]
    if lines:
        raise RecipeError("\n".join(lines))


def references(stage: StageConfig) -> Iterator[Reference]:
    """Every ``stage:`` location in a stage's config."""
    return _walk(stage.model_dump(mode="json"), ())


def inputs_of(stage: StageConfig) -> tuple[str, ...]:
    """The names of the stages it reads from, each once, in order of appearance."""
    names = (split_location(reference.location)[0] for reference in references(stage))
    return tuple(dict.fromkeys(name for name in names if name is not None))


def problems(stages: Mapping[str, StageConfig]) -> Iterator[Problem]:
    """Stage names that cannot be folders, and references that lead nowhere."""
    earlier: list[str] = []
    for name, stage in stages.items():
        if not _STAGE_NAME.fullmatch(name) or name in _RESERVED:
            rule = "a stage's name is its folder: letters, digits, '.', '_', '+', '-'"
            yield Problem(("stages", name), rule)
        for reference in references(stage):
            message = _wrong(reference.location, name, earlier, stages)
            if message:
                yield Problem(("stages", name, *reference.keys), message)
        earlier.append(name)


def _wrong(
    location: str, name: str, earlier: list[str], stages: Mapping[str, StageConfig]
) -> str | None:
    try:
        target, rest = split_location(location)
    except RecipeError as error:
        return str(error)
    if PurePosixPath(rest).is_absolute() or ".." in PurePosixPath(rest).parts:
        return f"{location}: the path must stay inside the stage's folder"
    if target in earlier:
        return None
    if target == name:
        return f"{location}: a stage cannot read from itself"
    if target in stages:
        return f"{location}: stage '{target}' stands later; move it above '{name}'"
    return f"{location}: no stage '{target}'; {nearest(str(target), earlier)}"


def _walk(value: Any, keys: tuple[Key, ...]) -> Iterator[Reference]:
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        yield Reference(keys, value)
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _walk(below, (*keys, key))
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from _walk(below, (*keys, index))
