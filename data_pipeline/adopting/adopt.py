"""Make a manifest for token files that are there already, without rewriting them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError, RecipeError
from data_pipeline.adopting.annotate import Annotator
from data_pipeline.adopting.foreign import Surveyed, find_token_files, survey
from data_pipeline.disk import disk_errors
from data_pipeline.shards import Manifest, ShardRecord, TokenizerRecord
from data_pipeline.shards.manifest import FILE, LEGEND, FileRecord, Suffix
from data_pipeline.tokenization import tokenizer_record
from data_pipeline.whole_file import write_whole

Contains = Literal["auto", "none", "prefix", "suffix", "both"]
"""Which of the tokenizer's own special tokens stand in the files around each document."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """What is asked for.

    Attributes:
        location: a folder of ``.bin`` and ``.idx`` files, or the path of one of them.
        tokenizer: the folder of the tokenizer that made them.
        out: where the manifest goes, with links to the files; None: beside the files.
        contains: ``auto``: as the files show, an error if they show both.
        annotate: make ``.ann`` files: word and sentence starts.
    """

    location: Path
    tokenizer: Path
    out: Path | None = None
    contains: Contains = "auto"
    annotate: bool = False


def adopt(asked: Adoption) -> Manifest:
    """Read the files through and write their manifest.

    Raises:
        DataError: damaged files, ids that the vocabulary lacks, or signs of another tokenizer.
        RecipeError: a manifest is there already, or ``out`` is not empty.
        ResourceError: the place cannot be written to.
    """
    files = find_token_files(asked.location)
    folder = asked.out or files[0].stem.parent
    _require_free(folder, asked)
    record = tokenizer_record(asked.tokenizer)
    surveyed = [survey(each, record.vocabulary_size) for each in files]
    dtype = _one_dtype(surveyed)
    inside = _around(record, surveyed, asked.contains)
    own = record.model_copy(
        update={side: [] if side in inside else getattr(record, side) for side in _SIDES}
    )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    annotated = _annotations(asked, folder, record, inside, surveyed) if asked.annotate else None
    if asked.out is not None:
        _link(surveyed, asked.out)
    manifest = Manifest(
        tokenizer=own,
        dtype=dtype,
        level="sentence" if any(each.index.sentences for each in surveyed) else "document",
        annotations=LEGEND if annotated else {},
        shards=[
            _shard(each, annotated.files[number] if annotated else None)
            for number, each in enumerate(surveyed)
        ],
        provenance={
            "adopted": {
                "from": str(asked.location),
                "contains": sorted(inside),
                **({"annotated": annotated.counts} if annotated else {}),
            }
        },
    ).signed()
    write_whole(folder / FILE, (manifest.model_dump_json(indent=1) + "\n").encode())
    return manifest


Side = Literal["prefix", "suffix"]
_SIDES: tuple[Side, ...] = ("prefix", "suffix")


@dataclass(frozen=True, slots=True)
class _Annotations:
    files: list[FileRecord]
    counts: dict[str, int]


def _require_free(folder: Path, asked: Adoption) -> None:
    if (folder / FILE).exists():
        msg = f"{folder / FILE}: there is a manifest already; remove it, or give another --out"
        raise RecipeError(msg)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder}: not a folder; give a new one"
        raise RecipeError(msg)
    if asked.out is not None and folder.is_dir() and any(folder.iterdir()):
        msg = f"{folder}: not empty; give a new folder"
        raise RecipeError(msg)


def _one_dtype(surveyed: Sequence[Surveyed]) -> Any:
    first = surveyed[0]
    for other in surveyed[1:]:
        if other.index.dtype != first.index.dtype:
            msg = (
                f"{other.files.path('.idx')}: its tokens are {other.index.dtype.name}, those of "
                f"{first.files.name} are {first.index.dtype.name}; adopt them apart"
            )
            raise DataError(msg)
    return first.index.dtype.name


def _around(
    record: TokenizerRecord, surveyed: Sequence[Surveyed], contains: Contains
) -> frozenset[Side]:
    """The sides on which the tokenizer's special tokens stand in the files."""
    found: set[Side] = set()
    for side in _SIDES:
        ids: list[int] = getattr(record, side)
        if not ids:
            continue
        held = np.concatenate([_stand_there(each, ids, side) for each in surveyed])
        said = contains in {side, "both"} if contains != "auto" else bool(held.any())
        if said and not held.any():
            msg = f"{surveyed[0].files.stem}: no document has the {side} {ids} of the tokenizer"
            raise DataError(f"{msg}; say what they contain otherwise, or name their tokenizer")
        if contains == "auto" and said and not held.all():
            msg = (
                f"{surveyed[0].files.stem}: {int(held.sum())} of {len(held)} documents have the "
                f"{side} {ids} of the tokenizer, the others do not; say which is meant: "
                f"--contains {side}, or none"
            )
            raise DataError(msg)
        if said:
            found.add(side)
    return frozenset(found)


def _stand_there(surveyed: Surveyed, ids: Sequence[int], side: Side) -> NDArray[np.bool_]:
    """Of each document whether it begins, or ends, with these ids."""
    tokens = surveyed.tokens()
    starts, stops = surveyed.documents()
    held = stops - starts >= len(ids)
    first = starts if side == "prefix" else stops - len(ids)
    for at, token in enumerate(ids):
        held[held] = tokens[first[held] + at] == token
    return held


def _link(surveyed: Sequence[Surveyed], out: Path) -> None:
    with disk_errors(out):
        for each in surveyed:
            for suffix in (".bin", ".idx"):
                source = each.files.path(suffix)
                (out / source.name).symlink_to(source.resolve())


def _annotations(
    asked: Adoption,
    folder: Path,
    record: TokenizerRecord,
    inside: frozenset[Side],
    surveyed: Sequence[Surveyed],
) -> _Annotations:
    around = [len(getattr(record, side)) if side in inside else 0 for side in _SIDES]
    annotator = Annotator(asked.tokenizer, *around)
    paths = [folder / f"{each.files.name}.ann" for each in surveyed]
    for path in paths:
        if path.exists():
            msg = f"{path}: it is there already; remove it, or give another --out"
            raise RecipeError(msg)
    try:
        files = [annotator.write(each, path) for each, path in zip(surveyed, paths, strict=True)]
        annotator.require_enough(str(asked.location))
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    counts = {"documents": annotator.documents, "not_reproduced": annotator.not_reproduced}
    return _Annotations(files, counts)


def _shard(surveyed: Surveyed, annotations: FileRecord | None) -> ShardRecord:
    index = surveyed.index
    files: dict[Suffix, FileRecord] = {".bin": surveyed.bin, ".idx": surveyed.idx}
    if annotations is not None:
        files[".ann"] = annotations
    return ShardRecord(
        name=surveyed.files.name,
        sequences=len(index.lengths),
        documents=len(index.documents) - 1,
        tokens=index.tokens,
        files=files,
    )
