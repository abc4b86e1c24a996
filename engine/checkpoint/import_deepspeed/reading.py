"""Opening torch's files without running what is pickled in them."""

import hashlib
import pickle
import types
import zipfile
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import CheckpointError, ResourceError

_BLOCK = 1 << 22


class _StandIn:
    """In the place of one of DeepSpeed's classes: takes what was pickled, does nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values


class ZeroStage(_StandIn):
    """For ZeroStageEnum: ``values[0]`` is the number."""


class Address(_StandIn):
    """For fragment_address: ``start`` and ``numel`` of a piece of a flat partition."""


class Scaler(_StandIn):
    """For the loss scalers: their fields, such as ``cur_scale``."""


_SCALERS = "deepspeed.runtime.fp16.loss_scaler"
_KNOWN: dict[str, type[_StandIn]] = {
    "deepspeed.runtime.zero.config.ZeroStageEnum": ZeroStage,
    "deepspeed.utils.tensor_fragment.fragment_address": Address,
    f"{_SCALERS}.LossScaler": Scaler,
    f"{_SCALERS}.DynamicLossScaler": Scaler,
}
"""All the classes that DeepSpeed 0.19.8 itself puts into its checkpoints."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A file that was read: its bytes and their hex sha256."""

    size: int
    sha256: str


@dataclass
class Reader:
    """Opens the files of one checkpoint, each verified first; remembers what it has read.

    Tensors stay in the file, mapped into memory: they cost nothing until they are used.

    Attributes:
        folder: nothing outside of it is opened.
        trust: run the code that is pickled in a file with classes beyond DeepSpeed's own.
        files: by their names in ``folder``.
    """

    folder: Path
    trust: bool = False
    files: dict[str, FileFacts] = field(default_factory=dict)

    def load(self, path: Path) -> dict[str, Any]:
        """What was given to ``torch.save``.

        Raises:
            CheckpointError: missing, cut, changed since it was written, renamed, of other classes
                than DeepSpeed's, or no mapping.
        """
        name = str(path.relative_to(self.folder))
        facts = self._verified(path)
        value = self._unpickled(path)
        self.files[name] = facts
        if not isinstance(value, dict):
            msg = f"{path}: holds a {type(value).__name__}, expected a mapping"
            raise CheckpointError(msg)
        return value

    def load_tensor(self, path: Path) -> Any:
        """Of a universal checkpoint's file: the tensor, or the number, that it holds."""
        name = str(path.relative_to(self.folder))
        facts = self._verified(path)
        value = self._unpickled(path)
        self.files[name] = facts
        return value["param"] if isinstance(value, dict) and "param" in value else value

    def provenance(self) -> dict[str, dict[str, Any]]:
        """JSON-able: size and sha256 of every file read, by name."""
        return {name: asdict(facts) for name, facts in sorted(self.files.items())}

    def _verified(self, path: Path) -> FileFacts:
        if not path.resolve().is_relative_to(self.folder.resolve()):
            msg = f"{path}: a link that leads out of the checkpoint; copy the file itself there"
            raise CheckpointError(msg)
        try:
            _require_whole(path)
            return FileFacts(path.stat().st_size, _sha256(path))
        except FileNotFoundError:
            msg = f"{path}: missing; copy it there again"
            raise CheckpointError(msg) from None
        except OSError as error:
            msg = f"{path}: cannot be read: {error.strerror or error}"
            raise ResourceError(msg) from error

    def _unpickled(self, path: Path) -> Any:
        import torch

        known: Any = [(kind, name) for name, kind in _KNOWN.items()]
        try:
            if self.trust:
                return _run_pickle(path)
            with torch.serialization.safe_globals(known):
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(_unsafe(path, error)) from error
        except Exception as error:  # whatever the file's bytes, or the code in them, bring about
            msg = f"{path}: cannot be loaded: {type(error).__name__}: {error}"
            raise CheckpointError(msg) from error


def _require_whole(path: Path) -> None:
    """CheckpointError unless every record of the archive has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            roots = {name.partition("/")[0] for name in archive.namelist()}
    except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        msg = f"{path}: cut or damaged: not a whole file of torch.save ({error}); copy it again"
        raise CheckpointError(msg) from error
    if broken:
        msg = f"{path}: damaged: the checksum of {broken} does not agree; copy the file again"
        raise CheckpointError(msg)
    # torch.save names the records after the file. Two ranks' files that changed places would
    # otherwise read well, and be nonsense.
    if len(roots) == 1 and (root := roots.pop()) not in {path.stem, "archive"}:
        msg = f"{path}: was written as {root}.pt: renamed or in another one's place; put it back"
        raise CheckpointError(msg)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _unsafe(path: Path, error: pickle.UnpicklingError) -> str:
    import torch

    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:
        named = []
    strange = sorted(set(named) - set(_KNOWN))
    if not strange:
        return f"{path}: not what DeepSpeed writes: {error}"
    return (
        f"{path}: holds classes that are not DeepSpeed's own: {', '.join(strange)}; to load them "
        "runs code that is in the file. If you trust whoever wrote it, give --trust-checkpoint"
    )


def _run_pickle(path: Path) -> Any:
    """Load with all that is pickled, but for DeepSpeed's own classes: it is not imported."""
    import torch

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            return _KNOWN.get(f"{module}.{name}") or super().find_class(module, name)

    module = types.ModuleType("pickle_with_stand_ins")
    vars(module).update(vars(pickle) | {"Unpickler": Unpickler, "__name__": module.__name__})
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False, pickle_module=module)
