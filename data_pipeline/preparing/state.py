"""prepared.json: what a finished prepare stage was made from, and what it made."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import DataError
from data_pipeline.shards import ShardedDataset
from data_pipeline.tokenization import tokenizer_sha256
from data_pipeline.whole_file import write_whole

FILE = "prepared.json"
REJECTED = "rejected.jsonl"
REMOVED = "removed.jsonl.gz"
_SIDE = re.compile(r"\w[\w.+-]*/(train|held_out)")


@dataclass(frozen=True, slots=True)
class State:
    """A finished stage.

    Attributes:
        key: of the stage.
        files: ``{name, stamp, digest}`` of every file that it read, by place.
        made: digest of each output, by name: ``tokenizer``, ``CORPUS/SIDE``.
    """

    key: str
    files: dict[str, list[Any]] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, key: str) -> "State":
        """What a run with the same key has left; nothing made where there is none."""
        found = cls.left(folder)
        return found if found.key == key else cls(key)

    @classmethod
    def left(cls, folder: Path) -> "State":
        """What the last run has left, whatever its key; key "" where there is none."""
        try:
            values = json.loads((folder / FILE).read_bytes())
            found = cls(str(values["key"]), dict(values["files"]), dict(values["made"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return cls("")
        digests = all(isinstance(digest, str) for digest in found.made.values())
        files = all(isinstance(listed, list) for listed in found.files.values())
        return found if digests and files and all(map(_is_output, found.made)) else cls("")

    @property
    def fingerprint(self) -> str:
        """Covers the tokenizer and every byte of the shards."""
        text = " ".join(f"{name}={digest}" for name, digest in sorted(self.made.items()))
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Leave it for the next run."""
        values = {
            "key": self.key,
            "files": self.files,
            "made": self.made,
            "fingerprint": self.fingerprint,
        }
        write_whole(folder / FILE, (json.dumps(values, indent=1) + "\n").encode())

    def intact(self, folder: Path) -> dict[str, str]:
        """Of what was made, what is there as it was; nothing without its tokenizer."""
        found = {
            name: digest for name, digest in self.made.items() if made_at(folder, name) == digest
        }
        return found if "tokenizer" in found else {}


def _is_output(name: str) -> bool:
    """Whether it can name an output, and nothing beside the stage's folder."""
    return name == "tokenizer" or _SIDE.fullmatch(name) is not None


def output_folder(folder: Path, name: str) -> Path:
    """Where an output lies."""
    return folder / name if name == "tokenizer" else folder / "corpora" / name


def made_at(folder: Path, name: str) -> str | None:
    """Digest of an output; None where there is none, or a damaged one."""
    path = output_folder(folder, name)
    try:
        return (
            tokenizer_sha256(path) if name == "tokenizer" else ShardedDataset.open(path).fingerprint
        )
    except DataError:
        return None


def clear(folder: Path) -> None:
    """Take away what another recipe or other sources gave."""
    (folder / FILE).unlink(missing_ok=True)
    for name in ("tokenizer", "corpora"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (REJECTED, REMOVED):
        (folder / name).unlink(missing_ok=True)
