"""Plain torch on one process: the reference that DeepSpeed is held against, and small runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from configs.deepspeed_json import (
    BatchPlan,
    batch_plan,
    block,
    global_batch,
    gradient_clipping,
    precision,
    read_deepspeed,
    zero_stage,
)
from configs.errors import RecipeError
from configs.schema import Config
from data_pipeline.randomness import keyed
from engine.protocols import (
    Batch,
    Fragment,
    Loss,
    Permit,
    Piece,
    ReadRange,
    WeightAverage,
    WeightPenalty,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.optimization import OptimizerConfig

_BATCHES = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}
_HONOURED = _BATCHES | {"gradient_clipping", "bf16", "fp16", "zero_optimization"}
# These say how DeepSpeed is to talk or to accept an optimizer; nothing here depends on them.
_MEANINGLESS = {"steps_per_print", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}


class Plain(Config):
    """One process, fp32 or bf16 with fp32 master weights; reads the same JSON as DeepSpeed."""

    name: Literal["plain"] = "plain"
    config: str | dict[str, Any] = "zero0_fp32"

    @property
    def global_batch(self) -> int:
        """Rows a step, on any number of ranks."""
        return global_batch(read_deepspeed(self.config))

    def plan(self, world: int = 1) -> BatchPlan:
        """How the global batch is split; RecipeError for more than one rank."""
        if world != 1:
            msg = f"backend plain runs on one process, not {world}; use backend deepspeed"
            raise RecipeError(msg)
        return batch_plan(read_deepspeed(self.config), world)

    def check(self) -> None:
        """RecipeError for a key that this backend cannot honour."""
        values = read_deepspeed(self.config)
        if unknown := sorted(set(values) - _HONOURED - _MEANINGLESS):
            msg = f"backend plain cannot honour {', '.join(unknown)}; use backend deepspeed"
            raise RecipeError(msg)
        zero = values.get("zero_optimization", {})
        if zero_stage(values) != 0 or set(zero) - {"stage"}:
            msg = f"backend plain has no ZeRO, but zero_optimization is {zero}; use deepspeed"
            raise RecipeError(msg)
        if precision(values) == "fp16":
            msg = "backend plain does not scale losses, which fp16 needs; use bf16 or deepspeed"
            raise RecipeError(msg)
        for kind in ("bf16", "fp16"):
            if others := sorted(set(block(values, kind)) - {"enabled"}):
                msg = f"backend plain cannot honour {kind}.{others[0]}; use backend deepspeed"
                raise RecipeError(msg)
        batch_plan(values, 1)

    def build(
        self,
        learner: "nn.Module",
        optimizer: "OptimizerConfig",
        penalties: Sequence[WeightPenalty] = (),
        seed: int = 0,
        average: WeightAverage | None = None,
    ) -> "PlainBackend":
        """The backend around a learner on the CPU, which it moves to the device."""
        import torch

        self.check()
        # Steps seed themselves; this is for whatever else may draw a number.
        torch.manual_seed(keyed(seed, "backend"))
        values = read_deepspeed(self.config)
        return PlainBackend(learner, optimizer, penalties, average, values)


class PlainBackend:
    """Forward, backward, clip and step, with nothing in between."""

    rank = 0
    world = 1

    def __init__(
        self,
        learner: "nn.Module",
        optimizer: "OptimizerConfig",
        penalties: Sequence[WeightPenalty],
        average: WeightAverage | None,
        values: Mapping[str, Any],
    ) -> None:
        from engine import distributed
        from engine.backends import passes

        self._passes = passes
        self.device: torch.device = distributed.device()
        self.learner = learner.to(self.device)
        self.accumulation = batch_plan(values, 1).accumulation
        self._clip = gradient_clipping(values)
        self._optimizer = optimizer.build(learner, penalties, average)
        self._norm: Tensor | float = 0.0
        self._skipped = 0
        self._is_held = False
        # fp32 weights by parameter: the parameter itself, or its master copy.
        self._masters = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self._low_precision = precision(values) == "bf16"
        if self._low_precision:
            self._split_masters()
        self._optimizer.pieces_of = self._pieces_of
        self._optimizer.matrices = _whole
        self.measure_update = False
        self.learner.train()

    def forward(self, batch: Batch) -> Loss:
        """Loss of a micro-batch in training mode."""
        return self._passes.score(self.learner, batch, self.device)

    def evaluate(self, batch: Batch) -> Loss:
        """Loss of a micro-batch without dropout or gradient."""
        return self._passes.score_fixed(self.learner, batch, self.device)

    def backward(self, loss: Loss, count: "Tensor") -> None:
        """Add the gradient of ``total / count``; in fp32, whatever the precision of the pass."""
        (loss.total / count.to(loss.total.dtype)).backward()
        if not self._low_precision:
            return
        for name, parameter in self._trained():
            if parameter.grad is None:
                continue
            master = self._masters[name]
            gradient = parameter.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            parameter.grad = None

    def step(self, lr: float, permit: Permit | None = None) -> None:
        """Clip and update; not at all if ``permit`` refuses."""
        import torch

        gradients = [p.grad for p in self._masters.values() if p.grad is not None]
        self._norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip > 0:
            # DeepSpeed's formula, so that the two agree where the norm is small, too.
            excess = ((self._norm + 1e-6) / self._clip).clamp(min=1.0)
            torch._foreach_mul_(gradients, 1.0 / excess)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.squares, self._optimizer.is_measuring = None, self.measure_update
        self._is_held = permit is not None and not permit(self._norm)
        self._skipped += self._is_held
        if not self._is_held:
            self._optimizer.step()
            self._refresh()
        self._optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> "Tensor | float":
        """Global norm before clipping, of the last step."""
        return self._norm

    @property
    def rates(self) -> Mapping[str, float]:
        """Name of each group of parameters -> factor of its rate."""
        return {group["name"]: group["lr_scale"] for group in self._optimizer.param_groups}

    def update_norm(self) -> "Tensor | None":
        """Norm of the last step's change; None if it was not measured or changed nothing."""
        squares = self._optimizer.squares
        return None if squares is None or self._is_held else squares.sqrt()

    @contextmanager
    def swapped(self, key: str) -> Iterator[None]:
        """Inside, the weights are those of an optimizer state; afterwards what they were."""
        masters = list(self._masters.values())
        states = [self._optimizer.state.get(master, {}) for master in masters]
        weights = [master.detach() for master in masters]
        with self._passes.exchanged(weights, states, key, self._refresh):
            yield

    @property
    def average_key(self) -> str | None:
        """Of the running average among the optimizer's states; None without one."""
        return self._optimizer.average_key

    def skipped(self) -> bool:
        """Whether the last step was refused; there is no loss scale to lower."""
        return self._is_held

    def pass_over(self) -> None:
        """Count a step that nothing was done for."""
        self._is_held = True
        self._skipped += 1

    def sum_over_ranks(self, tensor: "Tensor") -> "Tensor":
        """The tensor on the device: there is one rank."""
        return tensor.to(self.device, non_blocking=True)

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of the optimizer states that each weight has after a first step."""
        return self._optimizer.state_keys

    def fragments(self) -> Iterator[Fragment]:
        """Whole tensors: weights, and the optimizer states that exist already."""
        for name, master in self._masters.items():
            shape = tuple(master.shape)
            yield Fragment(name, "fp32", shape, 0, master.detach().view(-1))
            state = self._optimizer.state.get(master, {})
            for key in self._optimizer.state_keys:
                if key in state:
                    yield Fragment(name, key, shape, 0, state[key].view(-1))

    def load_fragments(self, read: ReadRange, keys: Sequence[str], steps: int) -> None:
        """Fill weights and optimizer states from a checkpoint taken after ``steps``."""
        taken = steps - self._skipped
        wanted = self._passes.wanted_keys(keys, self._optimizer.state_keys, taken)
        self._optimizer.state.clear()
        if wanted:
            for group in self._optimizer.param_groups:
                for master in group["params"]:
                    self._optimizer.create_state(master, group["rule"], taken)
        for piece in self.fragments():
            piece.tensor.copy_(read(piece.name, piece.key, piece.start, piece.tensor.numel()))
        self._refresh()

    def extra_state(self) -> dict[str, Any]:
        """Steps that changed nothing: refused ones, and those that an fp16 run before skipped."""
        return {"skipped_steps": self._skipped}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what any backend's ``extra_state`` gave; before or after the fragments."""
        newly = int(state.get("skipped_steps", 0)) - self._skipped
        self._skipped += newly
        for values in self._optimizer.state.values():
            values["step"] -= newly

    def close(self) -> None:
        """Give back the optimizer's state and the master weights."""
        self._optimizer.state.clear()
        self._optimizer.param_groups.clear()
        self._masters.clear()

    def _trained(self) -> "Iterator[tuple[str, nn.Parameter]]":
        return ((name, p) for name, p in self.learner.named_parameters() if p.requires_grad)

    def _pieces_of(self, partition: "Tensor") -> "list[Piece]":
        return [
            Piece(name, tuple(master.shape), 0, partition, 0, master.numel())
            for name, master in self._masters.items()
            if master is partition
        ]

    def _split_masters(self) -> None:
        """Keep the weights in fp32 beside a bf16 model, as DeepSpeed does."""
        import torch

        rotary = self._passes.rotary_buffers(self.learner)
        master_of = {p: torch.nn.Parameter(p.detach().clone()) for p in self._masters.values()}
        self._masters = {name: master_of[p] for name, p in self._masters.items()}
        for group in self._optimizer.param_groups:
            group["params"] = [master_of[p] for p in group["params"]]
        self.learner.to(torch.bfloat16)
        self._passes.restore_buffers(self.learner, rotary)

    def _refresh(self) -> None:
        """Low-precision weights follow their masters."""
        import torch

        if self._low_precision:
            with torch.no_grad():
                for name, parameter in self._trained():
                    parameter.copy_(self._masters[name])


def _whole(partition: "Tensor", values: "Tensor", turn: "Callable[[Tensor], Tensor]") -> "Tensor":
    """Every partition is a parameter in its own shape."""
    del partition
    return turn(values)
