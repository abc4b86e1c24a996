"""What a checkpoint, a folder of checkpoints or an export is, verified, for ``onward inspect``."""

from pathlib import Path
from typing import Any

from configs.errors import CheckpointError
from engine.checkpoint import commit
from engine.checkpoint.export import CARD, export_problems, read_card
from engine.checkpoint.resume import Checkpoint, open_checkpoint
from engine.checkpoint.save import step_folders
from engine.checkpoint.store import WEIGHT, FragmentStore


def describe(folder: Path) -> dict[str, Any]:
    """JSON-able facts: ``kind`` (checkpoint, checkpoints, export), ``intact``, ``problems``, more.

    Raises:
        CheckpointError: the folder is none of these.
    """
    if (folder / CARD).is_file():
        return _export(folder)
    if folder in step_folders(folder.parent):
        return _checkpoint(folder)
    if found := step_folders(folder):
        steps = [_checkpoint(each) for each in found]
        intact = any(step["intact"] for step in steps)
        return {"kind": "checkpoints", "folder": str(folder), "intact": intact, "steps": steps}
    msg = f"{folder}: neither a checkpoint (step-N), nor a folder of them, nor an export ({CARD})"
    raise CheckpointError(msg)


def _checkpoint(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": "checkpoint", "folder": str(folder)}
    problems = commit.problems_of(folder)
    facts |= {"intact": not problems, "problems": problems}
    if problems:
        return facts
    found = open_checkpoint(folder)
    store = FragmentStore(folder)
    shapes = {name: list(store.shape(name)) for name in store.names if store.has(name, WEIGHT)}
    return facts | {
        "step": found.step,
        "fingerprint": found.fingerprint,
        "world": found.world,
        "state": sorted(found.state),
        **_origin(found),
        "optimizer_state": store.state_keys,
        "parameters": shapes,
        "files": commit.read_manifest(folder)["files"],
    }


def _origin(found: Checkpoint) -> dict[str, Any]:
    """Where a run that was begun elsewhere comes from."""
    origin = found.state.get("hooks", {}).get("origin")
    return {"origin": origin} if origin else {}


def _export(folder: Path) -> dict[str, Any]:
    problems = export_problems(folder)
    facts = {"kind": "export", "folder": str(folder), "intact": not problems, "problems": problems}
    try:
        card = read_card(folder)
    except CheckpointError:
        return facts
    told = ("fingerprint", "lineage", "verification", "adaptations", "files")
    return facts | {key: card[key] for key in told}
