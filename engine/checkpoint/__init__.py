"""The state of a run on disk: saved whole or not at all, read back by any number of ranks."""

from engine.checkpoint.describe import describe
from engine.checkpoint.export import Export, export_model, export_problems, read_card
from engine.checkpoint.resume import Checkpoint, newest, open_checkpoint
from engine.checkpoint.save import prune, save
from engine.checkpoint.store import FragmentStore

__all__ = [
    "Checkpoint",
    "Export",
    "FragmentStore",
    "describe",
    "export_model",
    "export_problems",
    "newest",
    "open_checkpoint",
    "prune",
    "read_card",
    "save",
]
