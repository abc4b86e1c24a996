"""Data sets of the Hugging Face hub, and folders that ``datasets`` reads without a script."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from configs.errors import DataError, OnwardError
from configs.hub import is_hub_name
from data_pipeline.example import Document
from data_pipeline.persistence import mask_secrets, persist
from data_pipeline.sources.columnar import ROWS_A_BATCH, Columns, Places
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.lines import LONGEST_RECORD
from data_pipeline.sources.source import LimitedSource, Locate, Part, Rejected

if TYPE_CHECKING:
    import pyarrow as pa

MOST_PARTS = 256
COMMIT = re.compile(r"[0-9a-f]{40}")


class DatasetsSource(LimitedSource):
    """Reads one split of a data set as it comes (streaming); no code of it is ever run.

    Attributes:
        path: its name on the hub, or a folder of data files.
        split: which one.
        config: which of its configurations; None: its only or default one.
        revision: branch, tag or commit on the hub; None: its main branch. The commit that it
            stands for is looked up, and becomes part of the digest.
        fields: which columns are what.
        longest_record: bytes; a row with a longer text is rejected.
    """

    name: Literal["datasets"] = "datasets"
    path: str
    split: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = "train"
    config: str | None = None
    revision: str | None = None
    fields: Fields = Fields()
    longest_record: int = Field(default=LONGEST_RECORD, ge=1)

    @model_validator(mode="after")
    def _revision_of_a_name(self) -> Self:
        if self.revision is not None and not is_hub_name(self.path):
            msg = f"revision: {self.path} is no name on the hub, and folders have none"
            raise ValueError(msg)
        return self

    @property
    def locations(self) -> Sequence[str]:
        return () if is_hub_name(self.path) else (self.path,)

    def files(self, locate: Locate) -> list[SourceFile]:
        chosen = self._chosen(locate)
        return [chosen.commit] if chosen.commit else _data_files(chosen)

    def parts(self, locate: Locate) -> list[Part]:
        chosen = self._chosen(locate)
        columns = Columns(self.fields, self.longest_record)
        data = chosen.open()
        if data.features is not None:
            columns.require(data.features.arrow_schema, str(chosen))
        count = min(data.num_shards, MOST_PARTS)
        return [DatasetsPart(chosen, columns, index, count) for index in range(count)]

    def _chosen(self, locate: Locate) -> "Chosen":
        if not is_hub_name(self.path):
            return Chosen(str(locate(self.path)), self.config, self.split, None)
        commit = _commit(self.path, self.revision)
        return Chosen(self.path, self.config, self.split, commit)


@dataclass(frozen=True, slots=True)
class Chosen:
    """One split of one data set.

    Attributes:
        path: a folder, or a name on the hub.
        revision: the commit on the hub; None for a folder.
    """

    path: str
    config: str | None
    split: str
    revision: str | None

    def __str__(self) -> str:
        at = f"@{self.revision[:8]}" if self.revision else ""
        return f"{self.path}{at} {f'{self.config}/' if self.config else ''}{self.split}"

    @property
    def commit(self) -> "CommitFile | None":
        """What stands for the files of a hub's data set; None for a folder."""
        if self.revision is None:
            return None
        url = f"hf://datasets/{self.path}@{self.revision}"
        return CommitFile(url, self.path, None, self.revision, self.config or "", self.split)

    def open(self) -> Any:
        """Its ``IterableDataset``; DataError when it cannot be had."""
        # What a commit holds does not change; a folder's files do.
        return _streamed(self) if self.revision is None else _streamed_once(self)


@dataclass(frozen=True, slots=True)
class CommitFile(SourceFile):
    """A data set on the hub, all of it: its commit says what it holds.

    Attributes:
        commit: 40 hex digits.
        config: "" for the only or default one.
        split: which is read.
    """

    commit: str = ""
    config: str = ""
    split: str = ""

    def digest(self) -> str:
        content = "\x00".join((self.name, self.commit, self.config, self.split))
        return hashlib.sha256(content.encode()).hexdigest()

    def stamp(self) -> dict[str, str | int | None]:
        return {"commit": self.commit}


@dataclass(frozen=True, slots=True)
class DatasetsPart:
    """Some shards of a data set.

    Attributes:
        index: of the part, from 0.
        count: of all parts.
    """

    chosen: Chosen
    columns: Columns
    index: int
    count: int

    def read(self) -> Iterator[Document | Rejected]:
        row = 1
        name = f"{self.chosen.split}/{self.index:05d}"
        shown = f"{self.chosen} part {self.index + 1} of {self.count}"
        for batch in self._batches():
            self.columns.require(batch.schema, shown)
            yield from self.columns.documents(batch, Places(name, shown, row))
            row += batch.num_rows

    def _batches(self) -> "Iterator[pa.RecordBatch]":
        with _named(self.chosen):
            data = self.chosen.open().shard(self.count, self.index)
            data = data.select_columns(list(self.columns.fields.all)).with_format("arrow")
            for table in data.iter(ROWS_A_BATCH):
                yield from table.to_batches()


@contextmanager
def _named(chosen: Chosen) -> Iterator[None]:
    """Whatever goes wrong in the library, with the name of the data set."""
    try:
        yield
    except OnwardError:
        raise
    except Exception as error:
        told = mask_secrets(" ".join(str(error).split()))[:400]
        msg = (
            f"datasets: {chosen}: {type(error).__name__}: {told}; check `path`, `config` and "
            "`split`; files with malformed records are read record by record by the sources "
            "jsonl, csv and parquet"
        )
        raise DataError(msg) from error


def _streamed(chosen: Chosen) -> Any:
    from datasets import load_dataset

    with _named(chosen):
        return load_dataset(
            chosen.path,
            name=chosen.config,
            split=chosen.split,
            revision=chosen.revision,
            streaming=True,
        )


@lru_cache(maxsize=8)
def _streamed_once(chosen: Chosen) -> Any:
    return _streamed(chosen)


@lru_cache(maxsize=64)
def _commit(name: str, revision: str | None) -> str:
    """The commit that a revision stands for: asked once, so that all parts are of the same."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    at = f"@{revision}" if revision else ""
    found = persist(
        f"hf://datasets/{name}{at}", lambda: HfApi().dataset_info(name, revision=revision)
    )
    if found.sha is None:
        msg = f"datasets: {name}{at}: the hub tells no commit; give `revision`"
        raise DataError(msg)
    return str(found.sha)


def _data_files(chosen: Chosen) -> list[SourceFile]:
    """The files of a split of a folder, by name."""
    from datasets import load_dataset_builder

    with _named(chosen):
        builder = load_dataset_builder(chosen.path, name=chosen.config)
        splits = {str(name): files for name, files in (builder.config.data_files or {}).items()}
    if chosen.split not in splits:
        known = ", ".join(splits) or "none"
        msg = f"datasets: {chosen.path}: no split '{chosen.split}'; it has {known}"
        raise DataError(msg)
    root = Path(chosen.path).absolute()
    paths = sorted(Path(file).absolute() for file in splits[chosen.split])
    return [SourceFile(path, path.relative_to(root).as_posix()) for path in paths]
