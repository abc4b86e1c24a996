"""A YAML file as plain values that still know which line each of them stands on."""

import difflib
import io
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from configs.errors import RecipeError

Key = str | int
_UNREADABLE = (ValueError, KeyError, AttributeError, TypeError)
"""What PyYAML's constructors raise over a value that is none of its tag's."""
_LARGEST, _DEEPEST = 100_000, 50
_MOST_BYTES = 8 << 20
_LONGEST_NUMBER = 128
# NUL ends a path for the kernel, and half a surrogate pair cannot be written.
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
# As a shell or another program would replace it; here a folder of that name would be made.
_VARIABLE = re.compile(r"\$\{[A-Za-z_]\w*\}|^\$[A-Za-z_]\w*(?=/|$)")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading ``1e-3`` as the number it is in YAML 1.2 and JSON."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what is merged (``<<``) in its place, unless it is more than a recipe can be."""
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(each, yaml.MappingNode):
                        self.flatten_mapping(each)
                        self._merged += len(each.value)
                    if self._merged > _LARGEST:
                        problem = f"merges (<<) that grow beyond {_LARGEST} keys"
                        raise yaml.constructor.ConstructorError(
                            None, None, problem, node.start_mark
                        )
        super().flatten_mapping(node)


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # if built
    """The same by libyaml; its messages say less."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, quoting every string that ``_Loader`` would take for a number."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Left as they are, Unicode's own line breaks would be read back as spaces.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _reader_or_writer in (_Loader, _FastLoader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def yaml_text(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that ``read_yaml`` reads back as the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


@dataclass(frozen=True, slots=True)
class Override:
    """``key.path=value`` from the command line."""

    text: str
    keys: tuple[str, ...]
    value: Any


@dataclass(frozen=True, slots=True)
class YamlSource:
    """What a file and the overrides say, and where.

    Attributes:
        path: the file, as it was given.
        root: the file's node tree, for line numbers.
        values: the plain values, overrides applied.
        overrides: what the command line set on top.
    """

    path: Path
    root: yaml.Node
    values: dict[str, Any]
    overrides: tuple[Override, ...] = ()

    def where(self, keys: Sequence[Key]) -> str:
        """``file:line: a.b.c``, or the override that set it."""
        dotted = ".".join(map(str, keys))
        for override in reversed(self.overrides):
            if override.keys == tuple(map(str, keys[: len(override.keys)])):
                return f"command line: {override.text}: {dotted}"
        line = self._line(keys)
        return f"{self.path}:{line}: {dotted}" if dotted else f"{self.path}:{line}"

    def _line(self, keys: Sequence[Key]) -> int:
        node, line = self.root, self.root.start_mark.line + 1
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            node, line = found
        return line


def read_yaml(path: Path, overrides: Iterable[str] = ()) -> YamlSource:
    """Read a YAML mapping and apply ``key.path=value`` overrides.

    Raises:
        RecipeError: no such file, not UTF-8, not safe YAML, a key given twice, not a mapping,
            an override that fits nowhere; with file and line.
    """
    text = _read_text(path)
    root = _compose(path, text)
    _refuse_duplicates(path, root)
    values = _construct(path, root)
    parsed = tuple(map(_parse_override, overrides))
    for override in parsed:
        _apply(values, override)
    return YamlSource(path, root, values, parsed)


def closest(given: str, known: Iterable[str]) -> str | None:
    """The known name that a mistyped one was probably meant to be."""
    return next(iter(difflib.get_close_matches(given, sorted(known), n=1, cutoff=0.6)), None)


def nearest(given: str, known: Iterable[str]) -> str:
    """``did you mean 'rate'?``, or the list of what is known."""
    names = sorted(known)
    close = closest(given, names)
    if close:
        return f"did you mean '{close}'?"
    return f"known here: {', '.join(names)}" if names else "nothing is known here"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            msg = f"{path}: more than {_MOST_BYTES >> 20} MiB, which no recipe is"
            raise RecipeError(msg)
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("[!.]*.y*ml")] if path.parent.is_dir() else []
        hint = f"; {path.parent} holds: {', '.join(sorted(beside)[:10])}" if beside else ""
        msg = f"{path}: no such recipe{hint}"
    except IsADirectoryError:
        msg = f"{path}: expected a YAML file, found a folder"
    except (OSError, ValueError) as error:
        if not isinstance(error, UnicodeDecodeError):
            msg = f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
            raise RecipeError(msg) from None
        line = error.object[: error.start].count(b"\n") + 1
        msg = f"{path}:{line}: not UTF-8 (byte {error.start}); save the file as UTF-8"
    raise RecipeError(msg)


def _compose(path: Path, text: str) -> yaml.Node:
    try:
        _refuse_depth(str(path), text)
        try:
            root = yaml.compose(text, Loader=_FastLoader)
        except yaml.YAMLError:
            root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _broken(path, error) from None
    except ValueError as error:
        msg = f"{path}: not YAML that a recipe may use: {error}"
        raise RecipeError(msg) from None
    if not isinstance(root, yaml.MappingNode):
        found = "nothing" if root is None else root.tag.rpartition(":")[2]
        msg = f"{path}:1: expected keys with values (name: ..., stages: ...), found {found}"
        raise RecipeError(msg)
    return root


def _refuse_depth(path: str, text: str) -> None:
    """Before anything recurses: libyaml's own recursion ends the process where it is too deep."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_FastLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                line = event.start_mark.line + 1 if event.start_mark else 1
                msg = f"{path}:{line}: nested more than {_DEEPEST} levels deep"
                raise RecipeError(msg)
    except (yaml.YAMLError, ValueError):
        return  # whoever composes it says more


def _construct(path: Path, root: yaml.Node) -> dict[str, Any]:
    """The values; what a mapping merges (``<<``) stands before its own keys in the tree then."""
    try:
        values = _Loader("").construct_document(root)
    except yaml.YAMLError as error:
        raise _broken(path, error) from None
    except _UNREADABLE as error:
        msg = f"{path}: a value that YAML cannot read: {error}"
        raise RecipeError(msg) from None
    except RecursionError:
        msg = f"{path}: an alias (*name) or a merge (<<) that leads back to itself"
        raise RecipeError(msg) from None
    return dict(_unshare(str(path), values, [0]))


def _unshare(path: str, value: Any, count: list[int], keys: tuple[Key, ...] = ()) -> Any:
    """A copy in which no two places are one object, so that an override reaches one place only.

    RecipeError for what no key takes, and what would fail wherever it is written or shown.
    """
    count[0] += 1
    if count[0] > _LARGEST or len(keys) > _DEEPEST:
        msg = f"{path}: aliases (*name) that grow beyond {_LARGEST} values or {_DEEPEST} levels"
        raise RecipeError(msg)
    if isinstance(value, dict):
        _require_usable(path, keys, *value)
        return {key: _unshare(path, each, count, (*keys, key)) for key, each in value.items()}
    if isinstance(value, list):
        return [_unshare(path, each, count, (*keys, at)) for at, each in enumerate(value)]
    _require_usable(path, keys, value)
    return value


def _require_usable(path: str, keys: tuple[Key, ...], *values: object) -> None:
    where = f"{path}: {'.'.join(map(str, keys))}" if keys else path
    for value in values:
        if isinstance(value, str) and (found := _UNUSABLE.search(value)):
            msg = f"{where}: {value[:60]!r} holds the character {found[0]!r}, which no text may"
            raise RecipeError(msg)
        if isinstance(value, str) and (found := _VARIABLE.search(value)):
            msg = (
                f"{where}: {found[0]}: recipes take no environment variables; write the value, or "
                "give it on the command line: key=value"
            )
            raise RecipeError(msg)
        if isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
            msg = f"{where}: a whole number of {value.bit_length()} bits, which no key takes"
            raise RecipeError(msg)


def _broken(path: Path, error: yaml.YAMLError) -> RecipeError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark else 1
    problem = getattr(error, "problem", None) or str(error)
    if "'\\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    if "could not determine a constructor" in problem:
        problem = f"{problem.splitlines()[0]}; recipes hold plain values only, no tags"
    return RecipeError(f"{path}:{line}: not YAML that a recipe may use: {problem}")


def _refuse_duplicates(path: Path, root: yaml.Node) -> None:
    problems = []
    for node in _mappings(root, set()):
        seen: dict[Hashable, int] = {}
        for key, _ in node.value:
            name, line = key.value, key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or name == "<<":
                continue
            if name in seen:
                problems.append(f"{path}:{line}: {name}: given twice, first on line {seen[name]}")
            seen.setdefault(name, line)
    if problems:
        raise RecipeError("\n".join(problems))


def _mappings(node: yaml.Node, visited: set[int]) -> Iterator[yaml.MappingNode]:
    if id(node) in visited:
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value, visited)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value, visited)


def _child(node: yaml.Node, key: Key) -> tuple[yaml.Node, int] | None:
    """The node below a key, and the line of the key (of the item, in a list)."""
    if isinstance(node, yaml.MappingNode):
        # A mapping's own keys stand after those that it merges.
        for name, value in reversed(node.value):
            if name.value == str(key):
                return value, name.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        item = node.value[key]
        return item, item.start_mark.line + 1
    return None


def _parse_override(text: str) -> Override:
    path, equals, value = text.partition("=")
    _require_usable(f"command line: {text[:80]!r}", (), text)
    keys = tuple(path.split("."))
    if not equals or not all(keys):
        msg = f"command line: {text}: expected key.path=value, such as stages.base.steps=200"
        raise RecipeError(msg)
    try:
        _refuse_depth(f"command line: {text[:80]!r}", value)
        loaded = yaml.load(value, Loader=_Loader)
        found = _unshare(f"command line: {text[:80]!r}", loaded, [0])
        return Override(text, keys, found)
    except (yaml.YAMLError, *_UNREADABLE, RecursionError):
        msg = f"command line: {text}: the value is not YAML; quote it, such as key='\"text\"'"
        raise RecipeError(msg) from None


def _apply(values: dict[str, Any], override: Override) -> None:
    *parents, last = override.keys
    place: Any = values
    for depth, key in enumerate(parents):
        place = _descend(place, key, override, depth)
    if isinstance(place, list):
        place[_index(place, last, override)] = override.value
    elif isinstance(place, dict):
        place[last] = override.value
    else:
        msg = f"command line: {override.text}: '{parents[-1]}' holds a value, not keys"
        raise RecipeError(msg)


def _descend(place: Any, key: str, override: Override, depth: int) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if not isinstance(place, dict):
        above = ".".join(override.keys[:depth])
        msg = f"command line: {override.text}: '{above}' holds a value, not keys"
        raise RecipeError(msg)
    if override.keys[:depth] == ("stages",) and key not in place:
        msg = f"command line: {override.text}: no stage '{key}'; {nearest(key, map(str, place))}"
        raise RecipeError(msg)
    if place.get(key) is None:
        place[key] = {}
    return place[key]


def _index(place: list[Any], key: str, override: Override) -> int:
    if key.isdecimal() and int(key) < len(place):
        return int(key)
    msg = f"command line: {override.text}: '{key}' is no index into a list of {len(place)} items"
    raise RecipeError(msg)
