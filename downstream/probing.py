"""Probes: linear classifiers on frozen features of a model in training (Alain & Bengio, 2016)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import NumericalError
from data_pipeline.example import Example
from downstream.evaluation.metrics import Metric, scores
from downstream.pretraining import SIDES, ProbeConfig
from downstream.row_order import evaluation_batches
from downstream.tasks.rows import Side, task_fingerprint
from engine.hooks.measured import MeasuringHook
from engine.protocols import Backend

if TYPE_CHECKING:
    from torch import Tensor, nn

    from engine.assemble import Parts
    from engine.protocols import LearnerModule, Loss
    from engine.watching import Surroundings

TOGETHER = 32
_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe, its rows encoded.

    Attributes:
        every: steps between two.
        examples: by side.
        padding: id that fills a batch up.
    """

    every: int
    examples: Mapping[Side, Sequence[Example]]
    padding: int

    @classmethod
    def build(cls, config: ProbeConfig, parts: "Parts") -> "Probe":
        """The probe of a stage that is assembled.

        Raises:
            DataError: a text has no tokens, or the model has positions for fewer.
        """
        from downstream.encoding import encode, padding_id
        from engine.isolation import require_positions

        backbone: Any = parts.backend.learner.backbone
        require_positions(backbone, config.length, f"probe on {config.task}")
        locate = parts.context.locate
        fingerprint = task_fingerprint(locate(config.task))
        data = config.load(locate)
        examples = encode(data, parts.tokenizer, config.length, fingerprint, SIDES)
        return cls(config.every, examples, padding_id(parts.tokenizer))

    def score(self, backend: Backend, may_turn: Callable[[], bool]) -> dict[Metric, float] | None:
        """Accuracy and macro-F1 on dev; every rank must call it, and gets them.

        None: ``may_turn``, which is asked before each batch, said no.
        """
        from engine import distributed

        found = {}
        for side in SIDES:
            features = pooled(backend, self.examples[side], self.padding, may_turn)
            if features is None:
                return None
            found[side] = features
        truth = {side: [example.label for example in self.examples[side]] for side in SIDES}
        return distributed.on_first(lambda: _fitted(found, truth))


class ProbeHook(MeasuringHook):
    """Writes ``probes.jsonl``: before the first step, each probe when it is due, all at the end.

    A line: step, and for each probe its accuracy and macro-F1 on dev. The run goes on as if nothing
    had been measured: no random number is drawn, and no weight changes.
    """

    name, kind = "probes", "probe"

    def __init__(
        self, path: Path, probes: Mapping[str, Probe], steps: int, around: "Surroundings"
    ) -> None:
        """Set up; ``steps``: the run's last."""
        goes_on = around.oversight.goes_on
        super().__init__(path, steps, around.sinks, goes_on, around.measured)
        self._probes = dict(probes)

    def is_due(self, step: int) -> bool:
        """Whether one of them is."""
        return any(step % probe.every == 0 for probe in self._probes.values())

    def measure(
        self, backend: Backend, step: int, may_turn: Callable[[], bool]
    ) -> dict[str, Any] | None:
        """The scores of those that are due."""
        found = {}
        for name, probe in self._probes.items():
            if step == self._steps or step % probe.every == 0:
                scored = probe.score(backend, may_turn)
                if scored is None:
                    return None
                found[name] = scored
        return found

    def line(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        """By probe."""
        return {"probes": dict(numbers)}


def pooled(
    backend: Backend, examples: Sequence[Example], padding: int, may_turn: Callable[[], bool]
) -> NDArray[np.float32] | None:
    """Means of the hidden states of each text, fp32 [n, D]; every rank must call it, and gets all.

    None: ``may_turn`` said no.
    """
    from downstream.objectives.classification import padded_batch
    from engine import distributed
    from engine.hooks.validation import turns

    batches = evaluation_batches([len(each.tokens) for each in examples], TOGETHER)
    made = [padded_batch([examples[i] for i in rows], padding, 1) for rows in batches]
    mine: list[tuple[int, NDArray[np.float32]]] = []
    with recording(backend.learner) as recorded:
        for index, batch in turns(backend, made):
            if not may_turn():
                return None
            backend.evaluate(batch)
            if index < len(made):
                mine.append((index, recorded[-1].cpu().numpy()))
    shares = distributed.all_gather_object(mine) if backend.world > 1 else [mine]
    found = dict(pair for share in shares for pair in share)
    by_length = np.concatenate([found[index] for index in range(len(batches))])
    result = np.empty_like(by_length)
    result[np.concatenate(batches)] = by_length
    return result


@contextmanager
def recording(learner: "nn.Module") -> Iterator[list["Tensor"]]:
    """The learner's forward pass gives features, [B, D] of every batch scored inside, and no loss.

    At ZeRO stage 3 nobody but the backend can run the model; this way features come from any.
    """
    module: Any = learner
    own, features = module.objective, Features()
    # A compiled pass is one graph for the learner's own objective.
    compiled = vars(module).pop("forward", None)
    module.objective = features
    try:
        yield features.recorded
    finally:
        module.objective = own
        if compiled is not None:
            module.forward = compiled


class Features:
    """Stands in for an objective: keeps the mean of each row's hidden states."""

    def __init__(self) -> None:
        self.recorded: list[Tensor] = []

    def loss(self, learner: "LearnerModule", tensors: Mapping[str, "Tensor"]) -> "Loss":
        """Nothing, in place of a loss."""
        from engine.isolation import isolated_inputs
        from engine.protocols import Loss

        model: Any = learner.backbone
        hidden = model.base_model(**isolated_inputs(learner.backbone, tensors))[0].float()
        filled = (tensors["segments"] > 0).unsqueeze(2).to(hidden)
        self.recorded[:] = [(hidden * filled).sum(1) / filled.sum(1)]
        nothing = hidden.new_zeros(1)
        return Loss(nothing.sum(), nothing, nothing.new_zeros(0, 1))


def _fitted(
    features: Mapping[Side, NDArray[np.float32]], truth: Mapping[Side, Sequence[int]]
) -> dict[Metric, float]:
    """Scores on dev of a classifier that is fitted to train; deterministic."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if not all(np.isfinite(values).all() for values in features.values()):
        msg = "probe: features are not finite; a lower learning rate is the usual remedy"
        raise NumericalError(msg)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS))
    with warnings.catch_warnings():
        # What has come near enough by then scores as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features["train"].astype(np.float64), list(truth["train"]))
    predicted = model.predict(features["dev"].astype(np.float64))
    return scores(truth["dev"], predicted.tolist())
