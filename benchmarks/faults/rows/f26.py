"""F26: hostile files: a canary that they would let out, and a file they would write elsewhere."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import OnwardError
from engine.checkpoint.save import Alone
from tests.engine.checkpoint.fakes import FakeBackend

CANARY = "ONWARD_CANARY"


class _Hostile:
    """Touches the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(os.environ[CANARY]),)


def measure(repeats: int, folder: Path) -> Measured:
    """Each repeat tries every attack; it holds if it is refused by name and nothing came of it."""
    held, notes = 0, []
    for number in range(repeats):
        for name, attack in _ATTACKS.items():
            place = folder / f"{number}-{name.replace(' ', '-').replace('/', '-')}"
            (inside := place / "inside").mkdir(parents=True)
            (place / "outside.json").write_text("{}")
            before = _outside(place)
            with mock.patch.dict(os.environ, {CANARY: str(place / "canary")}):
                problem = _refusal(attack, inside)
            if _outside(place) != before:
                problem = f"it ran, or wrote elsewhere: {sorted(_outside(place))}"
            held += problem is None
            notes += [f"{name}: {problem}"] * (problem is not None)
    figures = {"attacks": len(_ATTACKS), "canaries": len([n for n in notes if "it ran" in n])}
    return Measured(held, repeats * len(_ATTACKS), figures, tuple(notes))


def _refusal(attack: Callable[[Path], object], folder: Path) -> str | None:
    try:
        found = attack(folder)
    except OnwardError as error:
        return None if str(error) else "refused without a word"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if found is None else f"taken: {found}"


def _outside(place: Path) -> set[tuple[str, bytes]]:
    return {(each.name, each.read_bytes()) for each in place.iterdir() if each.is_file()}


def _scorer(folder: Path) -> object:
    from data_pipeline.selection import TfidfSimilarity
    from data_pipeline.selection.passes import _load

    (folder / "scorer").write_bytes(pickle.dumps(_Hostile()))
    try:
        return _load(TfidfSimilarity(), folder / "scorer")
    except ValueError:
        return None  # numpy's: it holds no arrays


def _guard(folder: Path) -> object:
    array = np.array([_Hostile()], object)
    np.savez(folder / "guard.npz", rows=array)
    try:
        with np.load(folder / "guard.npz") as arrays:
            return arrays["rows"]
    except ValueError:
        return None


def _weights(zipped: bool) -> Callable[[Path], object]:  # noqa: FBT001 -- one of two files
    def attack(folder: Path) -> object:
        import torch

        model = _model(folder)
        (model / "model.safetensors").unlink()
        if zipped:
            torch.save({"weight": _Hostile()}, model / "pytorch_model.bin")
        else:
            content = pickle.dumps({"weight": _Hostile()}, protocol=2)
            (model / "pytorch_model.bin").write_bytes(content)
        return _built(model)

    return attack


def _model(folder: Path) -> Path:
    from engine.models import RandomModel
    from tests.engine import tiny

    tokenizer = str(tiny.tokenizer_folder(folder / "tokenizer"))
    made = RandomModel(shape="bert_tiny", tokenizer=tokenizer).build(Path, "masked_lm", 0)
    made.model.save_pretrained(model := folder / "model")
    made.tokenizer.save_pretrained(model)
    return model


def _built(model: Path) -> object:
    from engine.models import PretrainedModel

    return PretrainedModel(location=str(model)).build(Path, "masked_lm", 0)


def _auto_map(file: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        model = _model(folder)
        code = f"import os\nopen(os.environ['{CANARY}'], 'w')\nclass Thing: pass\n"
        (model / "thing.py").write_text(code)
        values = json.loads((model / file).read_text())
        values["auto_map"] = {
            "AutoConfig": "thing.Thing",
            "AutoModelForMaskedLM": "thing.Thing",
            "AutoTokenizer": ["thing.Thing", None],
        }
        values["model_type"] = "thing"
        values["tokenizer_class"] = "ThingTokenizer"
        (model / file).write_text(json.dumps(values))
        _built(model)
        # A tokenizer.json is taken as it is, and the class beside it left alone.
        return None if file == "tokenizer_config.json" else "a model of no known kind"

    return attack


def _checkpoint(folder: Path) -> Path:
    from engine.checkpoint.save import save
    from engine.protocols import Progress

    return save(folder, Progress(4), FakeBackend(), {}, "recipe", Alone())


def _manifest(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from engine.checkpoint import commit, open_checkpoint

        path = _checkpoint(folder)
        body = json.loads((path / commit.MANIFEST).read_bytes())
        body["files"].append({"name": name, "size": 2, "xxh3_128": "0" * 32})
        del body["digest"]
        body["digest"] = commit._own_digest(body)
        (path / commit.MANIFEST).write_bytes(commit._rendered(body))
        return open_checkpoint(path)

    return attack


def _index(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from engine.checkpoint.fragments import INDEX
        from engine.checkpoint.store import FragmentStore

        path = _checkpoint(folder)
        text = (path / INDEX).read_text()
        found = json.loads(text)
        for parameter in found["parameters"].values():
            for state in parameter["states"].values():
                state["pieces"] = [[name, *piece[1:]] for piece in state["pieces"]]
        (path / INDEX).write_text(json.dumps(found))
        return FragmentStore(path).whole("scale")

    return attack


def _link(folder: Path) -> object:
    from engine.checkpoint import open_checkpoint
    from engine.checkpoint.save import STATE

    path = _checkpoint(folder)
    (path / STATE).rename(folder.parent / "outside.json")
    (path / STATE).symlink_to(folder.parent / "outside.json")
    try:
        return open_checkpoint(path)
    finally:
        (folder.parent / "outside.json").write_text("{}")


def _shards(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from data_pipeline.shards import ShardedDataset
        from data_pipeline.shards.manifest import FILE
        from tests.fuzz.targets import _shards as make

        make(folder)
        values = json.loads((folder / FILE).read_bytes())
        values["shards"][0]["name"] = name
        (folder / FILE).write_text(json.dumps(values))
        return ShardedDataset.open(folder)

    return attack


def _stage(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from launcher.recipe import load_recipe

        stage = {"kind": "report"}
        values = {"name": "; touch x", "output": str(folder / "run"), "stages": {name: stage}}
        (folder / "recipe.yaml").write_text(json.dumps(values))
        return load_recipe(folder / "recipe.yaml")

    return attack


def _corpus(name: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from launcher.recipe import load_recipe

        source = {"name": "jsonl", "path": "x.jsonl"}
        stage = {
            "kind": "prepare",
            "tokenizer": {"name": "wordpiece", "vocabulary_size": 300, "corpora": [name]},
            "corpora": {name: {"sources": [source]}},
        }
        values = {"name": "x", "output": str(folder / "run"), "stages": {"prepare": stage}}
        (folder / "recipe.yaml").write_text(json.dumps(values))
        return load_recipe(folder / "recipe.yaml")

    return attack


def _yaml(text: str) -> Callable[[Path], object]:
    def attack(folder: Path) -> object:
        from configs.yaml_source import read_yaml

        (folder / "recipe.yaml").write_text(text)
        return read_yaml(folder / "recipe.yaml")

    return attack


def _record(folder: Path) -> object:
    from data_pipeline.preparing.values import from_json

    for kind in ("subprocess:Popen", "data_pipeline.sources.files:os.system", "os:system"):
        try:
            return from_json({"kind of value": kind, "fields": {"args": f"touch {folder}"}})
        except OnwardError:
            continue
    return None


def _bomb(folder: Path) -> object:
    """A line of half a gigabyte in a packed file: passed over, in little memory."""
    import resource

    from data_pipeline.sources import JsonlSource
    from data_pipeline.sources.source import Rejected

    with gzip.open(folder / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(b" " * (1 << 20))
        file.write(b"\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = JsonlSource(path=str(folder / "bomb.jsonl.gz"))
    found = [item for part in source.parts(Path) for item in part.read()]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    if len(found) == 1 and isinstance(found[0], Rejected) and grown < 300:
        return None
    return f"{found[:1]}, {grown} MiB more"


def _deepspeed(folder: Path) -> object:
    import torch

    from engine.checkpoint.import_deepspeed.reading import Reader

    torch.save({"module": _Hostile()}, folder / "mp_rank_00_model_states.pt")
    return Reader(folder).load(folder / "mp_rank_00_model_states.pt")


_OUT = ("../outside.json", "/etc/passwd", "a/../../outside.json", "..\\outside.json", "a\0b")
_ATTACKS: dict[str, Callable[[Path], object]] = {
    "a pickle for a scorer": _scorer,
    "objects in an npz": _guard,
    "a zipped pickle for weights": _weights(zipped=True),
    "a bare pickle for weights": _weights(zipped=False),
    "code in a config": _auto_map("config.json"),
    "code in a tokenizer": _auto_map("tokenizer_config.json"),
    "a pickle for DeepSpeed's state": _deepspeed,
    **{f"checkpoint manifest {n}": _manifest(name) for n, name in enumerate(_OUT)},
    **{f"checkpoint index {n}": _index(name) for n, name in enumerate(_OUT)},
    "a link in a checkpoint": _link,
    **{f"shard manifest {n}": _shards(name) for n, name in enumerate(_OUT)},
    **{f"stage name {n}": _stage(name) for n, name in enumerate((*_OUT, "; touch x", "$(x)"))},
    **{f"corpus name {n}": _corpus(name) for n, name in enumerate((*_OUT, "; touch x", "a\n"))},
    "a tag in a recipe": _yaml("a: !!python/object/apply:pathlib.Path.touch [x]"),
    "a recipe too deep": _yaml("a: " + "[" * 100_000),
    "a record of another class": _record,
    "a packed bomb": _bomb,
}
ROW = Row(
    "F26",
    "hostile files: pickles, code of models and tokenizers, names that lead out of their folder, "
    "links, tags, a packed bomb",
    "refused by name; nothing runs, nothing is written elsewhere, memory stays bounded",
    measure,
    repeats=1,
)
