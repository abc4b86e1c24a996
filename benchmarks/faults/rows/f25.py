"""F25: every key of every recipe of ours, wrong in each way that a hand gets it wrong."""

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import RecipeError
from configs.yaml_source import Key, read_yaml, yaml_text
from engine.pretraining import PretrainStage
from launcher.recipe import RECIPES, check_world, load_recipe

_KEYS = 150
"""So many keys are tried a repeat, each in every way that it can be wrong."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A key of a recipe: the values' root, the way to it, and whether the schema knows it by name.

    Attributes:
        line: in the text, from 0.
    """

    recipe: str
    values: dict[str, Any]
    text: str
    keys: tuple[Key, ...]
    line: int
    is_known: bool

    @property
    def value(self) -> Any:
        """What stands there."""
        return _at(self.values, self.keys)

    def with_value(self, value: Any) -> str:
        """The recipe with another value there."""
        values = copy.deepcopy(self.values)
        _at(values, self.keys[:-1])[self.keys[-1]] = value
        return yaml_text(values)


def measure(repeats: int, folder: Path) -> Measured:
    """A repeat takes some hundred keys, all of them where repeats are enough."""
    places = [place for path in sorted(RECIPES.glob("*.yaml")) for place in _places(path)]
    random.Random(0).shuffle(places)
    chosen = places[: repeats * _KEYS]
    held, notes, kinds = 0, [], dict.fromkeys([*_WRONG, "contradiction"], 0)
    path = folder / "recipe.yaml"
    for place, kind in ((place, kind) for place in chosen for kind in _WRONG):
        for text, said in _WRONG[kind](place):
            kinds[kind] += 1
            problem = _tried(path, text, said)
            held += problem is None
            notes += [f"{place.recipe}: {'.'.join(map(str, place.keys))}: {kind}: {problem}"] * (
                problem is not None
            )
    for overrides, said in _CONTRADICTIONS:
        kinds["contradiction"] += 1
        problem = _tried(path, (RECIPES / "quickstart.yaml").read_text(), said, overrides)
        held += problem is None
        notes += [f"{overrides}: {problem}"] * (problem is not None)
    of = sum(kinds.values())
    figures = {"keys": len(chosen), "of all keys": len(places), **kinds}
    return Measured(held, of, figures, tuple(notes[:20]))


def _tried(path: Path, text: str, said: str, overrides: tuple[str, ...] = ()) -> str | None:
    """None if it is refused with exit code 2 and tells where; else what came of it."""
    path.write_text(text, encoding="utf-8")
    try:
        recipe = load_recipe(path, overrides)
        check_world(recipe, list(recipe.stages), 2)
        for stage in recipe.stages.values():
            if isinstance(stage, PretrainStage):
                stage.backend.check()
    except RecipeError as error:
        is_told = any(each in str(error) for each in said.split("|")) and error.exit_code == 2
        return None if is_told else f"no '{said}' in: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


def _places(path: Path) -> Iterator[_Place]:
    values = read_yaml(path).values
    text = yaml_text(values)
    recipe = load_recipe(path)
    lines = _lines(text)
    for keys, known in _walk(values, recipe, ()):
        yield _Place(path.name, values, text, keys, lines[keys], known)


def _lines(text: str) -> dict[tuple[Key, ...], int]:
    """Where each key stands in a text."""
    import yaml

    found: dict[tuple[Key, ...], int] = {}

    def note(node: yaml.Node, keys: tuple[Key, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                found[*keys, key.value] = key.start_mark.line
                note(value, (*keys, key.value))
        elif isinstance(node, yaml.SequenceNode):
            for at, value in enumerate(node.value):
                note(value, (*keys, at))

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    note(root, ())
    return found


def _walk(value: Any, typed: Any, keys: tuple[Key, ...]) -> Iterator[tuple[tuple[Key, ...], bool]]:
    if isinstance(value, dict):
        for key, below in value.items():
            known = isinstance(typed, BaseModel)
            yield (*keys, key), known
            inner = getattr(typed, key, None) if known else _item(typed, key)
            yield from _walk(below, inner, (*keys, key))
    elif isinstance(value, list):
        for at, below in enumerate(value):
            yield from _walk(below, _item(typed, at), (*keys, at))


def _item(typed: Any, key: Key) -> Any:
    try:
        return typed[key]
    except (TypeError, KeyError, IndexError):
        return None


def _at(values: Any, keys: tuple[Key, ...]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _of_tag(place: _Place, said: str) -> str:
    """What is told instead, of what holds it, where the key says which of several things it is."""
    key = place.keys[-1]
    return f"|{_dotted(place.keys[:-1])}: {said.format(key)}" if key in {"name", "kind"} else ""


def _dotted(keys: tuple[Key, ...]) -> str:
    return ".".join(map(str, keys))


Wrong = Iterator[tuple[str, str]]


def _typo(place: _Place) -> Wrong:
    if place.is_known:
        values = copy.deepcopy(place.values)
        holder = _at(values, place.keys[:-1])
        name = f"{str(place.keys[-1])[:-1]}x"
        holder[name] = holder.pop(place.keys[-1])
        yield yaml_text(values), _dotted((*place.keys[:-1], name)) + _of_tag(place, "needs '{}'")


def _type(place: _Place) -> Wrong:
    if place.is_known:
        yield place.with_value([[["wrong"]]]), _dotted(place.keys) + _of_tag(place, "no {} '")
    if place.is_known and isinstance(place.value, int | float):
        yield place.with_value("wrong"), _dotted(place.keys)


def _range(place: _Place) -> Wrong:
    is_number = isinstance(place.value, int | float) and not isinstance(place.value, bool)
    if place.is_known and is_number:
        yield place.with_value(-(10**12)), _dotted(place.keys)


def _variable(place: _Place) -> Wrong:
    if not isinstance(place.value, dict | list):
        for text in ("${ONWARD_NO_SUCH}", "$ONWARD_NO_SUCH/runs", "a/${HOME}/b"):
            yield place.with_value(text), _dotted(place.keys)


def _inserted(place: _Place, line: str) -> str:
    lines = place.text.split("\n")
    lines.insert(place.line + 1, line)
    return "\n".join(lines)


def _indent(place: _Place) -> str:
    """What stands before the key in its line, as blanks."""
    line = place.text.split("\n")[place.line]
    return " " * (len(line) - len(line.lstrip(" -")))


def _twice(place: _Place) -> Wrong:
    if not isinstance(place.value, dict | list | str):
        # Behind a whole value; those of several lines end elsewhere.
        text = _inserted(place, f"{_indent(place)}{place.keys[-1]}: 1")
        yield text, f":{place.line + 2}: {place.keys[-1]}: given twice"


def _tab(place: _Place) -> Wrong:
    lines = place.text.split("\n")
    lines[place.line] = "\t" + lines[place.line]
    yield "\n".join(lines), "a tab"


def _tag(place: _Place) -> Wrong:
    for tag in ("!!python/object/apply:os.system", "!!python/name:os.system", "!onward"):
        lines = place.text.split("\n")
        head, _, _ = lines[place.line].partition(":")
        if place.is_known and not isinstance(place.value, dict | list):
            lines[place.line] = f"{head}: {tag} ['touch canary']"
            yield "\n".join(lines), "no tags"


_WRONG: dict[str, Callable[[_Place], Wrong]] = {
    "typo": _typo,
    "type": _type,
    "range": _range,
    "variable": _variable,
    "duplicate": _twice,
    "tab": _tab,
    "tag": _tag,
}
_TWO_PRECISIONS = "{train_batch_size: 8, bf16: {enabled: true}, fp16: {enabled: true}}"
_CONTRADICTIONS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("stages.dapt.model.location=stage:tapt/export",), "stages.dapt.model.location"),
    (("stages.dapt.model.location=stage:dapt/export",), "cannot read from itself"),
    (("stages.dapt.model.location=stage:base/../../x",), "stay inside"),
    (("stages.dapt.model.location=stage:bse/export",), "did you mean 'base'"),
    (("stages.dapt.model.trust_remote_code=true",), "stages.dapt.model"),
    (("stages.prepare.tokenizer.corpora=[none]",), "tokenizer.corpora"),
    (
        (f"stages.base.backend.config={_TWO_PRECISIONS}",),
        "bf16",
    ),
    (("stages.base.backend.config={train_batch_size: 7, train_micro_batch_size_per_gpu: 4}",), "7"),
)
ROW = Row(
    "F25",
    "a recipe: each key mistyped, of another type, out of range, given twice, behind a tab, with a "
    "tag, of a variable that is not set; keys that contradict each other",
    "exit code 2 and where it stands, every time; nothing runs",
    measure,
    repeats=1,
)
