"""Saving behind the training: what is written is what was held, and nobody finds out alone."""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.errors import CheckpointError, OnwardError, ResourceError
from engine import faults
from engine.checkpoint import commit, disk, newest, open_checkpoint
from engine.checkpoint.disk import DiskError
from engine.checkpoint.save import Alone
from engine.checkpoint.snapshot import Failed, HostMemory, Snapshot
from engine.checkpoint_policy import CheckpointConfig
from engine.hooks import CheckpointHook
from engine.protocols import Fragment, Progress
from tests.engine.checkpoint.fakes import LiveBackend, on_ranks, values_of
from tests.engine.hooks.fakes import Kept

STEPS = 20
RECORD: Any = None  # the hook looks at none


class Asked:
    """A stop that is agreed on from some step on; ``agreed`` moves it on by a vote."""

    def __init__(self, votes: int = 10**9) -> None:
        self.votes = votes

    @property
    def is_agreed(self) -> bool:
        return self.votes <= 0

    def begin(self) -> None:
        """Nothing to begin."""

    def agreed(self) -> bool:
        self.votes -= 1
        return self.is_agreed


class Gate:
    """Holds every writer of a rank's file until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        write = commit.write_file

        def write_file(path: Path, content: Any) -> Any:
            self.reached.set()
            assert self.open.wait(30)
            return write(path, content)

        monkeypatch.setattr("engine.checkpoint.fragments.write_file", write_file)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A new try comes at once; faults end with the test."""
    monkeypatch.setattr(disk, "PAUSES", (0.0, 0.0, 0.0))
    yield
    faults.load("")


def policy(**values: Any) -> CheckpointConfig:
    return CheckpointConfig(**({"every": 4, "mode": "async"} | values))


def hook_at(
    root: Path, chosen: CheckpointConfig, ranks: Any = None, state: Any = None, **given: Any
) -> CheckpointHook:
    told = state or (lambda progress: {"cursor": progress.step * 8})
    return CheckpointHook(root, "recipe", told, chosen, STEPS, ranks=ranks or Alone(), **given)


def after(hook: CheckpointHook, backend: Any, step: int) -> None:
    """The step's update in place, then the hook."""
    backend.train(step)
    hook.after_step(backend, Progress(step), RECORD)


def run(hook: CheckpointHook, backend: Any, steps: Sequence[int]) -> None:
    """These steps with their beginning and end."""
    hook.on_start(backend, Progress(steps[0] - 1))
    try:
        for step in steps:
            after(hook, backend, step)
    finally:
        hook.on_end(backend, Progress(step))


def holds(root: Path, step: int) -> None:
    """The checkpoint is intact, and of that very step."""
    found = open_checkpoint(root / f"step-{step}")
    assert found.state["cursor"] == step * 8
    assert found.backend_state == {"loss_scale": 2.0**step}
    for piece in LiveBackend(step).held:
        assert found.store().whole(piece.name, piece.key).reshape(-1).equal(piece.tensor)


def steps_in(root: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in root.glob("step-*"))


def lines(root: Path) -> list[dict[str, Any]]:
    path = root.parent / "checkpoints.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "stage" / "checkpoints"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_every_due_step_and_the_last_one(root: Path, mode: str) -> None:
    sink = Kept()
    hook = hook_at(root, policy(mode=mode, every=8, keep=9), sinks=[sink])
    run(hook, LiveBackend(), range(1, STEPS + 1))
    assert steps_in(root) == [8, 16, 20]
    for step in (8, 16, 20):
        holds(root, step)
    written = lines(root)
    assert [line["step"] for line in written] == [8, 16, 20]
    # The last one is there when the run ends, so it is never behind.
    assert [line["mode"] for line in written] == [mode, mode, "sync"]
    sizes = [sum(f.stat().st_size for f in (root / f"step-{s}").iterdir()) for s in (8, 16, 20)]
    manifests = [(root / f"step-{s}" / "manifest.json").stat().st_size for s in (8, 16, 20)]
    assert [line["bytes"] for line in written] == [
        a - b for a, b in zip(sizes, manifests, strict=True)
    ]
    assert hook.bytes == sum(line["bytes"] for line in written)
    assert all(0 < line["stall_seconds"] <= line["seconds"] for line in written)
    assert hook.stall_seconds >= sum(line["stall_seconds"] for line in written)
    assert [(kind, step) for kind, step, _ in sink.written] == [
        ("checkpoint", 8),
        ("checkpoint", 16),
        ("checkpoint", 20),
    ]


def test_steps_go_on_while_the_disk_is_slow(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    hook, backend = hook_at(root, policy()), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    assert gate.reached.wait(30)
    for step in (5, 6, 7):
        after(hook, backend, step)
    assert steps_in(root) == []
    gate.open.set()
    # The next one waits for it: there is never more than one.
    after(hook, backend, 8)
    holds(root, 4)
    hook.on_end(backend, Progress(8))
    holds(root, 8)


def test_the_next_save_waits_and_that_is_stall(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.hooks.checkpointing._TOLD_SECONDS", 0.1)
    gate = Gate(monkeypatch)
    hook, backend = hook_at(root, policy(keep=3)), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    threading.Timer(0.5, gate.open.set).start()
    after(hook, backend, 8)
    hook.on_end(backend, Progress(8))
    assert "for the checkpoint of step 4 to be written" in caplog.text
    first, second = lines(root)
    assert (first["step"], second["step"]) == (4, 8)
    assert second["stall_seconds"] > 0.2
    assert hook.stall_seconds > 0.2


def test_the_hooks_state_is_of_the_step_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    seen: dict[str, Any] = {"cursor": 32, "hooks": {"window": [1.0]}}
    hook, backend = hook_at(root, policy(), state=lambda _: seen), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    seen["hooks"]["window"].append(2.0)
    gate.open.set()
    hook.on_end(backend, Progress(4))
    holds(root, 4)
    assert open_checkpoint(root / "step-4").state["hooks"] == {"window": [1.0]}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("step", [4, 6])
def test_a_stop_has_its_step_saved_before_the_hook_returns(
    root: Path, mode: str, step: int
) -> None:
    stop = Asked()
    hook, backend = hook_at(root, policy(mode=mode, keep=3), stop=stop), LiveBackend()
    hook.on_start(backend, Progress(3))
    if step == 6:
        after(hook, backend, 4)
    stop.votes = 0
    after(hook, backend, step)
    holds(root, step)
    assert steps_in(root) == sorted({4, step})
    assert lines(root)[-1]["step"] == step
    hook.on_end(backend, Progress(step))
    assert len(lines(root)) == len(steps_in(root))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_who_asks_during_a_wait_need_not_wait_for_another_step(root: Path, mode: str) -> None:
    stop = Asked(votes=2)
    hook, backend = hook_at(root, policy(mode=mode, keep=3), stop=stop), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    assert not stop.is_agreed
    after(hook, backend, 8)
    assert stop.is_agreed
    holds(root, 8)
    assert [line["step"] for line in lines(root)] == [4, 8]


def test_after_an_error_in_a_step_what_was_begun_is_finished(root: Path) -> None:
    hook, backend = hook_at(root, policy()), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    backend.train(5)
    hook.on_end(backend, Progress(4))
    holds(root, 4)
    assert [line["step"] for line in lines(root)] == [4]


def test_what_cannot_be_finished_is_given_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.hooks.checkpointing.GRACE_SECONDS", 0.05)
    gate = Gate(monkeypatch)
    hook, backend = hook_at(root, policy()), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    hook.on_end(backend, Progress(4))
    assert "step 4 is not there" in caplog.text
    assert newest(root, "recipe") is None
    gate.open.set()
    # Started again in this process, it waits for the thread first.
    hook.on_start(backend, Progress(4))
    holds(root, 4)
    hook.on_end(backend, Progress(4))


@pytest.mark.parametrize("grace", [0.05, 30.0])
def test_ranks_that_gave_a_save_up_and_ranks_that_did_not_begin_anew_alike(
    root: Path, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Group(Alone):
        def __init__(self, limit: object) -> None:
            made.append(limit)

        def close(self) -> None:
            """Nothing to leave."""

    monkeypatch.setattr("engine.distributed.Group", Group)
    monkeypatch.setattr("engine.hooks.checkpointing.GRACE_SECONDS", grace)
    gate = Gate(monkeypatch)
    hook = CheckpointHook(root, "recipe", lambda _: {"cursor": 32}, policy(), STEPS)
    backend = LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    # As a rollback does it; a group is made by all ranks, or by none.
    threading.Timer(0.3, gate.open.set).start()
    hook.on_end(backend, Progress(4))
    hook.settle()
    hook.on_start(backend, Progress(4))
    assert len(made) == 2
    holds(root, 4)


def strike(root: Path, fault: str, **values: Any) -> tuple[CheckpointHook, LiveBackend]:
    """A run whose save of step 8 meets a fault."""
    hook, backend = hook_at(root, policy(**values)), LiveBackend()
    hook.on_start(backend, Progress(3))
    after(hook, backend, 4)
    faults.load(fault)
    after(hook, backend, 8)
    return hook, backend


POINTS = ("begin", "shard", "half", "gather", "manifest", "rename")


@pytest.mark.parametrize("point", POINTS)
def test_an_error_behind_comes_out_where_the_next_save_is_due(root: Path, point: str) -> None:
    hook, backend = strike(root, f"full@checkpoint.{point}:step=8")
    for step in (9, 10, 11):
        after(hook, backend, step)
    with pytest.raises(DiskError, match=r"no space .*bytes free"):
        after(hook, backend, 12)
    hook.on_end(backend, Progress(12))
    assert steps_in(root) == [4]
    assert [entry.name for entry in root.glob(f"{commit.ASIDE}*")] == []


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("point", POINTS)
def test_the_run_can_go_on_without_a_checkpoint(
    root: Path, mode: str, point: str, caplog: pytest.LogCaptureFixture
) -> None:
    fault = f"full@checkpoint.{point}:step=8"
    hook, backend = strike(root, fault, mode=mode, on_disk_error="go_on", keep=3)
    after(hook, backend, 12)
    hook.on_end(backend, Progress(12))
    assert "checkpoint of step 8 not saved" in caplog.text
    assert "no space" in caplog.text
    assert steps_in(root) == [4, 12]
    holds(root, 12)
    assert [line["step"] for line in lines(root)] == [4, 12]


@pytest.mark.parametrize("on_disk_error", ["stop", "go_on"])
def test_the_last_one_must_succeed(root: Path, on_disk_error: str) -> None:
    hook, backend = strike(root, "", on_disk_error=on_disk_error)
    faults.load("full@checkpoint.shard:step=20")
    with pytest.raises(DiskError, match="no space"):
        after(hook, backend, 20)
    assert steps_in(root) == [4, 8]


@pytest.mark.parametrize("action", ["full", "error"])
def test_the_last_one_is_tried_though_the_one_before_failed(
    root: Path, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    hook, backend = strike(root, f"{action}@checkpoint.shard:step=8")
    after(hook, backend, 20)
    holds(root, 20)
    assert "checkpoint of step 8 not saved" in caplog.text


def test_an_error_that_is_not_the_disks_is_never_gone_on_after(root: Path) -> None:
    hook, backend = strike(root, "error@checkpoint.gather:step=8", on_disk_error="go_on")
    with pytest.raises(CheckpointError, match=r"RuntimeError: injected at checkpoint\.gather"):
        after(hook, backend, 12)


def test_trouble_with_old_ones_does_not_undo_a_new_one(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, backend = strike(root, "eio@checkpoint.prune:step=8", keep=1)
    after(hook, backend, 12)
    hook.on_end(backend, Progress(12))
    assert "old checkpoints were not deleted" in caplog.text
    assert steps_in(root) == [12]
    assert [entry.name for entry in root.glob(f"{commit.ASIDE}*")] == []


def outcome_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except OnwardError as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_all_ranks_learn_of_it_at_the_same_step(
    root: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = disk.require_space

    def require_space(folder: Path, needed: int) -> None:
        if threading.current_thread() in broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        shown(folder, needed)

    broken: set[Any] = set()
    monkeypatch.setattr("engine.checkpoint.fragments.require_space", require_space)

    def act(ranks: Any) -> list[str]:
        backend = LiveBackend(0, ranks.rank(), ranks.world())
        hook = hook_at(root, policy(mode=mode), ranks)
        take = hook._write

        def write(*arguments: Any) -> Any:
            if ranks.rank() == 1:
                broken.add(threading.current_thread())
            return take(*arguments)

        hook._write = write  # type: ignore[method-assign]
        hook.on_start(backend, Progress(3))
        return [outcome_of(lambda step=step: after(hook, backend, step)) for step in (4, 5, 8)]

    outcomes = on_ranks(3, act)
    assert outcomes[0] == outcomes[1] == outcomes[2]
    told = [bool(text) for text in outcomes[0]]
    assert told == ([True, False, True] if mode == "sync" else [False, False, True])
    assert "DiskError" in outcomes[0][2]
    assert "Input/output error" in outcomes[0][2]


def test_a_hook_whose_state_fails_on_one_rank_stops_all(root: Path) -> None:
    def act(ranks: Any) -> str:
        def state(progress: Progress) -> dict[str, Any]:
            if ranks.rank() == 1:
                raise DiskError(f"metrics of step {progress.step}")
            return {}

        hook = hook_at(root, policy(), ranks, state)
        backend = LiveBackend(0, ranks.rank(), ranks.world())
        hook.on_start(backend, Progress(3))
        return outcome_of(lambda: after(hook, backend, 4))

    assert on_ranks(2, act) == ["DiskError: metrics of step 4"] * 2


def test_old_ones_go_and_some_stay_for_ever(root: Path) -> None:
    hook = hook_at(root, policy(every=2, keep=2, keep_every=8))
    run(hook, LiveBackend(), range(1, STEPS + 1))
    assert steps_in(root) == [8, 16, 18, 20]
    with pytest.raises(ValueError, match=r"'keep_every' is 6, which is no multiple of 'every'"):
        policy(every=4, keep_every=6)


def test_a_resumed_run_goes_on_with_the_lines(root: Path) -> None:
    run(hook_at(root, policy(keep=9)), LiveBackend(), range(1, 10))
    assert [line["step"] for line in lines(root)] == [4, 8]
    run(hook_at(root, policy(keep=9)), LiveBackend(), range(5, 10))
    assert [line["step"] for line in lines(root)] == [4, 8]


def free(monkeypatch: pytest.MonkeyPatch, root: Path, count: int) -> None:
    usage = shutil.disk_usage(root.parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=count))


def start_only(root: Path, **values: Any) -> None:
    hook, backend = hook_at(root, policy(**values)), LiveBackend()
    # Before its first step it has weights alone, and says what will come.
    backend.held = [piece for piece in backend.held if piece.key == "fp32"]
    hook.on_start(backend, Progress(0))


SIZE = 4 * 3 * (7 * 5 + 5 * 11 + 11 + 1)


def test_a_disk_too_small_is_told_before_the_first_step(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, root, 3 * SIZE)
    start_only(root, keep=2)
    assert caplog.text == ""
    free(monkeypatch, root, 3 * SIZE - 1)
    start_only(root, keep=2)
    assert f"no space for 3 checkpoints: {3 * SIZE} bytes needed" in caplog.text
    caplog.clear()
    # The run has 5 in all; those of steps 8 and 16 stay beside the newest.
    free(monkeypatch, root, 4 * SIZE - 1)
    start_only(root, keep=1, keep_every=8)
    assert f"no space for 4 checkpoints: {4 * SIZE} bytes needed" in caplog.text


def test_a_disk_too_small_for_one_ends_the_run_before_it_begins(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free(monkeypatch, root, SIZE - 1)
    with pytest.raises(ResourceError, match=rf"no space: {SIZE} bytes needed, {SIZE - 1} bytes"):
        start_only(root)
    start_only(root, on_disk_error="go_on")
    assert "checkpoints will fail" in caplog.text


def test_a_file_limit_ends_the_run_before_it_begins(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "largest_file", lambda: SIZE - 1)
    with pytest.raises(ResourceError, match=rf"{SIZE} bytes needed in one file"):
        start_only(root)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_snapshots_are_exact_in_any_dtype_and_stride(dtype: torch.dtype) -> None:
    wide = torch.randn(9, 4).to(dtype)
    live = {"a": wide[:, 1], "b": torch.randn(7).to(dtype), "c": torch.empty(0, dtype=dtype)}

    class Source:
        def fragments(self) -> Iterator[Fragment]:
            for name, tensor in live.items():
                yield Fragment(name, "fp32", tuple(tensor.shape), 0, tensor)

        def extra_state(self) -> dict[str, Any]:
            return {"scale": [1.0]}

    memory = HostMemory()
    for _ in range(2):
        taken = memory.copy_of(Source())
        assert isinstance(taken, Snapshot)
        copies = {piece.name: piece.tensor for piece in taken.fragments()}
        for name, tensor in live.items():
            assert copies[name].dtype == dtype
            assert copies[name].equal(tensor)
            tensor.add_(1)
            assert not tensor.numel() or not copies[name].equal(tensor)
        where = [copies[name].data_ptr() for name in ("a", "b")]
    # The room is used again.
    again = memory.copy_of(Source())
    assert [piece.tensor.data_ptr() for piece in again.fragments()][:2] == where


def test_a_host_without_memory_is_told_of_on_all_ranks_together(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("can't allocate memory")

    hook, backend = hook_at(root, policy(on_disk_error="go_on")), LiveBackend()
    hook.on_start(backend, Progress(3))
    monkeypatch.setattr(torch, "empty", refuse)
    after(hook, backend, 4)
    monkeypatch.undo()
    with pytest.raises(ResourceError, match=r"no host memory .*mode: sync"):
        after(hook, backend, 8)
    assert isinstance(HostMemory().copy_of(backend), Snapshot)
    assert steps_in(root) == []


def test_a_failed_snapshot_is_no_state() -> None:
    failed = Failed(ResourceError("no memory"))
    with pytest.raises(ResourceError, match="no memory"):
        list(failed.fragments())


def test_values_are_of_the_step_they_were_taken_at(root: Path) -> None:
    """The fixture's own footing: training writes into the tensors that a save has seen."""
    backend = LiveBackend(1)
    before = backend.held[0].tensor
    backend.train(2)
    assert before.equal(torch.from_numpy(values_of(2, "embedding", "fp32")).reshape(-1))
