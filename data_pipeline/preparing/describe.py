"""What a finished prepare stage holds, verified, for ``onward inspect``."""

from pathlib import Path
from typing import Any

from configs.errors import DataError
from data_pipeline import shards
from data_pipeline.preparing.state import FILE, State, output_folder
from data_pipeline.tokenization import describe_tokenizer

_SHOWN = ("documents", "sequences", "tokens", "bytes", "fingerprint")


def describe(folder: Path) -> dict[str, Any]:
    """JSON-able facts of its tokenizer and of each side of each corpus; every byte is read.

    Raises:
        DataError: something is damaged, or not what the stage made.
    """
    state = State.left(folder)
    tokenizer = describe_tokenizer(output_folder(folder, "tokenizer"))
    found = {"tokenizer": tokenizer["sha256"]}
    corpora: dict[str, dict[str, Any]] = {}
    for name in state.made:
        if name == "tokenizer":
            continue
        corpus, _, side = name.rpartition("/")
        facts = _side(output_folder(folder, name))
        found[name] = facts["fingerprint"]
        corpora.setdefault(corpus, {})[side] = facts
    for name, digest in state.made.items():
        if found[name] != digest:
            msg = (
                f"{output_folder(folder, name)}: not what the stage made: its fingerprint is "
                f"{found[name][:12]}, but {FILE} says {digest[:12]}"
            )
            raise DataError(msg)
    return {"fingerprint": state.fingerprint, "tokenizer": tokenizer, "corpora": corpora}


def _side(folder: Path) -> dict[str, Any]:
    facts = shards.describe(folder)
    told = {key: facts[key] for key in _SHOWN} | {"shards": len(facts["shards"])}
    provenance = facts["provenance"]
    return told | {"counts": provenance["counts"], "removed": provenance["removed"]}
