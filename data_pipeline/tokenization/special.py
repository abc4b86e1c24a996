"""The special tokens of a tokenizer: their roles, and which ones stand around a document."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

ROLES = ("pad", "mask", "cls", "sep", "unk", "bos", "eos")
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
"""Where transformers keeps the roles, old and new; a later file counts more."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Special ids.

    Attributes:
        ids: by role (``ROLES``); a role that the tokenizer lacks is absent.
        prefix: before a document, as the tokenizer's own post-processor puts them.
        suffix: after it; [eos] for a causal tokenizer whose post-processor adds nothing.
    """

    ids: Mapping[str, int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]


def special_tokens(folder: Path, backend: "Backend") -> SpecialTokens:
    """Read roles from the folder's settings, and what stands around a text from ``backend``."""
    ids: dict[str, int] = {}
    for role, token in _roles(folder).items():
        found = backend.token_to_id(token)
        if found is None:
            msg = f"{folder}: its {role} token is '{token}', which its vocabulary lacks"
            raise DataError(msg)
        ids[role] = found
    prefix, suffix = _around(backend)
    if not prefix and not suffix and "mask" not in ids and "eos" in ids:
        suffix = (ids["eos"],)
    return SpecialTokens(ids, prefix, suffix)


def _roles(folder: Path) -> dict[str, str]:
    values: dict[str, Any] = {}
    for name in SETTINGS:
        path = folder / name
        if path.is_file():
            values |= json.loads(path.read_text(encoding="utf-8"))
    tokens = {role: values.get(f"{role}_token") for role in ROLES}
    # Old folders hold a token's options in a mapping, with the token itself under "content".
    named = {r: t["content"] if isinstance(t, dict) else t for r, t in tokens.items()}
    return {role: token for role, token in named.items() if token}


def _around(backend: "Backend") -> tuple[tuple[int, ...], tuple[int, ...]]:
    encoding = backend.encode("a", add_special_tokens=True)
    marked = list(zip(encoding.ids, encoding.special_tokens_mask, strict=True))
    prefix = tuple(i for i, special in takewhile(lambda pair: pair[1], marked))
    rest = marked[len(prefix) :]
    suffix = tuple(i for i, special in takewhile(lambda pair: pair[1], reversed(rest)))
    return prefix, suffix[::-1]
