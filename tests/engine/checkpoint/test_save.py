"""Saving and finding checkpoints: whole or not at all, whoever writes and whatever is damaged."""

import errno
import json
import os
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import CheckpointError
from engine.checkpoint import (
    FragmentStore,
    commit,
    describe,
    disk,
    newest,
    open_checkpoint,
    prune,
    save,
)
from engine.checkpoint.commit import ASIDE, FileRecord, seal
from engine.checkpoint.disk import DiskError
from engine.checkpoint.fragments import DTYPES, Piece, make_index
from engine.checkpoint.save import Alone
from engine.protocols import Fragment, Progress
from tests.engine.checkpoint.fakes import (
    KEYS,
    SHAPES,
    FakeBackend,
    FakeTensor,
    ThreadRank,
    on_ranks,
    save_on_ranks,
    save_step,
    values_of,
)

FILES = ("rank-00000-of-00001.safetensors", "index.json", "state.json", "manifest.json")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new try comes at once."""
    monkeypatch.setattr(disk, "PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Steps 4 and 8, intact."""
    folder = tmp_path / "checkpoints"
    save_step(folder, 4)
    save_step(folder, 8)
    return folder


def found_step(root: Path) -> int | None:
    found = newest(root, "recipe")
    return found.step if found else None


def leftovers(root: Path) -> list[str]:
    return [entry.name for entry in root.glob(f"{ASIDE}*")]


def test_what_was_saved_comes_back(root: Path) -> None:
    found = newest(root, "recipe")
    assert found is not None
    assert (found.step, found.fingerprint, found.world) == (8, "recipe", 1)
    assert found.state == {"cursor": 64}
    assert found.backend_state == {"loss_scale": 256.0}
    store = found.store()
    assert store.names == list(SHAPES)
    assert store.state_keys == ["ema", "exp_avg"]
    for name in SHAPES:
        for key in KEYS:
            np.testing.assert_array_equal(store.whole(name, key), values_of(8, name, key))
    assert (root / "latest").read_text() == "step-8\n"


def test_safetensors_reads_the_files_itself(root: Path) -> None:
    from safetensors.numpy import load_file

    tensors = load_file(root / "step-8" / FILES[0])
    expected = values_of(8, "layer.bias", "ema")
    np.testing.assert_array_equal(tensors["layer.bias|ema|0"], expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=st.integers(1, 9), data=st.data())
def test_any_range_reads_the_same_whoever_wrote_it(
    tmp_path_factory: pytest.TempPathFactory, world: int, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("ranges")
    outcomes = save_on_ranks(root, 3, world, {})
    assert outcomes == [root / "step-3"] * world
    store = open_checkpoint(root / "step-3").store()
    name = data.draw(st.sampled_from(sorted(SHAPES)))
    key = data.draw(st.sampled_from(KEYS))
    flat = values_of(3, name, key).reshape(-1)
    start = data.draw(st.integers(0, flat.size))
    length = data.draw(st.integers(0, flat.size - start))
    np.testing.assert_array_equal(
        store.read(name, key, start, length), flat[start : start + length]
    )


def test_a_range_or_state_that_is_not_there_is_named(root: Path) -> None:
    store = open_checkpoint(root / "step-8").store()
    with pytest.raises(CheckpointError, match=r"scale: asked for values 0 to 2, it has 1"):
        store.read("scale", "fp32", 0, 2)
    with pytest.raises(CheckpointError, match="scale has no state 'anchor', it has: ema"):
        store.read("scale", "anchor", 0, 1)
    with pytest.raises(CheckpointError, match="no parameter 'other'"):
        store.whole("other")


def test_nothing_saved_is_no_error(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent", "recipe") is None
    assert newest(tmp_path, "recipe") is None


def test_another_recipes_checkpoint_is_refused(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-8: made by another recipe.*--redo"):
        newest(root, "another")
    with pytest.raises(CheckpointError, match="belongs to another recipe"):
        save_step(root, 8, fingerprint="another")
    assert found_step(root) == 8


def test_steps_are_ordered_as_numbers(root: Path) -> None:
    save_step(root, 10)
    assert found_step(root) == 10


def test_the_newest_few_stay(root: Path) -> None:
    for step in (12, 16):
        save_step(root, step)
    prune(root, keep=2, newest=16)
    assert sorted(entry.name for entry in root.iterdir()) == ["latest", "step-12", "step-16"]


def test_pruning_spares_steps_that_were_not_reached_again(root: Path) -> None:
    """After falling back to step 4, the broken step 8 is no reason to delete the good ones."""
    (root / "step-8" / "manifest.json").unlink()
    save_step(root, 6)
    prune(root, keep=2, newest=6)
    assert found_step(root) == 6
    assert (root / "step-4").is_dir()


def test_an_intact_checkpoint_is_not_written_again(root: Path) -> None:
    before = (root / "step-8" / "manifest.json").stat().st_ino
    assert save_step(root, 8) == root / "step-8"
    assert (root / "step-8" / "manifest.json").stat().st_ino == before


def test_a_broken_one_is_replaced_when_its_step_comes_again(root: Path) -> None:
    (root / "step-8" / "state.json").write_text("{}")
    assert found_step(root) == 4
    save_step(root, 8)
    assert found_step(root) == 8
    assert not leftovers(root)


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_by_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_middle_bit(path: Path) -> None:
    flip(path, path.stat().st_size * 4)


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def link_elsewhere(path: Path) -> None:
    outside = path.parents[2] / "outside"
    path.rename(outside)
    path.symlink_to(outside)


DAMAGES = [
    cut_to_nothing,
    cut_in_half,
    cut_by_a_byte,
    lengthen,
    flip_a_middle_bit,
    link_elsewhere,
    Path.unlink,
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_the_older_one_used(
    root: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(root / "step-8" / name)
    assert found_step(root) == 4
    assert str(root / "step-8" / name) in caplog.text


def test_no_flipped_bit_is_ever_trained_on(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name in FILES:
        path = root / "step-8" / name
        for bit in rng.integers(0, path.stat().st_size * 8, 40):
            flip(path, int(bit))
            assert found_step(root) == 4, (name, bit)
            flip(path, int(bit))
    assert found_step(root) == 8


def test_only_broken_ones_is_an_error_that_names_them(root: Path) -> None:
    (root / "step-4" / "index.json").unlink()
    flip_a_middle_bit(root / "step-8" / FILES[0])
    with pytest.raises(CheckpointError) as caught:
        newest(root, "recipe")
    message = str(caught.value)
    assert f"{root / 'step-4' / 'index.json'}: missing" in message
    assert f"{root / 'step-8' / FILES[0]}: damaged" in message
    assert "no intact checkpoint among 2" in message


def test_what_does_not_belong_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "step-8" / "rank-00001-of-00002.safetensors").write_bytes(b"")
    assert found_step(root) == 4
    shutil.copytree(root / "step-4", tmp_path / "outside")
    (root / "step-12").symlink_to(tmp_path / "outside")
    (root / "step-13").write_text("not a folder")
    assert found_step(root) == 4


def test_a_manifest_never_leads_out_of_its_folder(root: Path) -> None:
    from engine.checkpoint.commit import MANIFEST

    record = FileRecord("../step-4/state.json", 0, "")
    (root / "step-8" / MANIFEST).unlink()
    facts = {"step": 8, "fingerprint": "recipe", "world": 1}
    seal(root / "step-8", "step-8", facts, [record])
    with pytest.raises(CheckpointError, match=r"'\.\./step-4/state\.json' leads out"):
        open_checkpoint(root / "step-8")


@pytest.mark.parametrize("hint", ["", "../outside", "step-999", None])
def test_latest_is_only_a_hint(root: Path, hint: str | None) -> None:
    (root / "latest").unlink()
    if hint is not None:
        (root / "latest").write_text(hint)
    assert found_step(root) == 8


def test_strays_are_no_checkpoints_and_go_with_the_next_save(root: Path) -> None:
    shutil.copytree(root / "step-8", root / f"{ASIDE}step-12-0123abcd")
    (root / f"{ASIDE}latest-0123abcd").write_text("step-12")
    (root / "step-9x").mkdir()
    assert found_step(root) == 8
    save_step(root, 12)
    assert not leftovers(root)
    assert found_step(root) == 12


def test_a_state_that_is_not_json_saves_nothing(root: Path) -> None:
    backend: Any = FakeBackend(12)
    for bad in (object(), float("nan")):
        with pytest.raises(CheckpointError, match=r"state\.json: state that JSON cannot hold"):
            save(root, Progress(12), backend, {"hook": bad}, "recipe", Alone())
    assert found_step(root) == 8
    assert not leftovers(root)


class GapBackend(FakeBackend):
    """Forgets the tail of what it owns."""

    def fragments(self) -> Iterator[Fragment]:
        for piece in super().fragments():
            short: Any = FakeTensor(piece.tensor.numpy()[:-1])
            yield Fragment(piece.name, piece.key, piece.shape, piece.start, short)


def test_pieces_that_leave_a_gap_are_not_saved(root: Path) -> None:
    backend: Any = GapBackend(12)
    with pytest.raises(CheckpointError, match=r"embedding: 34 values of 'fp32' are held"):
        save(root, Progress(12), backend, {}, "recipe", Alone())
    assert found_step(root) == 8


def test_pieces_that_overlap_are_not_saved(root: Path) -> None:
    def act(ranks: ThreadRank) -> Path:
        everything: Any = FakeBackend(12)
        return save(root, Progress(12), everything, {}, "recipe", ranks)

    outcomes = on_ranks(2, act)
    assert [type(outcome) for outcome in outcomes] == [CheckpointError] * 2
    assert "do not join" in str(outcomes[0])
    assert make_index([]) == {"parameters": {}}


def fail_from(monkeypatch: pytest.MonkeyPatch, number: int, code: int, times: int) -> None:
    """Let ``times`` fsyncs fail, beginning with the ``number``-th from now on."""
    calls = iter(range(1, sys.maxsize))
    sync = os.fsync

    def fsync(handle: int) -> None:
        if number <= next(calls) < number + times:
            raise OSError(code, os.strerror(code))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_costs_nothing_that_was_there(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    fail_from(monkeypatch, number, code, sys.maxsize)
    outcomes = save_on_ranks(root, 12, 2, {})
    assert [type(outcome) for outcome in outcomes] == [DiskError] * 2, outcomes
    message = str(outcomes[0])
    assert message == str(outcomes[1])
    assert str(root) in message
    assert os.strerror(code) in message
    assert " bytes free" in message
    monkeypatch.undo()
    assert not leftovers(root)
    assert found_step(root) == 8


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_moments_trouble_is_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    fail_from(monkeypatch, 1, code, 2)
    save_step(root, 12)
    assert caplog.text.count("trying again") == 2
    assert FILES[0] in caplog.text
    store = open_checkpoint(root / "step-12").store()
    np.testing.assert_array_equal(store.whole("scale"), values_of(12, "scale", "fp32"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_limit_in_mid_shard_is_reported(root: Path) -> None:
    with largest_file(512), pytest.raises(DiskError, match="File too large") as caught:
        save_step(root, 12)
    assert FILES[0] in str(caught.value)
    assert found_step(root) == 8
    assert not leftovers(root)


def test_a_full_disk_is_seen_before_writing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(DiskError, match=r"no space: \d+ bytes needed, 100 bytes free"):
        save_step(root, 12)
    monkeypatch.undo()
    assert found_step(root) == 8


def test_a_root_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="file"):
        save_step(tmp_path / "file" / "checkpoints", 4)


def test_ranks_split_the_reading_and_agree(root: Path) -> None:
    save_on_ranks(root, 12, 3, {"cursor": 1})
    assert [found.step for found in on_ranks(2, lambda ranks: newest(root, "recipe", ranks))] == [
        12,
        12,
    ]
    flip_a_middle_bit(root / "step-12" / "rank-00001-of-00003.safetensors")
    for world in (1, 2, 3, 5):
        found = on_ranks(world, lambda ranks: newest(root, "recipe", ranks))
        assert [each.step for each in found] == [8] * world


def test_describe_says_what_is_there(root: Path, tmp_path: Path) -> None:
    (root / "step-8" / "state.json").unlink()
    facts = json.loads(json.dumps(describe(root)))
    assert facts["kind"] == "checkpoints"
    assert facts["intact"]
    broken, whole = facts["steps"]
    assert (broken["intact"], whole["intact"]) == (False, True)
    assert "state.json: missing" in broken["problems"][0]
    assert whole["parameters"] == {name: list(shape) for name, shape in SHAPES.items()}
    assert describe(root / "step-4")["optimizer_state"] == ["ema", "exp_avg"]
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        describe(tmp_path)


def test_a_renamed_or_swapped_folder_is_refused(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "step-4").rename(root / "step-99")
    assert found_step(root) == 8
    assert "step-99: renamed: it was saved as 'step-4'" in caplog.text
    (root / "step-99").rename(root / "step-4")
    for name in FILES[:3]:
        (root / "step-8" / name).write_bytes((root / "step-4" / name).read_bytes())
    assert found_step(root) == 4


def test_swapped_shards_are_refused(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_on_ranks(root, 12, 2, {})
    one, two = (root / "step-12" / f"rank-0000{n}-of-00002.safetensors" for n in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    assert found_step(root) == 8
    assert f"{one}: " in caplog.text
    assert f"{two}: " in caplog.text


@pytest.mark.parametrize(
    "name", ["../step-4/state.json", "..", "", "/etc/passwd", "a/b", "a\0b", 3, None]
)
def test_neither_manifest_nor_index_leads_out(root: Path, name: Any) -> None:
    """Also not when whoever changed them has made the digests agree."""
    folder = root / "step-8"
    index = json.loads((folder / "index.json").read_text())
    index["parameters"]["scale"]["states"]["fp32"]["pieces"][0][0] = name
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: not the index .* leads out"):
        FragmentStore(folder)
    (folder / "manifest.json").unlink()
    facts = {"step": 8, "fingerprint": "recipe", "world": 1}
    seal(folder, "step-8", facts, [FileRecord(name, 0, "")])
    with pytest.raises(CheckpointError, match=r"manifest\.json: .* leads out"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "files", [None, 7, {}, [7], [{"name": "a"}], [{"name": "a", "size": "x", "xxh3_128": ""}]]
)
def test_a_manifest_that_names_nothing_is_refused(root: Path, files: Any) -> None:
    body = {"format": commit.FORMAT, "name": "step-8", "files": files}
    (root / "step-8" / "manifest.json").unlink()
    commit.write_json(
        root / "step-8" / "manifest.json", {**body, "digest": commit._own_digest(body)}
    )
    with pytest.raises(CheckpointError, match=r"manifest\.json|not part of this checkpoint"):
        open_checkpoint(root / "step-8")


@pytest.mark.parametrize(
    "change",
    [
        lambda scale: scale.update(shape=[2]),
        lambda scale: scale["states"]["fp32"].update(dtype="BF16"),
        lambda scale: scale["states"]["fp32"].update(dtype="I64"),
        lambda scale: scale["states"]["fp32"]["pieces"][0].__setitem__(2, 2),
        lambda scale: scale["states"]["fp32"]["pieces"].clear(),
        lambda scale: scale.pop("states"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_refused(root: Path, change: Any) -> None:
    path = root / "step-8" / "index.json"
    index = json.loads(path.read_text())
    change(index["parameters"]["scale"])
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"step-8/(index|rank)"):
        FragmentStore(root / "step-8").whole("scale")


def test_sizes_alone_leave_out_the_weights_and_nothing_else(root: Path) -> None:
    flip_a_middle_bit(root / "step-8" / FILES[0])
    seen = newest(root, "recipe", verify="sizes")
    assert seen is not None
    assert seen.state == {"cursor": 64}
    assert found_step(root) == 4
    flip_a_middle_bit(root / "step-8" / "state.json")
    seen = newest(root, "recipe", verify="sizes")
    assert seen is not None
    assert seen.step == 4


def test_another_host_may_be_late_to_see_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared file system shows rank 1 the newest folder only at its third look."""
    looks = iter(range(1, sys.maxsize))
    known = commit._problems_of

    def problems_of(folder: Path, share: slice) -> list[str]:
        late = threading.current_thread() in others and folder.name == "step-8"
        return [f"{folder}: late"] if late and next(looks) < 3 else known(folder, share)

    others: set[Any] = set()
    monkeypatch.setattr(commit, "_problems_of", problems_of)

    def act(ranks: ThreadRank) -> Any:
        if ranks.rank() == 1:
            others.add(threading.current_thread())
        return newest(root, "recipe", ranks)

    assert [found.step for found in on_ranks(2, act)] == [8, 8]


def test_low_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    held = {
        "fp32": torch.randn(6),
        "exp_avg": torch.randn(6).bfloat16(),
        "exp_avg_sq": torch.randn(12).half()[::2],
    }

    class Low(FakeBackend):
        def fragments(self) -> Iterator[Fragment]:
            for key, tensor in held.items():
                yield Fragment("weight", key, (2, 3), 0, tensor)

    backend: Any = Low()
    folder = save(tmp_path, Progress(1), backend, {}, "recipe", Alone())
    store = open_checkpoint(folder).store()
    for key, tensor in held.items():
        assert store.read("weight", key, 1, 4).equal(tensor[1:5].float())
    with safe_open(folder / FILES[0], framework="pt") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert set(found.values()) == {"F32", "BF16", "F16"}
    assert (folder / FILES[0]).stat().st_size % 2 == 0


@pytest.mark.parametrize("made", ["torch.zeros(2, 3)", "torch.zeros(6, dtype=torch.float64)"])
def test_what_has_no_place_in_a_file_is_refused(tmp_path: Path, made: str) -> None:
    import torch

    tensors = {
        "torch.zeros(2, 3)": torch.zeros(2, 3),
        "torch.zeros(6, dtype=torch.float64)": torch.zeros(6, dtype=torch.float64),
    }

    class Odd(FakeBackend):
        def fragments(self) -> Iterator[Fragment]:
            yield Fragment("weight", "fp32", (2, 3), 0, tensors[made])

    backend: Any = Odd()
    with pytest.raises(CheckpointError, match=r"weight: 'fp32' is .*expected one dimension of"):
        save(tmp_path, Progress(1), backend, {}, "recipe", Alone())


def test_ranks_that_differ_in_dtype_do_not_join() -> None:
    one = Piece("w", "exp_avg", (4,), 0, 2, DTYPES["float32"], "a")
    two = Piece("w", "exp_avg", (4,), 2, 2, DTYPES["bfloat16"], "b")
    with pytest.raises(CheckpointError, match=r"do not join: .*F32.*BF16"):
        make_index([one, two])


def test_pruning_counts_sound_ones_alone(root: Path) -> None:
    save_step(root, 12)
    cut_by_a_byte(root / "step-8" / FILES[0])
    prune(root, keep=2, newest=12)
    assert (root / "step-4").is_dir()
    # Nothing goes where the newest itself is not there whole.
    cut_by_a_byte(root / "step-12" / FILES[0])
    prune(root, keep=1, newest=12)
    assert (root / "step-4").is_dir()
    assert found_step(root) == 4


def test_pruning_spares_what_stays_for_ever(root: Path) -> None:
    for step in (12, 16, 20):
        save_step(root, step)
    prune(root, keep=1, newest=20, keep_every=8)
    assert sorted(entry.name for entry in root.glob("step-*")) == ["step-16", "step-20", "step-8"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, r"no space \(No space left on device\): \d+ bytes needed, \d+ bytes free"),
        (errno.EDQUOT, r"no space \(Disk quota exceeded\): \d+ bytes needed, \d+ bytes free"),
        (errno.EFBIG, r"no space \(File too large\): \d+ bytes needed.*ulimit -f"),
        (errno.EROFS, r"not to be written \(Read-only file system\).*make the folder writable"),
        (errno.EACCES, r"not to be written \(Permission denied\)"),
        (errno.EIO, r"Input/output error: \d+ bytes needed, \d+ bytes free"),
    ],
)
def test_a_disk_that_will_not_says_why_and_how_much(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(commit, "_write_all", refuse)
    with pytest.raises(DiskError, match=words) as caught:
        save_step(root, 12)
    assert FILES[0] in str(caught.value)
    monkeypatch.undo()
    assert found_step(root) == 8
    assert not leftovers(root)


def test_a_disk_without_names_left_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNames:
        f_files, f_favail = 100, 0
        f_bavail = f_bfree = f_blocks = f_frsize = 4096

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(commit, "_write_all", refuse)
    monkeypatch.setattr(os, "statvfs", lambda _: NoNames())
    with pytest.raises(DiskError, match=r"no space for another file .*delete small files"):
        save_step(root, 12)


@pytest.mark.parametrize("number", range(1, 12))
def test_a_disk_that_fills_up_at_any_write(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = iter(range(1, sys.maxsize))
    write = commit._write_all

    def some(file: Any, rest: memoryview) -> None:
        if next(calls) >= number:
            file.write(rest[: len(rest) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file, rest)

    monkeypatch.setattr(commit, "_write_all", some)
    with pytest.raises(DiskError, match="no space"):
        save_step(root, 12)
    monkeypatch.undo()
    assert found_step(root) == 8
    assert not leftovers(root)


def test_pruning_spares_what_may_be_gone_back_to_or_asked_for(root: Path) -> None:
    for step in (12, 16, 20, 24):
        save_step(root, step)
    # A run that resumes from 20 may ask for 16, one from 8 for 4; what came after 9 is in doubt.
    best = {20: 16, 16: 16, 12: 12, 24: 24, 8: 4}
    prune(root, keep=2, newest=24, in_doubt=(9, 30), needs=best.get)
    stays = ["step-16", "step-20", "step-24", "step-4", "step-8"]
    assert sorted(entry.name for entry in root.glob("step-*")) == stays


def test_what_was_saved_for_a_stop_alone_takes_nobodys_place(root: Path) -> None:
    for step, due in ((12, True), (14, False), (16, True), (18, False)):
        save_step(root, step, due=due)
    # The newest stays for the resume; beside it two that are due, as if nobody had stopped.
    prune(root, keep=2, newest=18)
    assert sorted(p.name for p in root.glob("step-*")) == ["step-12", "step-16", "step-18"]
    save_step(root, 20)
    prune(root, keep=2, newest=20, in_doubt=(19,))
    assert sorted(p.name for p in root.glob("step-*")) == ["step-16", "step-20"]
