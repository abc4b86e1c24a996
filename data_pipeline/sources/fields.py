"""Which fields of a record are what, and the document that a record gives: one rule for all."""

import base64
import datetime
import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pydantic import Field

from configs.schema import Config
from data_pipeline.example import Document
from data_pipeline.sources.source import Rejected

LONGEST_SHOWN = 60


class Fields(Config):
    """Which fields (columns) of a record are what.

    Attributes:
        text: the field of the text.
        id: the field that names the document; without it the name is ``file:line``.
        group: the field of what must stay on one side of a split; without it, each document.
        metadata: the fields that are kept beside the text: strings as they are, all else as
            JSON. A record that lacks one, or has null there, is kept without it.
    """

    text: str = "text"
    id: str | None = None
    group: str | None = None
    metadata: list[str] = Field(default_factory=list)

    @property
    def needed(self) -> tuple[str, ...]:
        """The fields that every record must have."""
        return tuple(name for name in (self.text, self.id, self.group) if name is not None)

    @property
    def all(self) -> tuple[str, ...]:
        """The fields that are read, each once."""
        return tuple(dict.fromkeys((*self.needed, *self.metadata)))

    def document(self, values: Mapping[str, Any], place: str, where: str) -> Document | Rejected:
        """The document of a record, or why it is none.

        Args:
            values: the record; a value that is ``Rejected`` could not be read.
            place: its name where no field gives one, the same on every machine.
            where: it stands, for people.
        """
        found: dict[str, str] = {}
        for role, name in (("text", self.text), ("id", self.id), ("group", self.group)):
            if name is None:
                continue
            if name not in values:
                known = _printable(", ".join(islice(map(str, values), 8)) or "none")
                return Rejected(where, f"no field '{name}' for the {role} (fields: {known})")
            value = values[name]
            if role != "text" and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str):
                return Rejected(where, _mistyped(name, value))
            found[role] = value
        kept = {name: values[name] for name in self.metadata if values.get(name) is not None}
        for name, value in kept.items():
            if isinstance(value, Rejected):
                return Rejected(where, f"'{name}' {value.reason}")
        metadata = {name: as_text(value) for name, value in kept.items()}
        name = found.get("id", place)
        return Document(found["text"], name, found.get("group", name), metadata)


def as_text(value: object) -> str:
    """A value of any type as metadata: a string as it is, all else as JSON (bytes as base64)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict | list | tuple | int | float):
        return _plain(value)
    return json.dumps(value, ensure_ascii=False, default=_plain)


def surrogate_in(document: Document) -> str | None:
    """Why a document is no text: where half of a surrogate pair stands in it; None: nowhere."""
    named = {"text": document.text, "id": document.id, "group": document.group}
    for name, value in (named | dict(document.metadata)).items():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"half a surrogate pair in the {name}, at character {error.start}"
    return None


def _mistyped(name: str, value: object) -> str:
    if isinstance(value, Rejected):
        return f"'{name}' {value.reason}"
    return f"'{name}' is {shown(value)}, expected a string"


def shown(value: object) -> str:
    """The beginning of a value, for a message."""
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    return _printable(text)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> str:
    """What JSON has no type for."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
