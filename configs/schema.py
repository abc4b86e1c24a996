"""The one way a YAML recipe becomes a typed, frozen config."""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.errors import RecipeError
from configs.yaml_source import Key, YamlSource, closest, nearest, read_yaml


class Config(BaseModel):
    """Base of every config: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


AnyConfig = TypeVar("AnyConfig", bound=BaseModel)


def load(path: Path, schema: type[AnyConfig], overrides: Iterable[str] = ()) -> AnyConfig:
    """Read a YAML file, apply ``key.path=value`` overrides, and validate it.

    Raises:
        RecipeError: one line a problem: ``file:line: key.path: what is wrong; what to do``.
    """
    return validate(read_yaml(path, overrides), schema)


def validate(source: YamlSource, schema: type[AnyConfig]) -> AnyConfig:
    """The typed config of values that were read; RecipeError with file, line and key."""
    try:
        return schema.model_validate(source.values)
    except ValidationError as error:
        raise RecipeError("\n".join(_explain(source, schema, error))) from None


def _explain(source: YamlSource, schema: type[BaseModel], error: ValidationError) -> list[str]:
    """One line a place: the members of a plain union each report the same place."""
    reasons: dict[str, list[str]] = {}
    problems = error.errors(include_url=False)
    places = [_Place(schema).follow(problem["loc"]) for problem in problems]
    mistyped = _mistyped(problems, places)
    for problem, place in zip(problems, places, strict=True):
        if problem["type"] == "missing" and tuple(place.keys) in mistyped:
            continue
        reason = _reason(place, problem)
        said = reasons.setdefault(source.where(place.keys), [])
        if reason not in said:
            said.append(reason)
    return [f"{where}: {', or '.join(said)}" for where, said in reasons.items()]


def _mistyped(problems: Sequence[ErrorDetails], places: Sequence["_Place"]) -> set[tuple[Key, ...]]:
    """Places of keys that an unknown one beside them was probably meant to be."""
    found = set()
    for problem, place in zip(problems, places, strict=True):
        if problem["type"] == "extra_forbidden" and place.model:
            close = closest(str(place.keys[-1]), place.model.model_fields)
            if close:
                found.add((*place.keys[:-1], close))
    return found


def _reason(place: "_Place", problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        known = place.model.model_fields if place.model else ()
        return f"unknown key; {nearest(str(problem['loc'][-1]), known)}"
    if kind == "missing":
        return "missing; this key is needed"
    if kind == "union_tag_not_found":
        return f"needs '{place.discriminator}', one of: {', '.join(sorted(place.tags))}"
    if kind == "union_tag_invalid":
        given = context.get("tag", "")
        return f"no {place.discriminator} '{given}'; {nearest(str(given), place.tags)}"
    given = repr(problem["input"])
    shown = given if len(given) <= 60 else given[:57] + "..."
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{message[:1].lower()}{message[1:]}; given: {shown}"


@dataclass(slots=True)
class _Place:
    """Where pydantic's ``loc`` leads: it names union members too, which a file does not.

    Attributes:
        keys: the part of the way that stands in the file.
        model: the model that the last key belongs to.
        tags: the names to choose from, if the way ends at a tagged union.
    """

    annotation: Any
    keys: list[Key] = field(default_factory=list)
    model: type[BaseModel] | None = None
    discriminator: str | None = None
    tags: tuple[str, ...] = ()

    def follow(self, loc: Sequence[Key]) -> "_Place":
        for step in loc:
            self._enter_annotation()
            self._take(step)
        self._enter_annotation()
        if self.discriminator:
            self.tags = tuple(_tagged(self.annotation, self.discriminator))
        return self

    def _enter_annotation(self) -> None:
        """Look through Annotated and ``X | None``, which leave no trace in ``loc``."""
        while True:
            if typing.get_origin(self.annotation) is typing.Annotated:
                inner, *metadata = typing.get_args(self.annotation)
                self._note_discriminator(*metadata)
                self.annotation = inner
                continue
            members = _members(self.annotation)
            if len(members) != 1 or not _is_union(self.annotation):
                return
            self.annotation = members[0]

    def _note_discriminator(self, *metadata: Any) -> None:
        for item in metadata:
            if isinstance(item, FieldInfo) and isinstance(item.discriminator, str):
                self.discriminator = item.discriminator

    def _take(self, step: Key) -> None:
        discriminator, self.discriminator = self.discriminator, None
        annotation, origin = self.annotation, typing.get_origin(self.annotation)
        if _is_model(annotation):
            self.model = annotation
            self.keys.append(step)
            known = annotation.model_fields.get(str(step))
            self.annotation = known.annotation if known else None
            self._note_discriminator(known)
        elif _is_union(annotation):
            self.annotation = (
                _tagged(annotation, discriminator).get(str(step))
                if discriminator
                else _named(annotation, str(step))
            )
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            if step != "[key]":
                self.keys.append(step)
                self.annotation = typing.get_args(annotation)[1]
        elif isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset):
            self.keys.append(step)
            self.annotation = typing.get_args(annotation)[0]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in {Union, types.UnionType}


def _members(annotation: Any) -> list[Any]:
    return [member for member in typing.get_args(annotation) if member is not types.NoneType]


def _tagged(union: Any, discriminator: str) -> dict[str, Any]:
    """Tag -> member of a union whose members bear the discriminator as a Literal."""
    found: dict[str, Any] = {}
    for member in _members(union) if _is_union(union) else [union]:
        inner = member
        while typing.get_origin(inner) is typing.Annotated:
            inner = typing.get_args(inner)[0]
        if _is_union(inner):
            found |= _tagged(inner, discriminator)
        elif _is_model(inner) and discriminator in inner.model_fields:
            literal = inner.model_fields[discriminator].annotation
            if typing.get_origin(literal) is Literal:
                found |= {str(tag): inner for tag in typing.get_args(literal)}
    return found


def _named(union: Any, label: str) -> Any:
    """The member of a plain union by pydantic's label for it: ``Linear``, ``list[str]``."""
    for member in _members(union):
        inner = member
        while typing.get_origin(inner) is typing.Annotated:
            inner = typing.get_args(inner)[0]
        name = getattr(typing.get_origin(inner) or inner, "__name__", "")
        if label == name or label.startswith(f"{name.lower()}["):
            return inner
    return None
