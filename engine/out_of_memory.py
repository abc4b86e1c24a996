"""Out of memory: where it happened, what was asked for, and what to change, cheapest first."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from configs.deepspeed_json import BatchPlan
from configs.errors import Cause, ResourceError, note_step

GIB = 1 << 30
# What torch's allocators, drivers and matrix libraries say; the first is the CPU's.
_SAYINGS = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|out of memory|_STATUS_ALLOC_FAILED", re.IGNORECASE
)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+ ?\w*)", re.IGNORECASE)
# Phases that hold no activations: rows and layers make no difference there.
_WITHOUT_ROWS = frozenset({"optimizer", "checkpointing"})


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What the memory of a rank depends on.

    Attributes:
        length: tokens a row.
        zero_stage: 0 to 3.
        offloaded: of ``optimizer`` and ``param``, what lies in the host's memory or on its disk.
        every: every how many layers one is recomputed; None: none is.
        can_recompute: the model has layers that could be.
        is_compiled: the learner runs compiled, which ZeRO stage 3 does not allow.
        on_accelerator: the device has a memory of its own, so that offloading frees some.
    """

    batches: BatchPlan
    length: int
    zero_stage: int
    offloaded: frozenset[str] = frozenset()
    every: int | None = None
    can_recompute: bool = True
    is_compiled: bool = False
    on_accelerator: bool = True


@dataclass
class OutOfMemory:
    """Turns errors of an allocator into one that says what to do.

    Attributes:
        stage: the recipe's name of the stage.
        phase: what the loop does, as it tells its observers; ``step`` finished steps before it.
    """

    stage: str
    rank: int
    settings: MemorySettings
    phase: str = field(default="start", init=False)
    step: int = field(default=0, init=False)

    def enter(self, phase: str, step: int) -> None:
        """An observer of the loop."""
        self.phase, self.step = phase, step

    @contextmanager
    def explained(self) -> Iterator[None]:
        """ResourceError in place of any error of too little memory; others pass."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            explained = ResourceError(self.explain(error), Cause("memory"))
            note_step(explained, self.step)
            raise explained from error

    def explain(self, error: BaseException) -> str:
        """The message for such an error."""
        batches, changes = self.settings.batches, remedies(self.settings, self.phase)
        asked = _ASKED.search(str(error))
        lines = [
            f"stage {self.stage}: out of memory in '{self.phase}' of step {self.step + 1}, "
            f"rank {self.rank}, with micro-batches of {batches.micro_batch} rows x "
            f"{self.settings.length} tokens",
            f"  asked for {_readable(asked[1]) if asked else 'an unknown amount'}; "
            f"{memory_in_use()}",
            "  what to change, cheapest first:",
            *(f"    {number}. {change}" for number, change in enumerate(changes, start=1)),
        ]
        return "\n".join(lines)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for and not given."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAYINGS.search(str(error)) is not None


def remedies(settings: MemorySettings, phase: str = "forward") -> list[str]:
    """What is not done yet and would need less memory in that phase, in the order of its cost."""
    changes = [] if phase in _WITHOUT_ROWS else [*_fewer_rows(settings), *_recompute(settings)]
    changes += [*_higher_stage(settings), *_offload(settings)]
    if phase not in _WITHOUT_ROWS:
        changes.append(
            f"data.length below {settings.length}: shorter rows; another packing, so another run"
        )
    changes.append("adaptation: {name: lora}, a smaller model, or ranks with more memory")
    return changes


def _fewer_rows(settings: MemorySettings) -> Iterator[str]:
    batches = settings.batches
    rows = batches.micro_batch * batches.accumulation
    smaller = [size for size in range(1, batches.micro_batch) if rows % size == 0]
    if not smaller:
        return
    at_most_half = [size for size in smaller if 2 * size <= batches.micro_batch]
    micro = max(at_most_half or smaller)
    yield (
        f"DeepSpeed's train_micro_batch_size_per_gpu: {micro} (now {batches.micro_batch}): "
        f"gradient accumulation {rows // micro} (now {batches.accumulation}), the same global "
        f"batch of {batches.global_batch} rows and the same result but for dropout's draws"
    )


def _recompute(settings: MemorySettings) -> Iterator[str]:
    if settings.every == 1 or not settings.can_recompute:
        return
    now = "off" if settings.every is None else f"every: {settings.every}"
    yield (
        f"activation_checkpointing: {{every: 1}} (now {now}): the same result, for up to one more "
        "forward pass a step"
    )


def _higher_stage(settings: MemorySettings) -> Iterator[str]:
    world, stage = settings.batches.world, settings.zero_stage
    highest = 2 if settings.is_compiled else 3
    if world == 1 or stage >= highest:
        return
    shared = {1: "optimizer states", 2: "gradients", 3: "weights"}[stage + 1]
    yield (
        f"DeepSpeed's zero_optimization.stage: {stage + 1} (now {stage}): the {shared}, too, are "
        f"shared by {world} ranks"
    )


def _offload(settings: MemorySettings) -> Iterator[str]:
    if not settings.on_accelerator:
        return
    for part, least, what in (("optimizer", 1, "optimizer states"), ("param", 3, "weights")):
        if settings.zero_stage >= least and part not in settings.offloaded:
            yield (
                f'DeepSpeed\'s zero_optimization.offload_{part}: {{"device": "cpu"}}: {what} in '
                "the host's memory, for slower steps"
            )
            return


def memory_in_use() -> str:
    """Allocated, reserved and total memory of this rank's device, for a message."""
    import torch

    device = torch.accelerator.current_accelerator()
    if device is None:
        return _host_memory()
    allocated = torch.accelerator.memory_allocated() / GIB
    reserved = torch.accelerator.memory_reserved() / GIB
    free, total = (value / GIB for value in torch.accelerator.get_memory_info())
    return (
        f"{allocated:.2f} GiB allocated, {reserved:.2f} GiB reserved of {total:.2f} GiB, "
        f"{free:.2f} GiB free"
    )


def _host_memory() -> str:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    kib = dict(re.findall(r"(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii")))
    free, total = (int(kib[key]) * 1024 / GIB for key in ("MemAvailable", "MemTotal"))
    return (
        f"this process holds {pages * os.sysconf('SC_PAGE_SIZE') / GIB:.2f} GiB, the host has "
        f"{free:.2f} of {total:.2f} GiB free"
    )


def _readable(amount: str) -> str:
    """``20.00 GiB`` as it is; bytes, as the CPU's allocator has them, in GiB."""
    number, _, unit = amount.partition(" ")
    return f"{float(number) / GIB:.2f} GiB" if unit in {"", "bytes"} else amount
