"""Batches reach the GPU before the step that reads them: copied on a stream of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engine.protocols import Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Sent:
    """Batches under way to a GPU, or there; ``arrived``: the event that tells on the device."""

    batches: Sequence[Batch]
    device: "torch.device"
    arrived: "torch.cuda.Event"

    def received(self) -> Sequence[Batch]:
        """The batches; the stream of the calling thread goes on when they have arrived."""
        import torch

        reader = torch.cuda.current_stream(self.device)
        reader.wait_event(self.arrived)
        for batch in self.batches:
            for tensor in batch.tensors.values():
                # Or the stream that they were made on would take their memory back too early.
                tensor.record_stream(reader)
        return self.batches


def delivery_to(device: "torch.device") -> "Delivery | None":
    """None for the CPU, where batches are made where they are read."""
    return Delivery(device) if device.type == "cuda" else None


class Delivery:
    """Sends batches from one thread, to be received in another; neither waits for the device."""

    def __init__(self, device: "torch.device") -> None:
        """Set up for a GPU."""
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)

    def send(self, batches: Sequence[Batch]) -> Sent:
        """Begin to copy, from page-locked memory; torch keeps that until the copy is over."""
        import torch

        # A thread begins with the first GPU as its own, whichever is this rank's.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = [self._copied(batch) for batch in batches]
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Sent(there, self._device, arrived)

    def _copied(self, batch: Batch) -> Batch:
        tensors = {
            name: tensor.pin_memory().to(self._device, non_blocking=True)
            for name, tensor in batch.tensors.items()
        }
        return replace(batch, tensors=tensors)
