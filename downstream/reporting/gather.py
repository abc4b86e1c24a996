"""All that a report tells, read from the folders that the stages left."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from downstream.records import read_json, read_jsonl
from downstream.reporting.interruptions import Interruptions, interruptions


@dataclass(frozen=True, slots=True)
class ReportSources:
    """Where a report reads.

    Attributes:
        run: the run folder, for its recipe's name and provenance.
        evaluate: folder of the evaluation.
        gap: folder of the gap between corpora, if there is one.
        pretraining: folders of pretraining stages, in order.
    """

    run: Path
    evaluate: Path
    gap: Path | None
    pretraining: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Curve:
    """What one pretraining stage logged.

    Attributes:
        stage: its name.
        metrics: lines of metrics.jsonl.
        validation: lines of validation.jsonl, none if it did not validate.
    """

    stage: str
    metrics: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage took.

    Attributes:
        stage: its name.
        steps: optimizer steps.
        tokens: real tokens trained on.
        training_seconds: wall time of the steps; of a fine-tuning table, summed over its cells.
        tokens_per_second: the two divided, over all ranks (of a table: of one cell).
        mfu: last logged share of the device's measured matmul rate, or None.
    """

    stage: str
    steps: int
    tokens: int
    training_seconds: float
    tokens_per_second: float
    mfu: float | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the report shows; ``to_json`` is report.json.

    Attributes:
        name: of the run.
        evaluation: results.json of the evaluation.
        gap: results.json of the gap stage, or None.
        curves: of the pretraining stages.
        costs: of the pretraining stages and the fine-tuning table.
        seconds: wall time of every finished stage of the run, start-up included.
        provenance: provenance.json, empty if there is none.
        interruptions: restarts of a supervised run; None if there were none.
    """

    name: str
    evaluation: Mapping[str, Any]
    gap: Mapping[str, Any] | None
    curves: Sequence[Curve]
    costs: Sequence[Cost]
    seconds: Mapping[str, float]
    provenance: Mapping[str, Any]
    interruptions: Interruptions | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-able copy; restarts are in it if there were any."""
        found = asdict(self)
        if self.interruptions is None:
            del found["interruptions"]
        return found


def gather(sources: ReportSources) -> Facts:
    """Read everything; DataError names what should be there and is not."""
    evaluation = read_json(sources.evaluate / "results.json")
    curves = [_curve(folder) for folder in sources.pretraining]
    return Facts(
        name=_run_name(sources.run),
        evaluation=evaluation,
        gap=read_json(sources.gap / "results.json") if sources.gap else None,
        curves=curves,
        costs=[*map(_training_cost, curves), _table_cost(evaluation)],
        seconds=_stage_seconds(sources.run),
        provenance=_optional(sources.run / "provenance.json"),
        interruptions=interruptions(sources.run),
    )


def _run_name(run: Path) -> str:
    import yaml

    recipe = run / "recipe.yaml"
    if not recipe.exists():
        return run.name
    return str(yaml.safe_load(recipe.read_text(encoding="utf-8")).get("name", run.name))


def _optional(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    return found


def _curve(folder: Path) -> Curve:
    validation = folder / "validation.jsonl"
    return Curve(
        folder.name,
        read_jsonl(folder / "metrics.jsonl"),
        read_jsonl(validation) if validation.exists() else [],
    )


def _training_cost(curve: Curve) -> Cost:
    if not curve.metrics:
        return Cost(curve.stage, 0, 0, 0.0, 0.0, None)
    last = curve.metrics[-1]
    tokens, seconds = int(last["tokens"]), float(last["seconds"])
    speed = tokens / seconds if seconds else 0.0
    return Cost(curve.stage, int(last["step"]), tokens, seconds, speed, last.get("mfu"))


def _table_cost(evaluation: Mapping[str, Any]) -> Cost:
    cells = [cell for arm in evaluation["arms"].values() for cell in arm["cells"]]
    tokens = sum(cell["tokens"] for cell in cells)
    seconds = sum(cell["seconds"] for cell in cells)
    steps = sum(cell["steps"] for cell in cells)
    name = f"fine-tuning ({len(cells)} runs)"
    return Cost(name, steps, tokens, seconds, tokens / seconds if seconds else 0.0, None)


def _stage_seconds(run: Path) -> dict[str, float]:
    """Wall time by stage, in the order they were run, from the status files."""
    found = []
    for path in run.glob("*/status.json"):
        status = read_json(path)
        if status.get("state") == "done" and status.get("finished"):
            began, ended = map(datetime.fromisoformat, (status["started"], status["finished"]))
            found.append((began, path.parent.name, (ended - began).total_seconds()))
    return {name: seconds for _, name, seconds in sorted(found)}
