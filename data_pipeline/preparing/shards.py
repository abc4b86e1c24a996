"""Shards and manifests as tasks: each shard is put together from the chunks it lies in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.disk import disk_errors
from data_pipeline.preparing.board import Outcome
from data_pipeline.preparing.chunks import pieces
from data_pipeline.shards import TokenizerRecord
from data_pipeline.shards.layout import token_dtype
from data_pipeline.shards.manifest import ShardRecord
from data_pipeline.shards.write import write_manifest, write_shard

Border = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class AssembleShard:
    """Task: write one shard.

    Attributes:
        number: of the shard in its side.
        stems: of the chunks it lies in.
        begin: where it begins in these.
        end: where it ends.
        target: folder of the shards.
    """

    name: str
    weight: int
    number: int
    stems: tuple[Path, ...]
    begin: Border
    end: Border
    target: Path
    vocabulary_size: int

    def run(self) -> Outcome:
        dtype = token_dtype(self.vocabulary_size)
        found = pieces(self.stems, self.begin, self.end, dtype)
        with disk_errors(self.target / f"shard-{self.number:05d}"):
            record = write_shard(self.target, self.number, self.vocabulary_size, found)
        files = tuple(self.target / f"{record.name}{suffix}" for suffix in record.files)
        return Outcome({"shard": record.model_dump(mode="json"), "told": {"shards": 1}}, files)


@dataclass(frozen=True, slots=True)
class WriteManifest:
    """Task: write the manifest of a side, once its shards are there."""

    name: str
    target: Path
    tokenizer: TokenizerRecord
    shards: tuple[ShardRecord, ...]
    provenance: Mapping[str, Any]
    weight: int = 1

    def run(self) -> Outcome:
        with disk_errors(self.target):
            manifest = write_manifest(
                self.target, self.tokenizer, self.shards, dict(self.provenance)
            )
        return Outcome({"digest": manifest.digest}, (self.target / "manifest.json",))
