"""DeepSpeed's own checkpoints, read once for runs begun elsewhere; DeepSpeed is not needed."""

from collections.abc import Callable
from pathlib import Path

from configs.errors import CheckpointError
from engine.checkpoint.import_deepspeed.contents import Contents, Parameter
from engine.checkpoint.import_deepspeed.files import find_files
from engine.checkpoint.import_deepspeed.model_state import read_model_state
from engine.checkpoint.import_deepspeed.partitioned import read_partitioned
from engine.checkpoint.import_deepspeed.reading import Reader
from engine.checkpoint.import_deepspeed.universal import read_universal
from engine.checkpoint.import_deepspeed.unpartitioned import read_unpartitioned

__all__ = ["Contents", "Parameter", "Reader", "open_reader", "read_checkpoint"]


def open_reader(given: Path, *, trust: bool = False) -> Reader:
    """What opens the files of the checkpoint at ``given``; CheckpointError if there is none.

    ``trust``: run the code that files with other classes than DeepSpeed's own bring along.
    """
    return Reader(find_files(given).folder, trust)


def read_checkpoint(reader: Reader, trains: Callable[[str], bool]) -> Contents:
    """A checkpoint of ZeRO stage 0, 1, 2 or 3 on any number of ranks, or a universal one.

    ``trains`` tells which of its parameters train here; it is asked where no name is recorded.

    Raises:
        CheckpointError: damaged, incomplete, of several saves, or of a kind that is not read.
    """
    files = find_files(reader.folder)
    models = [read_model_state(reader, path) for path in files.models]
    if files.universal:
        return read_universal(reader, files, models)
    if files.optimizers:
        return read_partitioned(reader, files, models)
    if models[0].shapes is not None:
        msg = (
            f"{files.folder}: no *_optim_states.pt, though {models[0].path.name} tells of ZeRO; "
            "copy the whole folder again"
        )
        raise CheckpointError(msg)
    return read_unpartitioned(models[0], trains)
