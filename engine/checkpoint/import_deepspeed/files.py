"""Which files a DeepSpeed checkpoint is made of; what is no part of a plain ZeRO run is refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import CheckpointError

_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_LATEST = ("latest", "latest_universal")
_LONGEST_TAG = 255
_FOREIGN = {
    r"layer_\d+_expert_\d+_mp_rank_\d+_model_states\.pt": "experts spread over ranks",
    r"expp_rank_\d+_mp_rank_\d+_optim_states\.pt": "experts spread over ranks",
    r"layer_\d+-model_.*": "pipeline parallelism",
    r"offloaded_tensors": "optimizer states on NVMe, which lie in swap files",
}


@dataclass(frozen=True, slots=True)
class Files:
    """The files of one checkpoint.

    Attributes:
        folder: where they lie.
        models: ``*_model_states.pt``: one; at stage 3 one a rank, by rank.
        optimizers: ``*_optim_states.pt`` by rank; none at stage 0 and in a universal checkpoint.
        universal: ``ds_to_universal`` wrote it: a folder ``zero`` with a folder a parameter.
    """

    folder: Path
    models: tuple[Path, ...]
    optimizers: tuple[Path, ...]
    universal: bool


def find_files(given: Path) -> Files:
    """The files of the checkpoint at ``given``: its own folder, or the one that ``latest`` names.

    Raises:
        CheckpointError: there is none, its tag leads elsewhere, a rank's file is missing, or it is
            of a kind of parallelism that is not read.
    """
    folder = _folder(given)
    names = sorted(entry.name for entry in folder.iterdir())
    _refuse_foreign(folder, names)
    universal = (folder / "zero").is_dir()
    models = _models(folder, names)
    return Files(folder, models, () if universal else _optimizers(folder, names), universal)


def _folder(given: Path) -> Path:
    if not given.is_dir():
        what = "a file" if given.exists() else "nothing"
        msg = f"{given}: {what} is there; give the folder that DeepSpeed saved into"
        raise CheckpointError(msg)
    if any(_MODEL.fullmatch(entry.name) for entry in given.iterdir()):
        return given
    for name in _LATEST:
        if (given / name).is_file():
            return _tagged(given, given / name)
    tags = sorted(e.name for e in given.iterdir() if e.is_dir() and _looks_saved(e))
    hint = f"give one of its folders: {', '.join(tags)}" if tags else "no folder in it is one"
    msg = f"{given}: no DeepSpeed checkpoint: neither *_model_states.pt nor 'latest'; {hint}"
    raise CheckpointError(msg)


def _looks_saved(folder: Path) -> bool:
    return any(_MODEL.fullmatch(entry.name) for entry in folder.iterdir())


def _tagged(root: Path, latest: Path) -> Path:
    """The folder that ``latest`` names, never one outside of ``root``."""
    try:
        tag = latest.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        tag = "\0"
    if not tag:
        msg = f"{latest}: empty: the save was cut short; give the folder of an earlier step itself"
        raise CheckpointError(msg)
    is_name = tag.isprintable() and len(tag) <= _LONGEST_TAG
    folder = root / tag if is_name else root
    inside = folder.resolve().parent == root.resolve()
    if not is_name or Path(tag).name != tag or not inside:
        msg = (
            f"{latest}: names {tag[:80]!r}, which leads out of {root} or is no folder's name; "
            "if that is the checkpoint, give its folder itself"
        )
        raise CheckpointError(msg)
    if not folder.is_dir() or not _looks_saved(folder):
        msg = f"{latest}: names {tag}, but {folder} holds no *_model_states.pt; name another folder"
        raise CheckpointError(msg)
    return folder


def _refuse_foreign(folder: Path, names: list[str]) -> None:
    for name in names:
        for pattern, meaning in _FOREIGN.items():
            if re.fullmatch(pattern, name):
                raise _unread(folder / name, meaning)
        parallel = _MODEL.fullmatch(name) or _OPTIMIZER.fullmatch(name)
        if parallel and int(parallel.groups()[-1]) > 0:
            raise _unread(folder / name, "model parallelism (a second mp_rank)")


def _unread(path: Path, meaning: str) -> CheckpointError:
    msg = (
        f"{path}: a sign of {meaning}, which is not imported; export the model's weights there, "
        "in Hugging Face's format, and name that folder as the stage's model"
    )
    return CheckpointError(msg)


def _models(folder: Path, names: list[str]) -> tuple[Path, ...]:
    found = {name: match for name in names if (match := _MODEL.fullmatch(name))}
    whole = [name for name, match in found.items() if match[1] is None]
    parts = {int(match[1]): folder / name for name, match in found.items() if match[1] is not None}
    if not found:
        msg = f"{folder}: no *_model_states.pt in it"
        raise CheckpointError(msg)
    if whole and parts:
        msg = (
            f"{folder}: holds {whole[0]} and {parts[min(parts)].name}: files of two checkpoints, "
            "one of ZeRO stage 3 and one of a lower stage; take those of one of them away"
        )
        raise CheckpointError(msg)
    return (folder / whole[0],) if whole else _every_rank(folder, parts, "model_states")


def _optimizers(folder: Path, names: list[str]) -> tuple[Path, ...]:
    found = {name: match for name in names if (match := _OPTIMIZER.fullmatch(name))}
    if len({match[1] for match in found.values()}) > 1:
        two = sorted({match[1] or "(none)" for match in found.values()})
        msg = (
            f"{folder}: *_optim_states.pt with the prefixes {', '.join(two)}: files of two "
            "checkpoints; take those of one of them away"
        )
        raise CheckpointError(msg)
    parts = {int(match[2]): folder / name for name, match in found.items()}
    return _every_rank(folder, parts, "optim_states")


def _every_rank(folder: Path, parts: Mapping[int, Path], kind: str) -> tuple[Path, ...]:
    missing = [str(rank) for rank in range(max(parts, default=-1) + 1) if rank not in parts]
    if missing:
        msg = f"{folder}: *_{kind}.pt of rank {', '.join(missing)} missing; copy it there again"
        raise CheckpointError(msg)
    return tuple(parts[rank] for rank in sorted(parts))
