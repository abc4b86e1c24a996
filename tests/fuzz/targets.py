"""Every reader of a file that another may have damaged or made up, and valid files for it."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from configs.deepspeed_json import read_deepspeed
from configs.errors import OnwardError
from configs.yaml_source import read_yaml
from data_pipeline.packing.cache import _MAGIC, keep_arrays, read_arrays
from data_pipeline.preparing.board import Board, Outcome
from data_pipeline.preparing.state import State
from data_pipeline.shards import ShardedDataset, TokenizerRecord
from data_pipeline.shards.layout import index_bytes, parse_index
from data_pipeline.shards.manifest import FILE, Manifest, canonical_digest, parse_manifest
from data_pipeline.shards.write import write_manifest, write_shard
from downstream.records import read_json, read_jsonl
from engine import watchdog
from engine.additions import CARD as ADDITIONS
from engine.additions import adds_to
from engine.checkpoint import commit
from engine.checkpoint.export import CARD, FORMAT, export_problems
from engine.checkpoint.fragments import INDEX
from engine.checkpoint.resume import open_checkpoint
from engine.checkpoint.save import STATE, save
from engine.models import read_shape
from engine.protocols import Fragment, Progress
from launcher.hosts import read_hostfile
from launcher.outcome import Outcome as LastWord
from launcher.outcome import read_outcomes
from launcher.recipe import RECIPES, load_recipe
from launcher.run_folder import RunFolder, Status
from tests.fuzz.mutations import as_json, damaged, rewritten

Try = Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Target:
    """A reader.

    Attributes:
        cases: damaged inputs.
        read: gives one to the reader. What it returns is taken; an OnwardError is an answer, and
            anything else that it raises is a crash.
        share: how many of a hundred thousand inputs it gets, in parts of all; fast ones get more.
    """

    cases: st.SearchStrategy[Any]
    read: Try
    share: int


def _in_file(path: Path, read: Callable[[Path], object]) -> Try:
    def attempt(content: bytes) -> object:
        path.write_bytes(content)
        return read(path)

    return attempt


_RECIPE = b"""\
name: quick
output: runs/quick
seed: 17  # of every random number
base: &base {name: linear, warmup: 2}
stages:
  prepare:
    kind: prepare
    tokenizer: {name: wordpiece, vocabulary_size: 2000, corpora: [general]}
    corpora:
      general:
        sources: [{name: jsonl, path: "a/*.jsonl"}]
        split: {held_out: 0.1}
  dapt:
    kind: pretrain
    model: {name: random, shape: bert_tiny, tokenizer: stage:prepare/tokenizer}
    data:
      length: 64
      sources:
        general: {shards: stage:prepare/corpora/general/train, weight: 1e-1}
    objective: {name: mlm}
    optimizer: {name: adamw, lr: 3.e-4}
    schedule: *base
    steps: 100
    backend:
      name: deepspeed
      config: {train_batch_size: 8, train_micro_batch_size_per_gpu: 4}
    checkpoint: {every: 10, keep: 2}
"""


def _yaml(folder: Path) -> Target:
    seeds = [_RECIPE, b"a: [1, {b: c}]\nd: |\n  text\n", b"&a a: &b [x]\n? c\n: *b\n<<: {e: 1}\n"]
    seeds.append((RECIPES / "additions.yaml").read_bytes()[:1500])
    return Target(damaged(seeds), _in_file(folder / "recipe.yaml", read_yaml), 20)


def _overrides(folder: Path) -> Target:
    (path := folder / "recipe.yaml").write_bytes(_RECIPE)
    words = [b"stages.dapt.steps=5", b"stages.dapt.data.sources={a: {b: 1}}", b"seed=[1, *a]"]
    cases = damaged(words).map(lambda word: word.decode("utf-8", "surrogateescape"))
    return Target(cases, lambda word: read_yaml(path, [word]), 2)


def _recipe(folder: Path) -> Target:
    """Values of a recipe, written as JSON, which is YAML: what pydantic is given."""
    (path := folder / "valid.yaml").write_bytes(_RECIPE.replace(b"base: &base", b"x: &base"))
    values = read_yaml(path).values
    del values["x"]
    cases = rewritten([values]).map(as_json)
    return Target(cases, _in_file(folder / "recipe.yaml", load_recipe), 3)


def _hostfile(folder: Path) -> Target:
    seeds = [
        b"# comment\nnode-1 slots=8\nnode-2 slots=8 # here\n\n",
        b"\xef\xbb\xbfa slots=1\r\nb.c_d slots=1024\r\n",
        b"localhost slots=2\n",
    ]
    return Target(damaged(seeds), _in_file(folder / "hosts", read_hostfile), 15)


def _deepspeed_json(folder: Path) -> Target:
    values = {
        "train_batch_size": 8,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
        "zero_allow_untested_optimizer": True,
    }
    read = _in_file(folder / "deepspeed.json", lambda path: read_deepspeed(str(path)))
    return Target(damaged([as_json(values)]) | rewritten([values]).map(as_json), read, 4)


def _shape(folder: Path) -> Target:
    values = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2}
    read = _in_file(folder / "shape.json", lambda path: read_shape(str(path)))
    return Target(damaged([as_json(values)]) | rewritten([values]).map(as_json), read, 2)


def _shards(folder: Path) -> Manifest:
    tokenizer = TokenizerRecord(
        name="t", sha256="0" * 64, vocabulary_size=300, special={"pad": 0}, prefix=[1], suffix=[2]
    )
    pieces = [
        (np.arange(12, dtype=np.uint16), np.array([5, 4, 3], np.int32), np.ones(12, np.uint8))
    ]
    records = [write_shard(folder, number, 300, iter(pieces)) for number in (0, 1)]
    return write_manifest(folder, tokenizer, records, {"corpus": "c", "counts": {"texts": 3}})


def _index(folder: Path) -> Target:
    del folder
    lengths = np.array([5, 4, 3, 0], np.int32)
    seeds = [
        index_bytes(np.dtype(kind), lengths[:size], np.array(marks, np.int64))
        for kind, size, marks in (("<u2", 4, [0, 1, 2, 4]), ("<i4", 3, [0, 3]), ("<i8", 1, [0, 1]))
    ]
    return Target(damaged(seeds), lambda content: parse_index(content, "x.idx"), 25)


def _manifest(folder: Path) -> Target:
    _shards(folder)
    seed = (folder / FILE).read_bytes()
    return Target(damaged([seed]), lambda content: parse_manifest(content, "manifest.json"), 12)


def _signed_manifest(folder: Path) -> Target:
    """Values that somebody has changed who signs them, before files that are as they were."""
    manifest = _shards(folder)

    def attempt(values: Any) -> object:
        if isinstance(values, dict):
            # What cannot be parsed cannot be signed, either: it goes to the reader as it is.
            with contextlib.suppress(ValueError):
                values["digest"] = canonical_digest(Manifest.model_validate(values))
        (folder / FILE).write_bytes(as_json(values))
        return _read_all(folder)

    return Target(rewritten([manifest.model_dump(mode="json")]), attempt, 3)


def _read_all(folder: Path) -> object:
    found: list[Any] = []
    for verify, mode in (("sizes", "mmap"), ("digests", "pread")):
        data = ShardedDataset.open(folder, verify, mode=mode)  # type: ignore[arg-type]
        found += [data.tokens(at).sum() for at in range(len(data))]
        found += [data.annotations(at).sum() for at in range(len(data)) if data.annotated]
    return found


def _shard_files(folder: Path) -> Target:
    """Bytes of a .bin, .idx or .ann against their manifest: what is read is what was written."""
    manifest = _shards(folder)
    suffixes = (".bin", ".idx", ".ann")
    paths = {suffix: folder / f"{manifest.shards[0].name}{suffix}" for suffix in suffixes}
    kept = {suffix: path.read_bytes() for suffix, path in paths.items()}

    def attempt(case: tuple[str, bytes]) -> None:
        suffix, content = case
        paths[suffix].write_bytes(content)
        try:
            ShardedDataset.open(folder, "digests")
        finally:
            paths[suffix].write_bytes(kept[suffix])
        if content != kept[suffix]:
            msg = f"a changed {suffix} was read"
            raise AssertionError(msg)

    cases = [st.tuples(st.just(suffix), damaged([kept[suffix]])) for suffix in suffixes]
    return Target(st.one_of(cases), attempt, 3)


class _State:
    """What a checkpoint is made of."""

    def fragments(self) -> list[Fragment]:
        import torch

        return [Fragment("w", key, (2, 3), 0, torch.arange(6.0)) for key in ("fp32", "exp_avg")]

    def extra_state(self) -> dict[str, Any]:
        return {"scale": 1.0}


def _checkpoint(folder: Path) -> Path:
    return save(folder, Progress(3), _State(), {"cursor": 5, "due": True}, "print")  # type: ignore[arg-type]


def _checkpoint_manifest(folder: Path) -> Target:
    path = _checkpoint(folder)
    seed = (path / commit.MANIFEST).read_bytes()
    read = _in_file(path / commit.MANIFEST, lambda _: commit.problems_of(path))
    return Target(damaged([seed]), read, 6)


def _signed_checkpoint(folder: Path) -> Target:
    """Manifest, index and state that somebody has changed who signs them."""
    path = _checkpoint(folder)
    names = (commit.MANIFEST, INDEX, STATE)
    seeds = {name: json.loads((path / name).read_bytes()) for name in names}
    cases = [st.tuples(st.just(name), rewritten([seeds[name]])) for name in names]

    def attempt(case: tuple[str, Any]) -> object:
        name, value = case
        manifest = json.loads(json.dumps(seeds[commit.MANIFEST]))
        if name == commit.MANIFEST:
            manifest = value
        else:
            content = as_json(value)
            (path / name).write_bytes(content)
            _record(manifest, path / name)
        if isinstance(manifest, dict):
            manifest.pop("digest", None)
            with contextlib.suppress(ValueError, TypeError):
                manifest["digest"] = commit._own_digest(manifest)
                (path / commit.MANIFEST).write_bytes(commit._rendered(manifest))
        try:
            opened = open_checkpoint(path)
            store = opened.store()
            return [store.whole(name, key) for name in store.names for key in store.state_keys]
        finally:
            for each in names:
                (path / each).write_bytes(commit._rendered(seeds[each]))

    return Target(st.one_of(cases), attempt, 3)


def _record(manifest: dict[str, Any], path: Path) -> None:
    """Give a file in a checkpoint's manifest its size and digest."""
    import xxhash

    content = path.read_bytes()
    for each in manifest["files"]:
        if each["name"] == path.name:
            each |= {"size": len(content), "xxh3_128": xxhash.xxh3_128_hexdigest(content)}


def _card(folder: Path) -> Target:
    (folder / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    files = {"model.safetensors": {"sha256": digest, "bytes": 7}, "sub/x": {"sha256": digest}}
    seed = {"format": FORMAT, "lineage": {"a": [1]}, "files": files, "adaptations": []}

    def attempt(value: Any) -> object:
        if isinstance(value, dict):
            text = json.dumps(value.get("files"), sort_keys=True, separators=(",", ":"))
            value["fingerprint"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / CARD).write_bytes(as_json(value))
        return export_problems(folder)

    return Target(rewritten([seed]), attempt, 3)


def _additions(folder: Path) -> Target:
    (folder / "adaptation.safetensors").write_bytes(b"weights")
    seed = {
        "format": "onward-adaptation-1",
        "adaptations": [{"settings": {"name": "prefix", "length": 3}, "modules": ["a"]}],
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }
    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    return Target(cases, _in_file(folder / ADDITIONS, lambda _: adds_to(folder)), 2)


def _status(folder: Path) -> Target:
    status = Status(
        state="running", key="k", started="2026-01-01", config={"a": 1}, version=1, seed=0
    )
    run = RunFolder(folder)
    run.write_status("stage", status)
    seed = status.model_dump(mode="json")
    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    return Target(cases, _in_file(folder / "stage/status.json", lambda _: run.status("stage")), 3)


def _outcomes(folder: Path) -> Target:
    seed = LastWord(rank=0, host="a", pid=1, state="error", kind="DataError").model_dump()
    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    return Target(cases, _in_file(folder / "rank-0.json", lambda _: read_outcomes(folder)), 3)


def _signs(folder: Path) -> Target:
    seed = {"rank": 0, "host": "a", "pid": 1, "count": 3, "phase": "step", "step": 2, "silent": 1.0}
    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    read = _in_file(
        watchdog._record_of(folder, 0), lambda path: watchdog.describe(path.parent.parent, 1.0)
    )
    watchdog._record_of(folder, 0).parent.mkdir(parents=True, exist_ok=True)
    return Target(cases, read, 1)


def _prepared(folder: Path) -> Target:
    state = State("k", {"corpora.a": [{"name": "x", "stamp": {}, "digest": "d"}]}, {"a/train": "e"})
    state.write(folder)
    seed = json.loads((folder / "prepared.json").read_bytes())

    def read(path: Path) -> object:
        found = State.read(path.parent, "k")
        return found.intact(path.parent), found.fingerprint

    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    return Target(cases, _in_file(folder / "prepared.json", read), 2)


def _board(folder: Path) -> Target:
    (folder / "made").write_bytes(b"x")
    board = Board(folder / "records", folder)
    board.note("clean", "a.0", Outcome({"rejected": 0}, (folder / "made",)))
    path = folder / "records/clean/a.0.json"
    seed = json.loads(path.read_bytes())

    def read(_: Path) -> object:
        board.is_done("clean", "a.0")
        with contextlib.suppress(OnwardError):
            board.facts("clean", "a.0")
        return board.done("clean")

    cases = damaged([as_json(seed)]) | rewritten([seed]).map(as_json)
    return Target(cases, _in_file(path, read), 2)


def _plans(folder: Path) -> Target:
    """A kept packing plan; one in three has a checksum that fits."""
    import xxhash

    path = folder / "plan"
    keep_arrays({"a": np.arange(9), "b": np.zeros((2, 3), np.uint8)}, path)
    seed = path.read_bytes()
    begin = len(_MAGIC) + 17

    def signed(content: bytes) -> bytes:
        rest = content[begin:]
        return b"%s%s\n%s" % (_MAGIC, xxhash.xxh3_64_hexdigest(rest).encode(), rest)

    def read(path: Path) -> object:
        return {name: array.sum() for name, array in (read_arrays(path) or {}).items()}

    seeds = [seed, seed.replace(b'"<i8"', b'"|O" '), seed.replace(b"[9]", b"[-9]")]
    return Target(damaged(seeds) | damaged(seeds).map(signed), _in_file(path, read), 3)


def _records(folder: Path) -> Target:
    seeds = [b'{"a": 1, "b": [2]}\n{"a": 3}\n']
    path = folder / "predictions.jsonl"

    def attempt(content: bytes) -> object:
        path.write_bytes(content)
        with contextlib.suppress(OnwardError):
            read_json(path)
        return read_jsonl(path)

    return Target(damaged(seeds), attempt, 2)


READERS: dict[str, Callable[[Path], Target]] = {
    "recipe as YAML": _yaml,
    "recipe as values": _recipe,
    "overrides": _overrides,
    "hostfile": _hostfile,
    "DeepSpeed JSON": _deepspeed_json,
    "model shape": _shape,
    "index": _index,
    "manifest": _manifest,
    "signed manifest": _signed_manifest,
    "shard files": _shard_files,
    "checkpoint manifest": _checkpoint_manifest,
    "signed checkpoint": _signed_checkpoint,
    "export card": _card,
    "additions card": _additions,
    "status": _status,
    "outcomes": _outcomes,
    "signs of life": _signs,
    "prepared state": _prepared,
    "board records": _board,
    "packing plans": _plans,
    "records": _records,
}
"""By name: from an empty folder that each works in."""
