"""A copy of this rank's state in host memory, to be written while the training changes the state.

On a GPU the copies are queued into page-locked memory on the training's own stream: whatever the
training does next comes after them there, so it cannot overtake them and nobody waits for them.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from configs.errors import Cause, CheckpointError, OnwardError, ResourceError
from engine.protocols import Fragment

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from engine.checkpoint.save import Source

_BLOCK = 1 << 26
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a source held at one moment; a source itself."""

    pieces: Sequence[Fragment]
    backend_state: dict[str, Any]
    copying: "_Copying | None" = None

    def fragments(self) -> Iterator[Fragment]:
        """The copies, once they are complete."""
        if self.copying:
            self.copying.wait()
        yield from self.pieces

    def extra_state(self) -> dict[str, Any]:
        """As it was."""
        return self.backend_state

    def device_seconds(self) -> float:
        """For how long the GPU was busy with the copies; waits for them."""
        return self.copying.wait() if self.copying else 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A snapshot that could not be taken: saving it fails on all ranks together."""

    error: OnwardError

    def fragments(self) -> Iterator[Fragment]:
        """Raises."""
        raise self.error

    def extra_state(self) -> dict[str, Any]:
        """Never asked for."""
        raise self.error

    def device_seconds(self) -> float:
        """None."""
        return 0.0


class HostMemory:
    """The room for one snapshot, kept for the next one. A new snapshot voids the one before."""

    def __init__(self) -> None:
        self._plain = _Arena(is_pinned=False)
        self._pinned = _Arena(is_pinned=True)

    def copy_of(self, source: "Source") -> "Snapshot | Failed":
        """What the source holds now. What prevents it is told when it is to be saved."""
        try:
            return self._take(source)
        except OnwardError as error:
            return Failed(error)
        except Exception as error:  # whatever it is, all ranks are to hear of it together
            return Failed(CheckpointError(f"copy of the state: {type(error).__name__}: {error}"))

    def _take(self, source: "Source") -> Snapshot:
        self._plain.rewind()
        self._pinned.rewind()
        copying = _Copying()
        pieces = []
        for fragment in source.fragments():
            live = fragment.tensor.detach()
            arena = self._pinned if live.is_cuda else self._plain
            if live.is_cuda:
                copying.begins()
            room = arena.room(live.numel() * live.element_size())
            held = room.view(live.dtype).view(live.shape)
            held.copy_(live, non_blocking=True)
            shape = tuple(fragment.shape)
            pieces.append(Fragment(fragment.name, fragment.key, shape, fragment.start, held))
        copying.ends()
        return Snapshot(pieces, copy.deepcopy(source.extra_state()), copying)


@dataclass(slots=True)
class _Copying:
    """The copies that the GPU has been told to make, between two marks on its stream."""

    _first: "torch.cuda.Event | None" = None
    _last: "torch.cuda.Event | None" = None

    def begins(self) -> None:
        """Before each copy; the first one counts."""
        if self._first is None:
            self._first = self._mark()

    def ends(self) -> None:
        """After the last one."""
        if self._first is not None:
            self._last = self._mark()

    def wait(self) -> float:
        """Until they are complete; returns the seconds they took."""
        if self._first is None or self._last is None:
            return 0.0
        self._last.synchronize()
        return float(self._first.elapsed_time(self._last)) / 1000

    def _mark(self) -> "torch.cuda.Event":
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(slots=True)
class _Arena:
    """Blocks of memory, handed out piece by piece in the same way every time."""

    is_pinned: bool
    _blocks: "list[Tensor]" = field(default_factory=list)
    _block: int = 0
    _used: int = 0

    @property
    def size(self) -> int:
        """Bytes in all blocks."""
        return sum(block.numel() for block in self._blocks)

    def rewind(self) -> None:
        """Hand out from the beginning again."""
        self._block = self._used = 0

    def room(self, size: int) -> "Tensor":
        """uint8 [size], aligned for any dtype."""
        import torch

        while self._block < len(self._blocks):
            block = self._blocks[self._block]
            if self._used + size <= block.numel():
                start = self._used
                self._used += -(-size // _ALIGNED) * _ALIGNED
                return block[start : start + size]
            self._block += 1
            self._used = 0
        wanted = max(size, _BLOCK)
        try:
            made = torch.empty(wanted, dtype=torch.uint8, pin_memory=self.is_pinned)
        except (MemoryError, RuntimeError) as error:  # torch's allocators raise the latter
            msg = (
                f"no host memory for a copy of the state: {self.size} bytes of it are there, "
                f"{wanted} more needed: {error}; use checkpoint.mode: sync, which needs none"
            )
            raise ResourceError(msg, Cause("memory")) from error
        self._blocks.append(made)
        return self.room(size)
