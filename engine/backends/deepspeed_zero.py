"""DeepSpeed with ZeRO stages 0 to 3: the only file that knows DeepSpeed."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from configs.deepspeed_checks import QUANTIZED, check_deepspeed, check_world
from configs.deepspeed_json import (
    BatchPlan,
    batch_plan,
    block,
    global_batch,
    precision,
    read_deepspeed,
    zero_stage,
)
from configs.errors import NumericalError, ResourceError
from configs.schema import Config
from data_pipeline.randomness import keyed
from engine.protocols import Batch, Fragment, Loss, Permit, ReadRange, WeightAverage, WeightPenalty

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from engine.optimization import OptimizerConfig


class DeepSpeedZero(Config):
    """Data-parallel training by DeepSpeed; its JSON goes to it untouched."""

    name: Literal["deepspeed"] = "deepspeed"
    config: str | dict[str, Any] = "zero1_bf16"

    @property
    def global_batch(self) -> int:
        """Rows a step, on any number of ranks."""
        return global_batch(read_deepspeed(self.config))

    def plan(self, world: int) -> BatchPlan:
        """How the global batch is split over ``world`` ranks and accumulation."""
        values = read_deepspeed(self.config)
        check_world(values, world)
        return batch_plan(values, world)

    def check(self) -> None:
        """RecipeError for settings that could not be honoured exactly."""
        check_deepspeed(read_deepspeed(self.config))

    def build(
        self,
        learner: "nn.Module",
        optimizer: "OptimizerConfig",
        penalties: Sequence[WeightPenalty] = (),
        seed: int = 0,
        average: WeightAverage | None = None,
    ) -> "DeepSpeedBackend":
        """An engine around a learner on the CPU. Every rank calls it, any number of times."""
        import torch

        from engine import distributed

        self.check()
        distributed.start()
        self.plan(distributed.world())
        # Steps seed themselves; this is for whatever else may draw a number.
        torch.manual_seed(keyed(seed, "backend"))
        values = read_deepspeed(self.config)
        return DeepSpeedBackend(learner, optimizer, penalties, average, values)


def build_operators() -> None:
    """Compile the one operator that DeepSpeed compiles at its first start on the CPU.

    Into TORCH_EXTENSIONS_DIR; 1-2 minutes with a C++ compiler, seconds once it is there.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None and __compatible_ops__.get(builder.NAME, False):
        builder.load(verbose=False)


class DeepSpeedBackend:
    """One DeepSpeed engine."""

    def __init__(
        self,
        learner: "nn.Module",
        optimizer: "OptimizerConfig",
        penalties: Sequence[WeightPenalty],
        average: WeightAverage | None,
        values: Mapping[str, Any],
    ) -> None:
        from engine import distributed
        from engine.backends import passes, zero_state

        self._passes = passes
        self.rank = distributed.rank()
        self.world = distributed.world()
        self.device: torch.device = distributed.device()
        self.accumulation = batch_plan(values, self.world).accumulation
        self._stage = zero_stage(values)
        rotary = passes.rotary_buffers(learner)
        self._optimizer = optimizer.build(learner, penalties, average)
        self._engine = _engine(learner, self._optimizer, values)
        self.learner: nn.Module = self._engine.module
        passes.restore_buffers(self.learner, rotary)
        self._state = zero_state.open_state(self._engine, self._optimizer, self._stage)
        self._optimizer.pieces_of = self._state.pieces_of
        self._optimizer.matrices = self._state.matrices
        self.measure_update = False
        self._micro_batch = 0
        self._norm: Tensor | float = 0.0
        self._skipped = False
        self._is_held = False
        if self._stage == 0:
            self._engine.clip_fp32_gradients = self._clip
        self._engine.train()

    def forward(self, batch: Batch) -> Loss:
        """Loss of a micro-batch in training mode."""
        return self._passes.score(self._engine, batch, self.device)

    def evaluate(self, batch: Batch) -> Loss:
        """Loss of a micro-batch without dropout or gradient; at stage 3 all ranks must call it."""
        return self._passes.score_fixed(self._engine, batch, self.device)

    def backward(self, loss: Loss, count: "Tensor") -> None:
        """Add the gradient of ``total / count``.

        DeepSpeed averages over ranks and accumulation; scaling by both makes that the sum.
        """
        if self._micro_batch:
            # Moves DeepSpeed on to the next micro-batch; it updates nothing in mid-step.
            self._engine.step()
        scale = (self.accumulation * self.world / count).to(loss.total.dtype)
        self._engine.backward(loss.total * scale)
        self._micro_batch += 1

    def step(self, lr: float, permit: Permit | None = None) -> None:
        """Clip and update; not at all if ``permit`` refuses."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.squares, self._optimizer.is_measuring = None, self.measure_update
        if self._stage == 0 and not self._engine.gradient_clipping():
            # There DeepSpeed looks at no norm; the gradients are reduced by now.
            self._norm = self._whole_norm()
        skipped_before = self._engine.skipped_steps
        held = _Held(permit, self._norm_now) if permit else None
        self._optimizer.permit = held
        self._update()
        self._micro_batch = 0
        if self._stage > 0:
            self._norm = self._norm_now()
        self._skipped = self._engine.skipped_steps > skipped_before
        self._is_held = held is not None and self._refused(held)
        if self._is_held and not self._skipped:
            # DeepSpeed has gone through its motions and counts a step that changed nothing.
            self._engine.skipped_steps += 1
            self._skipped = True

    def _update(self) -> None:
        """DeepSpeed's own step; NumericalError where fp16's scale can fall no further."""
        try:
            with _growing_afterwards(self._fp16()):
                self._engine.step()
        except Exception as error:
            if "loss scale already at minimum" not in str(error):
                raise
            msg = (
                "fp16: the gradient overflows even at the smallest loss scale "
                f"(fp16.min_loss_scale, now {self._engine.optimizer.loss_scaler.cur_scale}); "
                "use bf16, a lower learning rate, or look at the data of the last steps"
            )
            raise NumericalError(msg) from error

    def _refused(self, held: "_Held") -> bool:
        """Whether the permit was refused.

        A gradient that is not finite DeepSpeed drops at most stages without asking; so it is asked
        now. Where fp16's scaling overflowed there is nothing to permit.
        """
        if self._skipped and self._fp16() is None:
            return not held()
        return held.is_held

    def _norm_now(self) -> "Tensor | float":
        """The norm of the step that is being taken; DeepSpeed knows it before it updates.

        Its optimizer does: the engine tells of the step before until the update is over.
        """
        if self._stage == 0:
            return self._norm
        return _marked(self._engine.optimizer._global_grad_norm)

    def gradient_norm(self) -> "Tensor | float":
        """Global norm before clipping, of the last step."""
        return self._norm

    @property
    def rates(self) -> Mapping[str, float]:
        """Name of each group of parameters -> factor of its rate."""
        return {group["name"]: group["lr_scale"] for group in self._optimizer.param_groups}

    def update_norm(self) -> "Tensor | None":
        """Global norm of the last step's change; None if it was not measured or changed nothing."""
        squares = self._optimizer.squares
        if not self.measure_update or self._skipped or self._is_held:
            return None
        if squares is None:
            squares = self._passes.nothing(self.device)
        return (squares if self._stage == 0 else self.sum_over_ranks(squares)).sqrt()

    @contextmanager
    def swapped(self, key: str) -> Iterator[None]:
        """Inside, the weights are those of an optimizer state; afterwards what they were."""
        partitions = [partition.detach() for partition, _ in self._state.partitions()]
        states = [self._optimizer.state.get(p, {}) for p, _ in self._state.partitions()]
        with self._passes.exchanged(partitions, states, key, self._state.refresh):
            yield

    @property
    def average_key(self) -> str | None:
        """Of the running average among the optimizer's states; None without one."""
        return self._optimizer.average_key

    def skipped(self) -> bool:
        """Whether fp16's gradient overflowed at the last step, or it was refused.

        DeepSpeed skips in fp32 and bf16, too, at some stages; there it is an error, as elsewhere.
        """
        return self._is_held or (self._skipped and self._fp16() is not None)

    def pass_over(self) -> None:
        """Count a step that nothing was done for, in DeepSpeed's own counters."""
        self._is_held = True
        self._engine.skipped_steps += 1
        self._engine.global_steps += 1

    def sum_over_ranks(self, tensor: "Tensor") -> "Tensor":
        """The elementwise sum over all ranks, on the device."""
        from engine import distributed

        return distributed.all_reduce(tensor.to(self.device, non_blocking=True))

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of the optimizer states that each weight has after a first step."""
        return self._optimizer.state_keys

    def fragments(self) -> Iterator[Fragment]:
        """This rank's share of weights and optimizer states."""
        return self._state.owned()

    def load_fragments(self, read: ReadRange, keys: Sequence[str], steps: int) -> None:
        """Fill weights and optimizer states from a checkpoint of any stage and world size."""
        taken = steps - int(self._engine.skipped_steps)
        wanted = self._passes.wanted_keys(keys, self._optimizer.state_keys, taken)
        self._optimizer.state.clear()
        if wanted:
            for partition, group in self._state.partitions():
                rule = self._optimizer.param_groups[group]["rule"]
                self._optimizer.create_state(partition, rule, taken)
        for piece in self._state.held():
            piece.tensor.copy_(read(piece.name, piece.key, piece.start, piece.tensor.numel()))
        self._state.refresh()
        self._engine.global_steps = steps

    def extra_state(self) -> dict[str, Any]:
        """Skipped steps, and fp16's loss scale with its counters."""
        state: dict[str, Any] = {"skipped_steps": int(self._engine.skipped_steps)}
        if self._fp16() is not None:
            state["loss_scale"] = {
                name: getattr(self._fp16(), name)
                for name in _SCALER_FIELDS
                if hasattr(self._fp16(), name)
            }
        return state

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what any backend's ``extra_state`` gave; before or after the fragments."""
        newly = int(state.get("skipped_steps", 0)) - self._engine.skipped_steps
        self._engine.skipped_steps += newly
        for values in self._optimizer.state.values():
            values["step"] -= newly
        if self._fp16() is not None:
            for name, value in state.get("loss_scale", {}).items():
                setattr(self._fp16(), name, value)

    def close(self) -> None:
        """Give back what DeepSpeed holds of the process; the backend cannot be used afterwards.

        Hooks, the model in a global list, torch's ``linear`` replaced by stage 3, and the group of
        ranks of ``zero_hpz_partition_size``, which the next engine would silently take over. At
        stage 3 the learner's parameters are empty afterwards.
        """
        self._engine.destroy()
        _release(self._engine, self.learner)
        self._optimizer.state.clear()
        self._optimizer.param_groups.clear()
        self._optimizer.permit = self._optimizer.matrices = None
        del self._optimizer.pieces_of

    def _fp16(self) -> Any:
        """DeepSpeed's loss scaler where the precision is fp16."""
        return self._engine.optimizer.loss_scaler if self._engine.fp16_enabled() else None

    def _clip(self) -> None:
        """DeepSpeed's own way at stage 0, but that the norm is kept, which it drops."""
        from deepspeed.runtime.utils import clip_grad_norm_

        engine = self._engine
        self._norm = clip_grad_norm_(
            parameters=engine.module.parameters(),
            max_norm=engine.gradient_clipping(),
            mpu=engine.mpu,
        )

    def _whole_norm(self) -> "Tensor":
        import torch

        gradients = [p.grad for p in self.learner.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients)


class _Held:
    """A permit asked once a step, however often DeepSpeed calls the optimizer in it."""

    def __init__(self, permit: Permit, norm: "Callable[[], Tensor | float]") -> None:
        self._permit = permit
        self._norm = norm
        self._answer: bool | None = None

    def __call__(self) -> bool:
        if self._answer is None:
            self._answer = self._permit(self._norm())
        return self._answer

    @property
    def is_held(self) -> bool:
        """Whether it was asked, and refused."""
        return self._answer is False


def _marked(norm: "Tensor | float") -> "Tensor | float":
    """DeepSpeed's norm; below zero it stands for one that is not finite."""
    if isinstance(norm, float | int):
        return norm if norm >= 0 else float("inf")
    return norm.masked_fill(norm < 0, float("inf"))


@contextmanager
def _growing_afterwards(scaler: Any) -> Iterator[None]:
    """Let fp16's scale grow when the update is over; None: there is none.

    DeepSpeed lets it grow first, and then divides the gradient by the new scale: whenever it
    doubles, the step would be taken with half the gradient, and ZeRO stage 3 tell half the norm.
    """
    if scaler is None:
        yield
        return
    update, grows = scaler.update_scale, []

    def update_scale(overflow: Any) -> None:
        if overflow:
            update(overflow)
        else:
            grows.append(overflow)

    scaler.update_scale = update_scale
    try:
        yield
    finally:
        del scaler.update_scale
    for overflow in grows:
        update(overflow)


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


# What DeepSpeed tells on a logger of its own, at the level of information.
_TELLING = (
    "steps_per_print",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
)


def _engine(learner: "nn.Module", optimizer: Any, values: Mapping[str, Any]) -> Any:
    """A DeepSpeed engine; it sees a copy of the values, as it writes into them."""
    import deepspeed

    _require_device(values)
    _forget_groups()
    # DeepSpeed calls these every step, and each call would warn.
    warnings.filterwarnings(
        "ignore", r".*torch\.distributed\..* is deprecated", FutureWarning, r"torch\."
    )
    given = copy.deepcopy(dict(values))
    if "steps_per_print" not in given:
        # It would wait for the device at every step, for a speed that nobody is told.
        given.setdefault("timers", {"throughput": {"enabled": False}})
    logger = logging.getLogger("DeepSpeed")
    # While it starts it reports every setting, and warns of the optimizer that is ours by design.
    logger.setLevel(logging.INFO if values.get("dump_state") else logging.ERROR)
    trained = [p for p in learner.parameters() if p.requires_grad]
    with _without_shared_memory():
        engine, *_ = deepspeed.initialize(
            model=learner, optimizer=optimizer, model_parameters=trained, config=given
        )
    usual = "info" if any(values.get(key) for key in _TELLING) else "warning"
    logger.setLevel(values.get("log_level", usual).upper())
    return engine


@contextmanager
def _without_shared_memory() -> Iterator[None]:
    """On the CPU DeepSpeed would take 66 MiB of /dev/shm a rank and never give them back.

    They serve its inference alone. It takes them where all ranks are known to be on one host.
    """
    hidden = os.environ.pop("LOCAL_SIZE", None)
    try:
        yield
    finally:
        if hidden is not None:
            os.environ["LOCAL_SIZE"] = hidden


def _require_device(values: Mapping[str, Any]) -> None:
    """ResourceError if this device cannot compute what is asked for."""
    from deepspeed.accelerator import get_accelerator

    device = get_accelerator()
    usable = {"fp16": device.is_fp16_supported, "bf16": device.is_bf16_supported}
    kind = precision(values)
    if kind != "fp32" and not usable[kind]():
        msg = f"DeepSpeed config: this {device.device_name()} does not support {kind}"
        raise ResourceError(msg)
    zero = block(values, "zero_optimization")
    asked = [key for key in QUANTIZED if zero.get(key)]
    if asked and device.device_name() != "cuda":
        msg = (
            f"DeepSpeed config: zero_optimization.{asked[0]} needs DeepSpeed's CUDA kernels, "
            f"which this {device.device_name()} does not have; remove it"
        )
        raise ResourceError(msg)


def _release(engine: Any, learner: "nn.Module") -> None:
    """Undo what an engine of stage 3 changed for the whole process, and empty it.

    Hooks that torch keeps where the garbage collector cannot see still point to its parts.
    """
    import torch
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module is not learner]
    replaced = getattr(InsertPostInitMethodToModuleSubClasses, "linear_bk", None)
    if replaced is not None:
        torch.nn.functional.linear = replaced
    _forget_groups()
    zero, engine.optimizer = engine.optimizer, None
    if hasattr(zero, "parameter_offload"):
        for parameter in learner.parameters():
            vars(parameter).clear()
            parameter.data = torch.empty(0)
        for part in (zero.parameter_offload.param_coordinator, zero.parameter_offload, zero):
            vars(part).clear()


def _forget_groups() -> None:
    from deepspeed.utils import groups

    group = groups._get_zero_param_intra_parallel_group()
    if group is not None:
        groups._release_process_group_references(group)
