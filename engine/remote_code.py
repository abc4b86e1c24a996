"""Code that comes with a model: none of it runs unless a recipe says so and pins what it read."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import DataError, RecipeError
from configs.hub import is_hub_name

COMMIT = re.compile(r"[0-9a-f]{40}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_OTHER_REPOSITORY = "--"


@dataclass(frozen=True, slots=True)
class Trust:
    """What a recipe says of a model's own code.

    Attributes:
        code: it may run.
        revision: of a model on the hub a commit, tag or branch; with ``code`` a whole commit. Of a
            folder the digest of its code, as ``code_digest`` gives it.
    """

    code: bool = False
    revision: str | None = None

    def arguments(self, source: str) -> dict[str, Any]:
        """For ``from_pretrained`` of the model at a place that ``require`` has passed."""
        given: dict[str, Any] = {"trust_remote_code": self.code}
        if is_hub_name(source) and self.revision is not None:
            given["revision"] = self.revision
            if self.code:
                given["code_revision"] = self.revision
        return given


NONE = Trust()


def wrong(trust: Trust) -> str | None:
    """What is wrong with it wherever the model is; None if nothing."""
    if not trust.code:
        return None
    if trust.revision is None:
        return (
            "trust_remote_code runs code that comes with the model: read it, and pin it by "
            "revision: the whole commit (40 hex digits) on the hub, or sha256:DIGEST of a folder"
        )
    if not (COMMIT.fullmatch(trust.revision) or DIGEST.fullmatch(trust.revision)):
        return (
            f"with trust_remote_code the revision must be a whole commit (40 hex digits), or "
            f"sha256:DIGEST of a folder's code; a tag or branch may change: {trust.revision}"
        )
    return None


def require(source: str, trust: Trust) -> None:
    """RecipeError unless the code at a place is what the recipe trusts; nothing of it runs.

    Args:
        source: a folder, or a name on the hub.
        trust: of the recipe.
    """
    if problem := wrong(trust):
        raise RecipeError(f"model {source}: {problem}")
    if is_hub_name(source):
        _require_on_hub(source, trust)
    else:
        _require_in_folder(Path(source), trust)


def check_folder(folder: Path, trust: Trust) -> None:
    """RecipeError where ``require`` would refuse a folder's pin; imports no library."""
    if not trust.code and trust.revision is not None:
        msg = f"model {folder}: revision {trust.revision}, but it is a folder, not on the hub"
        raise RecipeError(msg)
    if trust.code and trust.revision != (found := code_digest(folder)):
        msg = (
            f"model {folder}: its code is not the one that the recipe trusts: found {found}, "
            f"revision says {trust.revision}; read the code, then pin what you have read"
        )
        raise RecipeError(msg)


def code_digest(folder: Path) -> str:
    """``sha256:HEX`` over names and contents of all Python files of a folder, links not followed.

    RecipeError for a link among them: what it leads to may change unseen.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if any(each.is_symlink() for each in (path, *_between(path, folder))):
            msg = f"{path}: a link; code that is pinned must lie in the model's own folder"
            raise RecipeError(msg)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return f"sha256:{total.hexdigest()}"


def is_remote(model: Any) -> bool:
    """Whether a loaded model's class is code that came with it."""
    return type(model).__module__.startswith("transformers_modules.")


def _between(path: Path, folder: Path) -> Iterator[Path]:
    for parent in path.parents:
        if parent == folder:
            return
        yield parent


def _require_on_hub(source: str, trust: Trust) -> None:
    if not trust.code:
        return
    if trust.revision is None or not COMMIT.fullmatch(trust.revision):
        msg = (
            f"model {source}: it is on the hub: with trust_remote_code its revision must be a "
            f"whole commit (40 hex digits), found {trust.revision}"
        )
        raise RecipeError(msg)
    _require_own_code(source, trust)


def _require_in_folder(folder: Path, trust: Trust) -> None:
    check_folder(folder, trust)
    if trust.code:
        _require_own_code(str(folder), trust)
    else:
        _require_no_code(folder)


def _require_no_code(folder: Path) -> None:
    """RecipeError for a model that only its own code can load, with what to do."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = _config(str(folder), NONE)
    if not values.get("auto_map") or values.get("model_type") in CONFIG_MAPPING:
        return  # transformers' own class is taken, and the folder's code left alone
    msg = (
        f"model {folder}: only code that comes with it can load it ({values.get('model_type')}); "
        f"read its *.py, and if you trust them give trust_remote_code: true and "
        f"revision: {code_digest(folder)}"
    )
    raise RecipeError(msg)


def _require_own_code(source: str, trust: Trust) -> None:
    """RecipeError where the code would be fetched from a repository that nothing pins."""
    for values in (_config(source, trust), _tokenizer_config(source, trust)):
        for reference in _references(values.get("auto_map")):
            repository, mark, _ = reference.rpartition(_OTHER_REPOSITORY)
            if mark and repository != source:
                msg = (
                    f"model {source}: its code lies in another repository, {repository}, which no "
                    "revision pins; make a folder that holds both, and pin that"
                )
                raise RecipeError(msg)


def _references(auto_map: Any) -> Iterator[str]:
    if isinstance(auto_map, str):
        yield auto_map
    elif isinstance(auto_map, Mapping):
        for each in auto_map.values():
            yield from _references(each)
    elif isinstance(auto_map, list | tuple):
        for each in auto_map:
            yield from _references(each)


def _config(source: str, trust: Trust) -> Mapping[str, Any]:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(source, **_revision(source, trust))
    except (OSError, ValueError) as error:
        msg = f"model {source}: transformers cannot load it: {error}"
        raise DataError(msg) from error
    _refuse_kernels(source, values)
    return dict(values)


def _tokenizer_config(source: str, trust: Trust) -> Mapping[str, Any]:
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    return dict(get_tokenizer_config(source, **_revision(source, trust)))


def _revision(source: str, trust: Trust) -> dict[str, str]:
    return {"revision": trust.revision} if is_hub_name(source) and trust.revision else {}


def _refuse_kernels(source: str, values: Mapping[str, Any]) -> None:
    """A config may name a repository of compiled code for its attention or its experts."""
    for key, value in values.items():
        if key.endswith("_implementation") and "/" in str(value):
            msg = f"model {source}: its config asks for code from a hub: {key}: {value}; remove it"
            raise RecipeError(msg)
