"""Weights that do not train are in no checkpoint: a digest tells whether they are the same."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

KEY = "frozen"
"""Where the digest stands in a checkpoint's state."""


def frozen_digest(learner: "nn.Module") -> str | None:
    """Hex digest over names, types and bytes of all frozen parameters; None if every one trains.

    Args:
        learner: on the CPU, not partitioned.
    """
    frozen = {name: p for name, p in learner.named_parameters() if not p.requires_grad}
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name in sorted(frozen):
        values = frozen[name].detach().contiguous().numpy()
        digest.update(f"{name}|{values.dtype}|{values.shape}|".encode())
        digest.update(values.reshape(-1).view("uint8").data)
    return digest.hexdigest()


def require_same_frozen(state: Mapping[str, Any], digest: str | None, where: object) -> None:
    """CheckpointError unless a checkpoint's state was saved beside the same frozen weights."""
    if state.get(KEY) != digest:
        msg = (
            f"{where}: its frozen weights were others (sha256 {_short(state.get(KEY))}, now "
            f"{_short(digest)}): the input model has changed since; restore it, or --redo the stage"
        )
        raise CheckpointError(msg)


def _short(digest: str | None) -> str:
    return digest[:16] if digest else "of none"
