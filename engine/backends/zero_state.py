"""Where DeepSpeed keeps the weights it steps on and optimizer states, by stage, as fragments.

A parameter's piece on this rank is a slice of some partition (fp32; bf16 with bf16 states), and
every optimizer state of that partition has the partition's shape: the same slice of it belongs to
the parameter.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import torch

from engine.protocols import Fragment, Piece
from engine.update_sizes import GATHERED

if TYPE_CHECKING:
    from torch import Tensor

    from engine.optimization.sharded import ShardedOptimizer


class ZeroState(ABC):
    """The state of one engine at one stage."""

    def __init__(self, engine: Any, optimizer: "ShardedOptimizer") -> None:
        self._engine = engine
        self._zero = engine.optimizer
        self._optimizer = optimizer

    @abstractmethod
    def partitions(self) -> list[tuple["Tensor", int]]:
        """The tensors that the optimizer steps on, on this rank, and each one's group's number."""

    @abstractmethod
    def shares(self) -> Iterator[Piece]:
        """This rank's share of every parameter, in one order on all ranks; some are empty."""

    @abstractmethod
    def is_cut(self, piece: Piece) -> bool:
        """Whether several ranks hold the parameter; the same answer on all of them."""

    def pieces(self) -> Iterator[Piece]:
        """What this rank holds of every parameter."""
        return (piece for piece in self.shares() if piece.length)

    def pieces_of(self, partition: "Tensor") -> list[Piece]:
        """What of which parameters a partition holds."""
        return [piece for piece in self.pieces() if piece.partition is partition]

    def matrices(
        self, partition: "Tensor", values: "Tensor", turn: "Callable[[Tensor], Tensor]"
    ) -> "Tensor":
        """Turn each parameter of a partition as a whole; those that are cut are put together.

        ``values`` has the partition's shape, and so has the answer. Padding comes out as zeros.
        """
        turned = torch.zeros_like(values)
        given, made = values.reshape(-1), turned.view(-1)
        cut: list[Piece] = []
        for piece in self.shares():
            if piece.partition is not partition:
                continue
            if self.is_cut(piece):
                cut.append(piece)
                if sum(prod(each.shape) for each in cut) >= GATHERED:
                    self._turn_cut(cut, given, made, turn)
                    cut = []
            elif piece.length:
                own = slice(piece.offset, piece.offset + piece.length)
                made[own] = turn(given[own].view(piece.shape)).reshape(-1)
        if cut:
            self._turn_cut(cut, given, made, turn)
        return turned

    def _turn_cut(
        self,
        cut: "Sequence[Piece]",
        given: "Tensor",
        made: "Tensor",
        turn: "Callable[[Tensor], Tensor]",
    ) -> None:
        from engine import distributed

        sizes = [prod(piece.shape) for piece in cut]
        together = torch.zeros(sum(sizes), dtype=given.dtype, device=given.device)
        for piece, whole in zip(cut, together.split(sizes), strict=True):
            own = given.narrow(0, piece.offset, piece.length)
            whole.narrow(0, piece.start, piece.length).copy_(own)
        # Where one rank has a value, all others have zero: the sum is exact.
        together = distributed.all_reduce(together.to(distributed.device())).to(given.device)
        for piece, whole in zip(cut, together.split(sizes), strict=True):
            if piece.length:
                found = turn(whole.view(piece.shape)).reshape(-1)
                own = found.narrow(0, piece.start, piece.length)
                made.narrow(0, piece.offset, piece.length).copy_(own)

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

    def partitions(self) -> list[tuple["Tensor", int]]:
        """The parameters themselves."""
        groups = self._optimizer.param_groups
        return [(p, number) for number, group in enumerate(groups) for p in group["params"]]

    def shares(self) -> Iterator[Piece]:
        """Whole parameters."""
        for name, p in self._named():
            yield Piece(name, tuple(p.shape), 0, p, 0, p.numel())

    def is_cut(self, piece: Piece) -> bool:
        """Never."""
        del piece
        return False

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

    def __init__(self, engine: Any, optimizer: "ShardedOptimizer") -> None:
        super().__init__(engine, optimizer)
        # Else it would keep views of optimizer states, also of those that a resume replaces.
        self._zero._hp_optimizer_states_linked = True

    def partitions(self) -> list[tuple["Tensor", int]]:
        """One flat partition a group."""
        flat = self._zero.single_partition_of_fp32_groups
        return [(partition, number) for number, partition in enumerate(flat)]

    def shares(self) -> Iterator[Piece]:
        """By where each parameter lies in its group's flat tensor.

        Not by DeepSpeed's own map (``_hp_mapping``): with round_robin_gradients, which reorders
        the flat tensor, that names the wrong parameters.
        """
        from engine import distributed

        zero, names = self._zero, {parameter: name for name, parameter in self._named()}
        for partition, index in self.partitions():
            begins = partition.numel() * distributed.rank()
            ends = begins + partition.numel()
            group, offsets = zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets
            for p, offset in zip(group[index], offsets[index], strict=True):
                low = min(max(begins, offset), ends)
                high = max(low, min(ends, offset + p.numel()))
                start = min(low - offset, p.numel()) if high > low else 0
                at = low - begins if high > low else 0
                yield Piece(names[p], tuple(p.shape), start, partition, at, high - low)

    def is_cut(self, piece: Piece) -> bool:
        """Whether it goes over the border of two partitions."""
        return piece.name in self._cut

    @cached_property
    def _cut(self) -> frozenset[str]:
        zero, names = self._zero, {parameter: name for name, parameter in self._named()}
        found = set()
        for partition, index in self.partitions():
            group, offsets = zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets
            for p, offset in zip(group[index], offsets[index], strict=True):
                size = partition.numel()
                if offset // size != (offset + p.numel() - 1) // size:
                    found.add(names[p])
        return frozenset(found)

    def refresh(self) -> None:
        """Cast this rank's partition and gather all of them."""
        self._zero.update_lp_params()


class ShardedState(ZeroState):
    """Stage 3: every parameter is cut over the ranks; sub-groups of the cuts are flat tensors."""

    def partitions(self) -> list[tuple["Tensor", int]]:
        """One flat tensor a sub-group."""
        flat, groups = self._zero.fp32_partitioned_groups_flat, self._zero.sub_group_to_group_id
        return [(partition, groups[number]) for number, partition in enumerate(flat)]

    def shares(self) -> Iterator[Piece]:
        """The last rank's cut may end in padding, which belongs to nobody."""
        from engine import distributed

        for name, p in self._named():
            group, offset, _ = self._zero.grad_position[self._zero.get_param_id(p)]
            start = p.ds_tensor.ds_numel * distributed.rank()
            length = max(0, min(p.ds_tensor.ds_numel, p.ds_numel - start))
            partition = self._zero.fp32_partitioned_groups_flat[group]
            start = start if length else 0
            yield Piece(name, tuple(p.ds_shape), start, partition, int(offset), length)

    def is_cut(self, piece: Piece) -> bool:
        """Everything is, over all ranks."""
        from engine import distributed

        del piece
        return distributed.world() > 1

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


def open_state(engine: Any, optimizer: "ShardedOptimizer", stage: int) -> ZeroState:
    """The state of an engine at this ZeRO stage."""
    kinds: dict[int, type[ZeroState]] = {0: WholeState, 1: FlatState, 2: FlatState}
    return kinds.get(stage, ShardedState)(engine, optimizer)
