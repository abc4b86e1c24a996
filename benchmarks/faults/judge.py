"""What a finished run has to show for itself, and whether that is what an unhit one shows."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

APART = frozenset({"seconds", "tokens_per_second", "tflops", "mfu", "is_owed"})
"""Keys of what differs between two runs of the same steps: times, and that a measurement was put
off, which is judged by the file of measurements."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        digest: sha256 of the last checkpoint: every weight and optimizer state as whole tensors,
            cursor, hooks' and backend's state, but no times.
        export: digest of the exported model.
        losses: (step, loss) of training; ``held_out``: (step, set, loss).
        rows: of each step the rows that it was taken with, of all ranks, sorted.
        norms: of each weight and optimizer state, for a comparison by size.
    """

    digest: str
    export: str
    losses: list[list[float]]
    held_out: list[list[Any]]
    rows: dict[int, list[list[int]]]
    norms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return vars(self) | {"rows": {str(step): rows for step, rows in self.rows.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Result":
        """Take back what ``to_json`` gave."""
        rows = {int(step): rows for step, rows in values["rows"].items()}
        return cls(**(dict(values) | {"rows": rows}))


def result_of(stage: Path, records: Sequence[Path]) -> Result:
    """Read what a run left; ``records``: each attempt's, in order."""
    from engine.checkpoint import newest

    status = json.loads((stage / "status.json").read_bytes())
    found = newest(stage / "checkpoints", status["key"])
    if found is None:
        msg = f"{stage}: no checkpoint"
        raise RuntimeError(msg)
    digest, norms = _state_digest(found)
    lines = _json_lines(stage / "metrics.jsonl")
    held_out = [
        [line["step"], name, numbers["loss"]]
        for line in _json_lines(stage / "validation.jsonl")
        for name, numbers in line["sets"].items()
    ]
    return Result(
        digest,
        status["fingerprint"],
        [[line["step"], line["loss"]] for line in lines],
        held_out,
        rows_trained_on(records),
        norms,
    )


def _state_digest(found: Any) -> tuple[str, dict[str, float]]:
    store = found.store()
    digest = hashlib.sha256()
    norms = {}
    for name in sorted(store.names):
        for key in sorted({"fp32", *store.state_keys}):
            if not store.has(name, key):
                continue
            tensor = store.whole(name, key)
            digest.update(f"{name}|{key}|{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
            norms[f"{name}|{key}"] = float(tensor.double().norm())
    facts = {"step": found.step, "state": found.state, "backend": found.backend_state}
    digest.update(json.dumps(_timeless(facts), sort_keys=True).encode())
    return digest.hexdigest(), norms


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _timeless(inner) for key, inner in value.items() if key not in APART}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def _json_lines(path: Path) -> list[Any]:
    """Every line; the recorder of a killed rank may have left half of one, which counts as none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


@dataclass(frozen=True, slots=True)
class Way:
    """How an attempt went.

    Attributes:
        starts: the steps that its training began after; more than one where it was rolled back.
        steps: how many steps it took.
        last: the step that it came to.
    """

    starts: list[int]
    steps: int
    last: int


def way_of(records: Path) -> Way:
    """How the rank that came furthest went."""
    found = [Way([], 0, 0)]
    for path in records.glob("rank-*.jsonl"):
        lines = _json_lines(path)
        starts = [line["start"] for line in lines if "start" in line]
        came = [line.get("start", line.get("step")) for line in lines]
        found.append(Way(starts, len(came) - len(starts), came[-1] if came else 0))
    return max(found, key=lambda way: (len(way.starts), way.steps))


def rows_trained_on(records: Sequence[Path]) -> dict[int, list[list[int]]]:
    """Of each step the rows that the final weights have seen in it.

    What a step did before an attempt took up an earlier checkpoint is undone by that: only steps up
    to where the next attempt began count. RuntimeError if an attempt began behind what was done.
    """
    rows: dict[int, list[list[int]]] = {}
    for folder in records:
        for start, steps in _trainings(folder):
            if missing := [step for step in range(1, start + 1) if step not in rows]:
                msg = f"{folder}: began after step {start}, but nobody took step {missing[0]}"
                raise RuntimeError(msg)
            rows = {step: found for step, found in rows.items() if step <= start} | steps
    return {step: sorted(found) for step, found in sorted(rows.items())}


def _trainings(folder: Path) -> Iterator[tuple[int, dict[int, list[list[int]]]]]:
    """(start, rows by step) of each time that training began; only steps that all ranks took."""
    ranks = [_split(_json_lines(path)) for path in sorted(folder.glob("rank-*.jsonl"))]
    for turn in range(max(map(len, ranks), default=0)):
        parts = [rank[turn] for rank in ranks if len(rank) > turn]
        starts = {start for start, _, _ in parts}
        if len(starts) != 1:
            msg = f"{folder}: the ranks began after different steps: {sorted(starts)}"
            raise RuntimeError(msg)
        whole = [steps for _, world, steps in parts if len(parts) == world]
        common = set.intersection(*(set(steps) for steps in whole)) if whole else set()
        yield starts.pop(), {s: [row for steps in whole for row in steps[s]] for s in common}


def _split(lines: Sequence[Any]) -> list[tuple[int, int, dict[int, list[list[int]]]]]:
    found: list[tuple[int, int, dict[int, list[list[int]]]]] = []
    for line in lines:
        if "start" in line:
            found.append((line["start"], line["world"], {}))
        else:
            found[-1][2][line["step"]] = line["rows"]
    return found


def require_in_order(run: Path, stage: str, found: Result) -> None:
    """RuntimeError if a control did not read what the order of its data says, step by step.

    The order is asked here, in a process that has trained nothing.
    """
    import numpy as np

    from configs.stage import StageContext
    from launcher.recipe import load_recipe

    recipe = load_recipe(run / "recipe.yaml")
    config: Any = recipe.stages[stage]
    context = StageContext(stage, run / stage, recipe.seed, "", {})
    batch = config.backend.global_batch
    picks = config.open_stream(context).order(np.arange(config.steps * batch))
    rows = np.stack([picks.source, picks.epoch, picks.sample], axis=1).tolist()
    for step, taken in found.rows.items():
        if taken != sorted(rows[(step - 1) * batch : step * batch]):
            msg = f"{run}: step {step} did not read the rows that the order names"
            raise RuntimeError(msg)
    if len(found.rows) != config.steps:
        msg = f"{run}: {len(found.rows)} of {config.steps} steps were taken"
        raise RuntimeError(msg)


def compare(ours: Result, control: Result, steps: int) -> dict[str, Any]:
    """What agrees with the control, and by how much the losses differ where they do."""
    flat = [tuple(row) for rows in ours.rows.values() for row in rows]
    wanted = {tuple(row) for rows in control.rows.values() for row in rows}
    return {
        "digest_equal": ours.digest == control.digest,
        "export_equal": ours.export == control.export,
        "losses_equal": ours.losses == control.losses and ours.held_out == control.held_out,
        "ids_exact": ours.rows == control.rows and set(ours.rows) == set(range(1, steps + 1)),
        "rows_twice": len(flat) - len(set(flat)),
        "rows_missing": len(wanted - set(flat)),
        "loss_difference": _largest(ours.losses, control.losses),
        "norm_difference": max(
            abs(value - control.norms[name]) / max(abs(control.norms[name]), 1e-12)
            for name, value in ours.norms.items()
        )
        if ours.norms.keys() == control.norms.keys()
        else None,
    }


def _largest(ours: Sequence[Sequence[float]], control: Sequence[Sequence[float]]) -> float | None:
    """Largest relative difference of a step's loss; None if they are not the same steps."""
    if [line[0] for line in ours] != [line[0] for line in control]:
        return None
    # A skipped step has no loss.
    pairs = [(a[1], b[1]) for a, b in zip(ours, control, strict=True)]
    if any((a is None) != (b is None) for a, b in pairs):
        return None
    return max((abs(a - b) / abs(b) for a, b in pairs if b is not None), default=0.0)
