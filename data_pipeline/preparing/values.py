"""Parts of sources as JSON: a record holds no pickle, which would run what it is told to."""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.schema import Config

_HOME = "data_pipeline.sources"
_KIND = "kind of value"


def to_json(value: Any) -> Any:
    """A JSON value for dataclasses and configs of the sources, paths, tuples and plain values."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return {_KIND: "path", "path": str(value)}
    if isinstance(value, list | tuple):
        return {_KIND: type(value).__name__, "items": [to_json(item) for item in value]}
    if isinstance(value, Mapping):
        return {_KIND: "mapping", "items": {key: to_json(item) for key, item in value.items()}}
    named = {_KIND: f"{type(value).__module__}:{type(value).__qualname__}"}
    if isinstance(value, Config):
        return named | {"config": value.model_dump(mode="json")}
    if dataclasses.is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value))
        return named | {"fields": {name: to_json(getattr(value, name)) for name in fields}}
    msg = f"a part of a source holds a {type(value).__name__}, which has no place in a record"
    raise TypeError(msg)


def from_json(value: Any) -> Any:
    """What ``to_json`` was given; DataError for what it never gives."""
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND, "")
    if kind == "path":
        return Path(value["path"])
    if kind in {"list", "tuple"}:
        items = map(from_json, value["items"])
        return list(items) if kind == "list" else tuple(items)
    if kind == "mapping":
        return {key: from_json(item) for key, item in value["items"].items()}
    made = _class(kind)
    if issubclass(made, Config):
        return made.model_validate(value["config"])
    return made(**{name: from_json(item) for name, item in value["fields"].items()})


def _class(kind: str) -> type:
    module, _, name = kind.partition(":")
    found = None
    if module == _HOME or module.startswith(f"{_HOME}."):
        found = getattr(importlib.import_module(module), name, None)
    if not (
        isinstance(found, type) and (dataclasses.is_dataclass(found) or issubclass(found, Config))
    ):
        msg = f"'{kind}': not a part of a source; the record was not written by this program"
        raise DataError(msg)
    return found
