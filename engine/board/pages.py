"""A pretraining stage as TensorBoard shows it beside its curves: recipe, lineage, settings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from configs.deepspeed_json import offload_device, precision, read_deepspeed, zero_stage
from engine.board.session import Session
from engine.settings import NONE, pretraining_settings, shares, words

_WIDEST = 90

if TYPE_CHECKING:
    from torch import nn

    from configs.stage import StageContext
    from engine.assemble import Parts


def session_of(parts: "Parts") -> Session:
    """What TensorBoard is told of the stage; on rank 0, after the backend was made."""
    context = parts.context
    settings = pretraining_settings(parts.stage, parts.steps, parts.batches, parts.seed)
    # TensorBoard sorts pages by title.
    pages = {"1 recipe": recipe_page(parts), "2 lineage": lineage_page(context, parts)}
    return Session(f"{context.name}, {context.folder.parent.name}", settings, pages)


def recipe_page(parts: "Parts") -> str:
    """Two tables: what the stage does, and what it reads."""
    stage, batches = parts.stage, parts.batches
    trained, total = parameters(parts.backend.learner)
    rows = {
        "model": words(stage.model),
        "parameters": f"{trained:,} trained of {total:,} ({trained / total:.2%})",
        "objective": words(stage.objective),
        "adaptation": words(stage.adaptation),
        "penalties": "; ".join(words(each) for each in stage.penalties) or NONE,
        "averaging": words(stage.averaging) if stage.averaging else NONE,
        "optimizer": words(stage.optimizer),
        "schedule": words(stage.schedule),
        "steps": f"{parts.steps:,}",
        "global batch": f"{batches.global_batch:,} rows: {batches.micro_batch} a micro-batch x "
        f"{batches.accumulation} accumulated x {batches.world} ranks",
        "backend": _backend(parts),
        "checkpoints": words(stage.checkpoint),
        "seed": str(parts.seed),
    }
    return f"# {parts.context.name}\n\n{table(('setting', 'value'), rows.items())}\n{_data(parts)}"


def lineage_page(context: "StageContext", parts: "Parts") -> str:
    """Which stages it was made from, as far back as the run folder tells, and by which code."""
    run = context.folder.parent
    made_with = _read(run / "provenance.json")
    code = made_with.get("commit") or "not known"
    versions = made_with.get("versions", {})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    origin = {
        "stage": context.name,
        "key": context.key,
        "base model": words(parts.stage.model),
        "data": parts.stream.fingerprint,
        "code": code,
        "packages": packages or "not known",
    }
    earlier = [
        (name, status.get("config", {}).get("kind", "not known"), fingerprint, by)
        for name, status, fingerprint, by in _ancestors(run, context)
    ]
    head = ("earlier stage", "kind", "fingerprint", "read by")
    below = table(head, earlier) if earlier else "It reads no earlier stage.\n"
    return f"# Lineage of {context.name}\n\n{table(('what', 'which'), origin.items())}\n{below}"


def parameters(learner: "nn.Module") -> tuple[int, int]:
    """How many train, and how many there are; of all ranks, whatever ZeRO stage splits them."""
    # ZeRO-3 leaves an empty tensor behind and keeps the real size beside it.
    sizes = [(int(getattr(p, "ds_numel", p.numel())), p) for p in learner.parameters()]
    trained = sum(size for size, parameter in sizes if parameter.requires_grad)
    return trained, sum(size for size, _ in sizes)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars and line ends in a cell are made harmless."""
    lines = [head, ["---"] * len(head), *([_cell(each) for each in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    """Long ones in several lines: TensorBoard breaks the words of the others to make room."""
    told = " ".join(str(text).replace("|", "\\|").split())
    return "<br>".join(wrap(told, _WIDEST, break_long_words=False, break_on_hyphens=False))


def _backend(parts: "Parts") -> str:
    backend = parts.stage.backend
    values = read_deepspeed(backend.config)
    told: list[str] = [backend.name, precision(values)]
    if backend.name != "plain":
        told.insert(1, f"ZeRO stage {zero_stage(values)}")
        offloaded = {part: offload_device(values, part) for part in ("optimizer", "param")}
        told += [f"{part} on {where}" for part, where in offloaded.items() if where != "none"]
    return ", ".join(told)


def _data(parts: "Parts") -> str:
    data, first = parts.stage.data, shares(parts.stage)
    rows = [
        (name, source.shards, f"{source.weight:g}", f"{first.get(name, 1.0):.1%}", f"{size:,}")
        for (name, source), size in zip(data.sources.items(), parts.stream.rows, strict=True)
    ]
    told = table(("source", "shards", "weight", "share at first", "rows in an epoch"), rows)
    changes = [(f"{each.after:,}", json.dumps(each.weights)) for each in data.changes]
    if changes:
        told += "\n" + table(("weights change after row", "to"), changes)
    held = parts.stage.held_out().items()
    told += "\n" + table(("held-out set", "shards"), held) if held else ""
    return f"Rows of {data.length} tokens, packed: {words(data.packing)}\n\n{told}"


def _ancestors(
    run: Path, context: "StageContext"
) -> Iterable[tuple[str, Mapping[str, Any], str, str]]:
    """(name, status, fingerprint, who reads it) of the inputs, of their inputs, and so on."""
    waiting = [(name, each.fingerprint, context.name) for name, each in context.inputs.items()]
    seen = set()
    while waiting:
        name, fingerprint, by = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        status = _read(run / name / "status.json")
        yield name, status, fingerprint, by
        waiting += [(other, told, name) for other, told in status.get("inputs", {}).items()]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where a library, and not the launcher, has made the run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
