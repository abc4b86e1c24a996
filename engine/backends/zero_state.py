"""Where DeepSpeed keeps the weights it steps on and optimizer states, by stage, as fragments.

A parameter's piece on this rank is a slice of some partition (fp32; bf16 with bf16 states), and
every optimizer state of that partition has the partition's shape: the same slice of it belongs to
the parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from engine.protocols import Fragment

if TYPE_CHECKING:
    from torch import Tensor

    from engine.optimization.penalized import PenalizedAdamW


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` values of a parameter from ``start``, at ``offset`` of a flat partition."""

    name: str
    shape: tuple[int, ...]
    start: int
    partition: "Tensor"
    offset: int
    length: int


class ZeroState(ABC):
    """The state of one engine at one stage."""

    def __init__(self, engine: Any, optimizer: "PenalizedAdamW") -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._optimizer = optimizer

    @abstractmethod
    def partitions(self) -> list["Tensor"]:
        """The tensors that the optimizer steps on, on this rank."""

    @abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """What this rank holds of every parameter."""

    @abstractmethod
    def refresh(self) -> None:
        """Make the weights that the forward pass uses follow these, on all ranks."""

    def held(self) -> Iterator[Fragment]:
        """Everything this rank holds, as views."""
        for piece in self.pieces():
            yield from self._fragments(piece)

    def owned(self) -> Iterator[Fragment]:
        """What this rank answers for: together the ranks own every value once."""
        return self.held()

    def _fragments(self, piece: Piece) -> Iterator[Fragment]:
        state = self._optimizer.state.get(piece.partition, {})
        present = [key for key in self._optimizer.state_keys if key in state]
        tensors = {"fp32": piece.partition.detach()} | {key: state[key] for key in present}
        for key, tensor in tensors.items():
            view = tensor.view(-1).narrow(0, piece.offset, piece.length)
            yield Fragment(piece.name, key, piece.shape, piece.start, view)

    def _named(self) -> Iterator[tuple[str, Any]]:
        return ((name, p) for name, p in self._engine.module.named_parameters() if p.requires_grad)


class WholeState(ZeroState):
    """Stage 0: every rank holds everything and answers for an equal slice of each parameter."""

    def partitions(self) -> list["Tensor"]:
        """The parameters themselves."""
        return [p for _, p in self._named()]

    def pieces(self) -> Iterator[Piece]:
        """Whole parameters."""
        for name, p in self._named():
            yield Piece(name, tuple(p.shape), 0, p, 0, p.numel())

    def owned(self) -> Iterator[Fragment]:
        """This rank's slice."""
        from engine import distributed

        for piece in self.pieces():
            share = -(-piece.length // distributed.world())
            start = min(share * distributed.rank(), piece.length)
            length = min(share, piece.length - start)
            if length:
                yield from self._fragments(
                    Piece(piece.name, piece.shape, start, piece.partition, start, length)
                )

    def refresh(self) -> None:
        """Nothing: the forward pass uses the fp32 weights."""


class FlatState(ZeroState):
    """Stages 1 and 2: each group is one flat tensor, cut into equal partitions over the ranks."""

    def __init__(self, engine: Any, optimizer: "PenalizedAdamW") -> None:
        super().__init__(engine, optimizer)
        # Else it would keep views of optimizer states, also of those that a resume replaces.
        self._zero._hp_optimizer_states_linked = True

    def partitions(self) -> list["Tensor"]:
        """One flat partition a group."""
        return list(self._zero.single_partition_of_fp32_groups)

    def pieces(self) -> Iterator[Piece]:
        """By where each parameter lies in its group's flat tensor.

        Not by DeepSpeed's own map (``_hp_mapping``): with round_robin_gradients, which reorders
        the flat tensor, that names the wrong parameters.
        """
        from engine import distributed

        zero, names = self._zero, {parameter: name for name, parameter in self._named()}
        for index, partition in enumerate(self.partitions()):
            begins = partition.numel() * distributed.rank()
            ends = begins + partition.numel()
            group, offsets = zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets
            for p, offset in zip(group[index], offsets[index], strict=True):
                low, high = max(begins, offset), min(ends, offset + p.numel())
                if low < high:
                    yield Piece(
                        names[p],
                        tuple(p.shape),
                        low - offset,
                        partition,
                        low - begins,
                        high - low,
                    )

    def refresh(self) -> None:
        """Cast this rank's partition and gather all of them."""
        self._zero.update_lp_params()


class ShardedState(ZeroState):
    """Stage 3: every parameter is cut over the ranks; sub-groups of the cuts are flat tensors."""

    def partitions(self) -> list["Tensor"]:
        """One flat tensor a sub-group."""
        return list(self._zero.fp32_partitioned_groups_flat)

    def pieces(self) -> Iterator[Piece]:
        """The last rank's cut may end in padding, which belongs to nobody."""
        from engine import distributed

        for name, p in self._named():
            group, offset, _ = self._zero.grad_position[self._zero.get_param_id(p)]
            start = p.ds_tensor.ds_numel * distributed.rank()
            length = max(0, min(p.ds_tensor.ds_numel, p.ds_numel - start))
            if length:
                partition = self._zero.fp32_partitioned_groups_flat[group]
                yield Piece(name, tuple(p.ds_shape), start, partition, int(offset), length)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the sub-groups; small parameters that stay gathered are gathered again."""
        zero = self._zero
        zero._partition_all_parameters()
        for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
            zero.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
            zero._unflatten_partitioned_parameters(index)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
        # With zero_hpz_partition_size the passes use a second copy, made when it is missing.
        zero.invalidate_secondary_tensor()


def open_state(engine: Any, optimizer: "PenalizedAdamW", stage: int) -> ZeroState:
    """The state of an engine at this ZeRO stage."""
    kinds: dict[int, type[ZeroState]] = {0: WholeState, 1: FlatState, 2: FlatState}
    return kinds.get(stage, ShardedState)(engine, optimizer)
