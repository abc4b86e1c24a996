"""Training metrics: one line a logged step, read from the device and the other ranks only then."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from configs.errors import NumericalError
from engine.hooks.numbers import BEFORE_ALL, JsonLines, Sink
from engine.hooks.starts import Starts
from engine.hooks.throughput import Throughput
from engine.hooks.vitals import Vitals
from engine.protocols import Backend, Hook, Progress, StepRecord

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass
class _Window:
    """Global sums since the last line; exact (fp64 sums of fp32 losses), wherever it is cut.

    Attributes:
        losses: [1 + S + M*S]: summed loss, whole and by source; then each measure by source.
        counts: [2 + 2S]: targets, tokens, targets by source, tokens by source.
        seconds: wall time of the steps.
        steps: how many there were, skipped ones counted.
    """

    losses: list[float]
    counts: list[float]
    seconds: float = 0.0
    steps: int = 0

    def add(self, other: "_Window") -> None:
        self.losses = [a + b for a, b in zip(self.losses, other.losses, strict=True)]
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds
        self.steps += other.steps


@dataclass
class _Totals:
    """Since the run's first step; survives a resume."""

    tokens: int = 0
    seconds: float = 0.0
    source_tokens: list[int] = field(default_factory=list)
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    """The record of the step that ended as number ``step``."""

    step: int
    record: StepRecord

    @property
    def counts(self) -> bool:
        """Whether the step was learned from: its numbers enter the sums."""
        return not self.record.skipped

    @property
    def must_be_finite(self) -> bool:
        """All but what a guard has skipped: that is its matter."""
        return not (self.record.skipped and self.record.judged)


class MetricsHook(Hook):
    """Writes ``metrics.jsonl``; the loss is the mean over all targets since the line before.

    A line:
        step, loss, and each measure of the objective, such as accuracy: as the loss is.
        lr and rates: the peak group's rate, and that of each group of parameters.
        grad_norm: of that step, before clipping; update_norm: of the change of all weights, and
            update_ratio: to the norm of the weights that train.
        loss_scale: fp16's.
        tokens, seconds, skipped: tokens, wall time, and steps that changed nothing, since the
            run's first step; restarts: of the stage, whether or not they came to save anything.
        tokens_per_second, tflops (of the model, a rank's), mfu, step_seconds (of all a step's
            time), data_wait (seconds of them for which the slowest rank waited for data): since
            the line before.
        memory: GiB of the rank that has most: ``host`` and ``device`` now, ``host_peak`` and
            ``device_peak`` since its process began.
        sources: for each its tokens (since the first step), loss, measures and share of the tokens
            (since the line before), and the share of the rows that the mixture asks for now.

    Losses, targets and tokens of skipped steps do not count. ``null`` stands where there is no
    number: no target of that source, no gradient, no such device. Beside it ``starts.jsonl`` has a
    line for each start of the stage.

    Stands before the checkpoint hook, so that its state covers the step that is saved. It is an
    observer of the loop besides.
    """

    name = "metrics"

    def __init__(  # noqa: PLR0913 -- what is measured, and who is told
        self,
        path: Path,
        sources: Sequence[str],
        every: int,
        steps: int,
        throughput: Throughput,
        sinks: Sequence[Sink] = (),
        *,
        measures: Sequence[str],
        asked: Callable[[int], Sequence[float]] | None = None,
    ) -> None:
        """Set up.

        Args:
            path: the file.
            sources: their names, in the recipe's order.
            every: steps between two lines.
            steps: the run's last step, which gets a line, too.
            throughput: counts the model's FLOPs.
            sinks: who gets the numbers, too, as kind ``train``.
            measures: names of what the objective tells beside the loss.
            asked: finished steps -> the share of the rows that each source is to have by then.
        """
        self._lines = JsonLines(path)
        self._starts = Starts(path.with_name("starts.jsonl"), steps)
        self._vitals = Vitals()
        self._measures = list(measures)
        self._asked = asked
        self._sources = list(sources)
        self._every = every
        self._steps = steps
        self._throughput = throughput
        self._sinks = tuple(sinks)
        self._records: list[_Kept] = []
        self._window = self._empty()
        self._totals = _Totals(source_tokens=[0] * len(self._sources))
        self._backend: Backend | None = None
        self._step = 0

    def enter(self, phase: str, step: int) -> None:
        """The main thread begins a phase."""
        del step
        self._vitals.enter(phase)

    def on_start(self, backend: Backend, progress: Progress) -> None:
        """Cut away what lies after the checkpoint; measure the device."""
        self._backend = backend
        self._step = progress.step
        if backend.rank == 0:
            self._lines.cut_after(progress.step or BEFORE_ALL)
        self._starts.note(backend, progress)
        self._throughput.start(backend)
        backend.measure_update = self._is_logged(progress.step + 1)

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        """Keep the record; at a logged step read them all.

        Raises:
            NumericalError: a loss or a gradient since the line before was not finite (a gradient
                that fp16 skipped, and what a guard skipped, may be); names the first such step.
        """
        self._records.append(_Kept(progress.step, record))
        self._totals.skipped += record.skipped
        self._step = progress.step
        if self._is_logged(progress.step):
            self._read(backend)
            self._write(backend, record)
        backend.measure_update = self._is_logged(progress.step + 1)

    def _is_logged(self, step: int) -> bool:
        return step % self._every == 0 or step == self._steps

    def on_end(self, backend: Backend, progress: Progress) -> None:
        """Bring the file to the disk."""
        del progress
        if backend.rank == 0:
            self._lines.sync()

    def state_dict(self) -> dict[str, Any]:
        """Sums up to the last step; raises as ``after_step`` does, and every rank must call it."""
        if self._backend is not None:
            self._read(self._backend)
            if self._backend.rank == 0:
                self._lines.sync()
        window, totals = self._window, self._totals
        return {
            "sources": self._sources,
            "window": asdict(window),
            "tokens": totals.tokens,
            "seconds": totals.seconds,
            "source_tokens": totals.source_tokens,
            "skipped": totals.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # What is pending is of steps that are taken back.
        self._records = []
        if not state:
            self._window = self._empty()
            self._totals = _Totals(source_tokens=[0] * len(self._sources))
            return
        self._window = _Window(**state["window"])
        sources = list(state["source_tokens"])
        self._totals = _Totals(state["tokens"], state["seconds"], sources, state["skipped"])

    def _empty(self) -> _Window:
        size = len(self._sources)
        return _Window([0.0] * (1 + size + size * len(self._measures)), [0.0] * (2 + 2 * size))

    def _read(self, backend: Backend) -> None:
        """Sum what is pending over steps and ranks, and fetch it."""
        if not self._records:
            return
        began = perf_counter()
        summed = self._empty()
        if any(kept.must_be_finite for kept in self._records):
            summed = self._sums(backend)
        seconds = sum(kept.record.seconds for kept in self._records)
        summed.steps = len(self._records)
        # Reading waits for the device: the time of steps that were only queued until now.
        summed.seconds = seconds + perf_counter() - began
        self._window.add(summed)
        self._records = []

    def _sums(self, backend: Backend) -> _Window:
        """Of what is pending; NumericalError if something in it is not finite."""
        import torch

        looked_at = [kept for kept in self._records if kept.must_be_finite]
        learned = [kept.record for kept in looked_at if kept.counts]
        rows = torch.stack([_all_sums(kept.record) for kept in looked_at]).double()
        bad = torch.cat([(~rows.isfinite()).double(), _bad_norms(looked_at, rows.device)], dim=1)
        counted = [number for number, kept in enumerate(looked_at) if kept.counts]
        mine = torch.cat([rows[counted].sum(0), bad.sum().reshape(1)])
        *losses, wrong = backend.sum_over_ranks(mine).tolist()
        if wrong:
            steps = [kept.step for kept in looked_at]
            raise NumericalError(self._diverged(steps, backend.sum_over_ranks(bad).tolist()))
        counts = [record.counts for record in learned]
        return _Window(
            losses, torch.stack(counts).sum(0).tolist() if counts else self._empty().counts
        )

    def _diverged(self, steps: Sequence[int], bad: Sequence[Sequence[float]]) -> str:
        """``bad``: for each step how many ranks met each loss, and then the norm, as not finite."""
        first = next(number for number, row in enumerate(bad) if any(row))
        step, (*losses, norm) = steps[first], bad[first]
        what = "gradient" if norm and not any(losses) else "loss"
        by_source = losses[1 : 1 + len(self._sources)]
        names = [name for name, count in zip(self._sources, by_source, strict=True) if count]
        return (
            f"step {step}: the {what} is not finite"
            f"{' on rows of ' + ', '.join(names) if names else ''}; nothing is saved from here on. "
            f"'onward order RECIPE STAGE --step {step - 1}' shows its rows. A lower lr, a longer "
            "warm-up or another precision are the usual remedies; with a 'guard' such steps are "
            "skipped"
        )

    def _write(self, backend: Backend, record: StepRecord) -> None:
        numbers = self._numbers(record) | self._vitals.take(backend, record.lr)
        self._window = self._empty()
        if backend.rank == 0:
            self._lines.append({"step": self._step, **numbers})
            for sink in self._sinks:
                sink.write("train", self._step, numbers)

    def _numbers(self, record: StepRecord) -> dict[str, Any]:
        window, totals = self._window, self._totals
        targets, tokens = window.counts[:2]
        totals.tokens += int(tokens)
        totals.seconds += window.seconds
        norm = float(record.gradient_norm)
        return {
            "loss": _mean(window.losses[0], targets),
            **self._means(slice(None), targets),
            "lr": record.lr,
            "grad_norm": norm if isfinite(norm) else None,
            "tokens": totals.tokens,
            "seconds": totals.seconds,
            "skipped": totals.skipped,
            "restarts": self._starts.restarts,
            "tokens_per_second": tokens / window.seconds,
            "tflops": self._throughput.speed(tokens, targets, window.seconds) / 1e12,
            "mfu": self._throughput.utilisation(tokens, targets, window.seconds),
            "step_seconds": window.seconds / window.steps,
            "sources": self._by_source(tokens),
        }

    def _by_source(self, tokens: float) -> dict[str, dict[str, Any]]:
        """Each source's part in the window; ``tokens``: of all."""
        window, totals, size = self._window, self._totals, len(self._sources)
        targets, own_tokens = window.counts[2 : 2 + size], window.counts[2 + size :]
        totals.source_tokens = [
            a + int(b) for a, b in zip(totals.source_tokens, own_tokens, strict=True)
        ]
        asked = self._asked(self._step) if self._asked else [None] * size
        return {
            name: {
                "tokens": totals.source_tokens[i],
                "loss": _mean(window.losses[1 + i], targets[i]),
                **self._means(slice(i, i + 1), targets[i]),
                "share": _mean(own_tokens[i], tokens),
                "asked": asked[i],
            }
            for i, name in enumerate(self._sources)
        }

    def _means(self, sources: slice, targets: float) -> dict[str, float | None]:
        """Each measure over these sources, which have so many targets."""
        size = len(self._sources)
        starts = range(1 + size, len(self._window.losses), size)
        return {
            name: _mean(sum(self._window.losses[start : start + size][sources]), targets)
            for name, start in zip(self._measures, starts, strict=True)
        }


def _all_sums(record: StepRecord) -> "Tensor":
    """fp32 [1 + S + M*S]: the losses, then each measure by source."""
    import torch

    return torch.cat([record.losses, record.measures.reshape(-1)])


def _bad_norms(kept: Sequence[_Kept], device: "torch.device") -> "Tensor":
    """fp64 [steps, 1]: 1 where a step was taken with a gradient that is not finite."""
    import torch

    norms = [
        torch.as_tensor(each.record.gradient_norm, device=device).double().reshape(())
        for each in kept
    ]
    taken = torch.tensor([each.counts for each in kept], device=device)
    return (~torch.stack(norms).isfinite() & taken).double()[:, None]


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
