"""manifest.json: what a folder of shards holds, byte for byte, and where it comes from."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from configs.errors import DataError
from configs.schema import Config

FILE = "manifest.json"
Suffix = Literal[".bin", ".idx", ".ann"]
SUFFIXES: tuple[Suffix, ...] = (".bin", ".idx", ".ann")
LEGEND = {"0": "word start", "1": "sentence start"}
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.+=@-]*$"
"""What a shard may be called; the name stands in paths and in URLs."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TokenizerRecord(Config):
    """The tokenizer behind the ids.

    Attributes:
        name: for people.
        sha256: of all that decides which ids a text gets (``tokenization.tokenizer_sha256``).
        vocabulary_size: largest id + 1.
        special: ids by role: mask, pad, cls, sep, unk, bos, eos; roles it lacks are absent.
        prefix: ids that belong before a document; the shards do not hold them.
        suffix: ids that belong after a document; the shards do not hold them.
        words: how Chinese words were found for the annotations: ``characters`` (each by itself),
            or the segmenter and its version.
    """

    name: str
    sha256: Sha256
    vocabulary_size: int = Field(ge=1)
    special: dict[str, int]
    prefix: list[int]
    suffix: list[int]
    words: str = "characters"


class FileRecord(Config):
    """Size and hash of one file."""

    bytes: int
    sha256: Sha256


class ShardRecord(Config):
    """One shard: ``name.bin``, ``name.idx`` and, where there are annotations, ``name.ann``.

    Attributes:
        sequences: that hold a token.
        documents: that hold a token.
    """

    # A bare name: a manifest must not be able to point outside its folder.
    name: str = Field(pattern=NAME)
    sequences: int = Field(ge=1)
    documents: int = Field(ge=1)
    tokens: int = Field(ge=1)
    files: dict[Suffix, FileRecord]

    @property
    def digest(self) -> str:
        """Hex digest of its files together."""
        there = [suffix for suffix in SUFFIXES if suffix in self.files]
        joined = " ".join(f"{suffix}={self.files[suffix].sha256}" for suffix in there)
        return hashlib.sha256(joined.encode()).hexdigest()


class Manifest(Config):
    """A whole folder of shards.

    Attributes:
        level: whether a sequence is a whole document, or a sentence of one.
        annotations: what each bit of ``.ann`` says; empty: the shards have no ``.ann``.
        digest: of everything in it, provenance too: what was made, and from what.
    """

    format: Literal["onward-shards"] = "onward-shards"
    version: Literal[1] = 1
    tokenizer: TokenizerRecord
    dtype: Literal["uint16", "int32"]
    level: Literal["document", "sentence"] = "document"
    annotations: dict[str, str] = LEGEND
    shards: list[ShardRecord]
    provenance: dict[str, Any]
    digest: str = ""

    @model_validator(mode="after")
    def _files_and_names(self) -> Self:
        needed = set(self.suffixes)
        seen: set[str] = set()
        for shard in self.shards:
            if set(shard.files) != needed:
                found = ", ".join(sorted(shard.files)) or "none"
                msg = f"{shard.name} has {found}; expected {', '.join(sorted(needed))}"
                raise ValueError(msg)
            if shard.name in seen:
                msg = f"{shard.name} stands in it twice"
                raise ValueError(msg)
            seen.add(shard.name)
        return self

    @property
    def suffixes(self) -> tuple[Suffix, ...]:
        """Of the files that each shard has."""
        return SUFFIXES if self.annotations else SUFFIXES[:2]

    def signed(self) -> "Manifest":
        """The same with its digest filled in."""
        return self.model_copy(update={"digest": canonical_digest(self)})

    @property
    def content(self) -> str:
        """Hex digest of what is read alone: tokens, annotations, their meaning, shard borders.

        Where the texts came from, the tokenizer's name and the folder do not count: the same bytes
        are read in the same order, under the same masks, wherever they lie.
        """
        values = {
            "version": self.version,
            "tokenizer": self.tokenizer.model_dump(mode="json", exclude={"name"}),
            "dtype": self.dtype,
            "level": self.level,
            "annotations": self.annotations,
            "shards": [shard.digest for shard in self.shards],
        }
        return _sha256_of(values)

    @property
    def tokens(self) -> int:
        """Tokens of all shards."""
        return sum(shard.tokens for shard in self.shards)


def canonical_digest(manifest: Manifest) -> str:
    """Sha256 of the canonical JSON of everything but the digest itself."""
    return _sha256_of(manifest.model_dump(mode="json", exclude={"digest"}))


def _sha256_of(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``; DataError when it is absent, malformed or changed."""
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        msg = (
            f"{folder}: no {FILE}, so this is no finished shard folder; prepare the corpus again, "
            "or adopt what lies there (onward adopt)"
        )
        raise DataError(msg) from None
    except OSError as error:
        msg = f"{path}: cannot be read ({error.strerror or error})"
        raise DataError(msg) from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, name: str) -> Manifest:
    """Check what a ``manifest.json`` holds; DataError, with the name given, as above."""
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        msg = f"{name}: {place or 'the file'}: {said}; prepare the corpus again"
        raise DataError(msg) from None
    found = canonical_digest(manifest)
    if found != manifest.digest:
        msg = (
            f"{name}: it was changed after it was written (digest {found[:16]}, "
            f"written as {manifest.digest[:16]}); prepare the corpus again"
        )
        raise DataError(msg)
    if not manifest.shards:
        msg = f"{name}: it lists no shard; prepare the corpus again"
        raise DataError(msg)
    return manifest
