"""The seams of the engine. A technique is one file that fits one of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from data_pipeline.example import Example

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Architecture = Literal["masked_lm", "causal_lm", "encoder"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch of one rank, made on the CPU.

    Attributes:
        tensors: what ``Objective.loss`` reads. Moved to the device by the backend.
        count: targets predicted in it (masked tokens, next tokens, examples): what a mean is over.
        tokens: real tokens in it, padding not counted.
        source_counts: int [S]; ``count`` split over the S sources of the run.
        source_tokens: int [S]; ``tokens`` split likewise.
    """

    tensors: Mapping[str, "Tensor"]
    count: int
    tokens: int
    source_counts: tuple[int, ...]
    source_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Loss:
    """Summed losses of one micro-batch; dividing by the global count is the backend's business.

    Attributes:
        total: fp32 scalar with gradient: the sum over the batch's targets.
        by_source: fp32 [S], detached: ``total`` split over the sources.
        measures: fp32 [M, S], detached: sums over the targets of what ``Objective.measures``
            names, split likewise.
    """

    total: "Tensor"
    by_source: "Tensor"
    measures: "Tensor"


class Objective(Protocol):
    """What is predicted: makes a batch on the CPU and scores the model on it."""

    @property
    def architecture(self) -> Architecture:
        """Which transformers Auto class the backbone is loaded by."""
        ...

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what it tells beside the loss, each a mean over the targets: ``accuracy``."""
        ...

    def modules(self, backbone: "nn.Module") -> "nn.ModuleDict":
        """Extra modules that it trains; the learner owns them. Empty for plain language models."""
        ...

    def collate(self, examples: Sequence[Example], seed: int, sources: int) -> Batch:
        """A micro-batch from examples; all randomness from ``generator(seed, example.key)``."""
        ...

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> Loss:
        """Score the learner's modules on a batch that is on their device already."""
        ...


@runtime_checkable
class TokenObjective(Objective, Protocol):
    """One that predicts a token of the vocabulary at each target, and nothing else."""

    def logits(self, backbone: "nn.Module", tensors: Mapping[str, "Tensor"]) -> "Tensor":
        """Scores of all tokens at the targets, [T, V]."""
        ...

    def told(self, logits: "Tensor", labels: "Tensor", tensors: Mapping[str, "Tensor"]) -> Loss:
        """What is made of such scores, with these labels, int64 [T], at the targets."""
        ...


class LearnerModule(Protocol):
    """What an objective sees of the learner."""

    backbone: "nn.Module"
    heads: "nn.ModuleDict"


@dataclass(frozen=True, slots=True)
class Piece:
    """``length`` values of a parameter from ``start``, at ``offset`` of a flat partition."""

    name: str
    shape: tuple[int, ...]
    start: int
    partition: "Tensor"
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Part:
    """Some values of a partition, all in its order, as an update rule sees them.

    Attributes:
        weight: to be changed in place.
        gradient: of the weight's shape; a rule may use it up.
        states: by the rule's keys, of the weight's shape, to be changed in place.
        step: scalar; the steps taken before this one. The rule adds one.
    """

    weight: "Tensor"
    gradient: "Tensor"
    states: Mapping[str, "Tensor"]
    step: "Tensor"


class UpdateRule(Protocol):
    """How an optimizer moves weights: value by value, so that any partition will do."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its state tensors, each of the parameter's shape."""
        ...

    def update(self, parts: Sequence[Part], lr: float, weight_decay: float) -> None:
        """One step of every part, in place."""
        ...


@runtime_checkable
class TurningRule(UpdateRule, Protocol):
    """One that looks at whole matrices in between."""

    def accumulate(self, gradient: "Tensor", state: Mapping[str, Any]) -> "Tensor":
        """From a partition's gradient, value by value, what is to be turned; updates ``state``."""
        ...

    def turn(self, matrix: "Tensor") -> "Tensor":
        """A parameter's values, in its shape, into others, which ``update`` gets as gradient."""
        ...


Matrices = Callable[["Tensor", "Tensor", Callable[["Tensor"], "Tensor"]], "Tensor"]
"""(partition, values of its shape, what to do with each whole parameter) -> values of its shape.

Every rank calls it for the same partitions in the same order.
"""


class WeightPenalty(Protocol):
    """A pull on weights, computed shard-wise inside the optimizer at every ZeRO stage.

    Its tensors (anchors, importances) are optimizer state of the parameter's shape under
    ``state["<name>.<key>"]``: saved, partitioned and resumed with the moments.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its state tensors, such as ``l2_sp.anchor``."""
        ...

    def start(
        self,
        parameter: "Tensor",
        state: dict[str, Any],
        pieces: Callable[[], Sequence[Piece]],
    ) -> None:
        """Fill its state, which is zeros, at the first step.

        Args:
            parameter: an fp32 partition, of any flat shape.
            state: of that partition.
            pieces: tells which parameters lie where in it.
        """
        ...

    def add_gradient(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Add the penalty's gradient to ``parameter.grad`` in place."""
        ...


class WeightAverage(Protocol):
    """A running average of the weights, kept shard-wise inside the optimizer at every ZeRO stage.

    Its tensors are optimizer state in fp32, saved, partitioned and resumed with the moments. It
    sees the steps that are taken and no others.
    """

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its state tensors; the first one is the average itself."""
        ...

    def start(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Create its state before the first step (``parameter``: a partition, any flat shape)."""
        ...

    def update(self, parameter: "Tensor", state: dict[str, Any]) -> None:
        """Take in the weights after a step; ``state["step"]``, a scalar, counts it already."""
        ...


class Adaptation(Protocol):
    """What in the model trains, and which modules are added for it."""

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """Change the backbone in place or wrap it; sets requires_grad once and for all."""
        ...

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The plain transformers model again, for export; what cannot be folded in stays with it.

        See ``engine.additions``.
        """
        ...

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """What it learned by itself, in another library's form: path in the export -> content.

        Asked before ``merge``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fragment:
    """A contiguous piece of one state of one parameter, as this rank holds it.

    Attributes:
        name: the parameter's name in the learner.
        key: ``fp32`` for the weight itself (whatever its dtype), else the optimizer state's key
            (``exp_avg``, ...).
        shape: shape of the whole parameter.
        start: where the piece starts in the flattened parameter.
        tensor: one-dimensional, in the dtype in which the run keeps it: fp32, or bf16 with bf16
            states; a view, so that copying into it (of any dtype) restores the state.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    start: int
    tensor: "Tensor"


Permit = Callable[["Tensor | float"], bool]
"""(global gradient norm before clipping) -> whether the step is taken; equal on every rank."""

ReadRange = Callable[[str, str, int, int], "Tensor"]
"""(parameter name, key, start, length) -> fp32 [length] from a checkpoint."""


class Backend(Protocol):
    """Who runs forward, backward and step: DeepSpeed, or plain torch on one process."""

    learner: "nn.Module"
    device: "torch.device"
    rank: int
    world: int
    accumulation: int

    def forward(self, batch: Batch) -> Loss:
        """Loss of a micro-batch in training mode."""
        ...

    def evaluate(self, batch: Batch) -> Loss:
        """Loss of a micro-batch without dropout or gradient."""
        ...

    def backward(self, loss: Loss, count: "Tensor") -> None:
        """Add the gradient of ``total / count``; ``count``, a scalar, is the global batch's."""
        ...

    def step(self, lr: float, permit: Permit | None = None) -> None:
        """Clip and update, after the last micro-batch. ``lr`` times each group's ``lr_scale``.

        Where ``permit`` refuses, no weight and no optimizer state changes, on any rank.
        """
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """Name of each group of parameters -> factor of its rate."""
        ...

    @property
    def measure_update(self) -> bool:
        """Whether the next steps measure by how much they change the weights; may be set."""
        ...

    @measure_update.setter
    def measure_update(self, value: bool) -> None: ...

    def update_norm(self) -> "Tensor | None":
        """Global norm of the last step's change; None if it was not measured or changed nothing.

        Every rank must call it.
        """
        ...

    def swapped(self, key: str) -> AbstractContextManager[None]:
        """Inside, the weights are those of an optimizer state, such as an average.

        Afterwards they are what they were, to the bit. Before the first step, when there are no
        states, nothing is swapped. Every rank must enter it.
        """
        ...

    @property
    def average_key(self) -> str | None:
        """Of the running average among the optimizer's states; None without one."""
        ...

    def gradient_norm(self) -> "Tensor | float":
        """Global norm before clipping, of the last step."""
        ...

    def skipped(self) -> bool:
        """True if the last step changed nothing: an overflow, or ``permit`` refused."""
        ...

    def pass_over(self) -> None:
        """Count a step that nothing was done for, in place of ``step``; as a skipped one."""
        ...

    def sum_over_ranks(self, tensor: "Tensor") -> "Tensor":
        """The elementwise sum over all ranks; every rank must call it."""
        ...

    @property
    def state_keys(self) -> tuple[str, ...]:
        """Keys of the optimizer states that each weight has after a first step."""
        ...

    def fragments(self) -> Iterator[Fragment]:
        """Every piece of weights and optimizer state that this rank owns, each piece owned once."""
        ...

    def load_fragments(self, read: ReadRange, keys: Sequence[str], steps: int) -> None:
        """Fill weights and the named optimizer states from a checkpoint taken after ``steps``."""
        ...

    def extra_state(self) -> dict[str, Any]:
        """JSON-able state that is no fragment (dynamic loss scale); equal on every rank."""
        ...

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what ``extra_state`` gave."""
        ...

    def close(self) -> None:
        """Give back what it holds of memory and hooks; nothing else may be called afterwards."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: the number of finished optimizer steps."""

    step: int = 0


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one optimizer step leaves for the hooks; tensors stay on the device, unread.

    Attributes:
        losses: fp32 [1 + S]: summed loss of this rank, whole and by source (not reduced).
        measures: fp32 [M, S]: likewise of what the objective tells beside the loss.
        counts: fp64 [2 + 2S]: targets, tokens, targets by source, tokens by source; global sums.
        gradient_norm: global norm before clipping.
        lr: the rate the step was taken with.
        seconds: wall time of the step on this rank.
        skipped: the step changed nothing: fp16's scaled gradient overflowed, or a guard refused
            or avoided it. Of an avoided one there are no numbers: ``losses``, ``measures`` and
            ``counts`` are empty, the norm is NaN.
        judged: a guard has seen to the step: what is not finite in a skipped one is its matter.
    """

    losses: "Tensor"
    measures: "Tensor"
    counts: "Tensor"
    gradient_norm: "Tensor | float"
    lr: float
    seconds: float
    skipped: bool = False
    judged: bool = False


class Hook:
    """What happens around steps: logging, saving, validating. All ranks call all hooks."""

    name: str = "hook"

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Before the first step of this process, after any resume."""

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """After each optimizer step; ``progress`` counts it already."""

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """After the last step, or when a step raised: release what is held."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that a resumed run needs; equal on every rank."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave, before ``on_start``; also after a run, at a rollback.

        ``state`` is empty where the checkpoint knows nothing of this hook: it begins anew.
        """
        del state


class Stop(Protocol):
    """Whether the run is to end early with its state saved; all ranks come to one answer."""

    @property
    def is_agreed(self) -> bool:
        """The last answer, without asking again; once True it stays so."""
        ...

    def begin(self) -> None:
        """Begin to ask all ranks, without waiting; every rank calls it."""
        ...

    def agreed(self) -> bool:
        """The answer (asks, if nobody has begun to); every rank must call it."""
        ...


Observer = Callable[[str, int], None]
"""(phase, step): the main thread has come to it; on every rank the same ones in the same order."""


class StepGuard(Protocol):
    """What judges a step before it changes the model. It is one of the run's hooks, too."""

    def avoids(self, step: int) -> bool:
        """Whether nothing is to be learned from this step's rows; equal on every rank."""
        ...

    def judge(self, backend: Backend, step: int, losses: "Tensor", counts: "Tensor") -> Permit:
        """What decides on the step; ``losses`` and ``counts`` as in StepRecord.

        The backend asks it at most once, on all ranks or on none.
        """
        ...


class Schedule(Protocol):
    """Learning rate as a pure function of the step."""

    def factor(self, step: int, steps: int) -> float:
        """Multiplier of the peak rate for the step after ``step`` finished ones, of ``steps``."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """All that a training run is made of.

    Attributes:
        batches: this rank's micro-batches of each step, from the step it starts at.
        lr: peak learning rate.
        seed: of the run; dropout is seeded by (seed, step, number of the micro-batch in the step).
        guard: judges each step; None: every step is taken, and nothing is read before it.
        stop: what may end the run early; None: nothing.
        observers: hear of each phase as it begins: ``data``, ``reduce``, and for each micro-batch
            ``forward`` and ``backward``, then ``optimizer``, then each hook by its name.
    """

    backend: Backend
    batches: Iterator[Sequence[Batch]]
    schedule: Schedule
    lr: float
    steps: int
    seed: int
    hooks: Sequence[Hook] = field(default_factory=tuple)
    guard: StepGuard | None = None
    stop: Stop | None = None
    observers: Sequence[Observer] = field(default_factory=tuple)

    def enter(self, phase: str, step: int) -> None:
        """Tell the observers that a phase begins."""
        for observer in self.observers:
            observer(phase, step)
