"""The profile of a few steps: complete files, numbers that add up, and a run that is the same."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from engine.backends import Plain
from engine.hooks import Garbage, ProfileHook, TensorBoardHook
from engine.hooks.profile_tables import LISTED, Phase, tables
from engine.loop import train
from engine.optimization import AdamW, Constant
from engine.profiling import ProfileConfig
from engine.protocols import Backend, Hook, Progress, Run, StepRecord
from tests.engine import tiny

STEPS = 6


class Records(Hook):
    name = "records"

    def __init__(self, fails_at: int | None = None) -> None:
        self.kept: list[StepRecord] = []
        self._fails_at = fails_at

    def after_step(self, backend: Backend, progress: Progress, record: StepRecord) -> None:
        self.kept.append(record)
        if progress.step == self._fails_at:
            raise OSError("disk")


def go(
    folder: Path, asked: ProfileConfig | None, fails_at: int | None = None, start: int = 0
) -> Records:
    learner = tiny.learner(folder, hidden_dropout_prob=0.1)
    settings = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 4}
    backend = Plain(config=settings).build(learner, AdamW(lr=1e-3))
    records, board = Records(fails_at), TensorBoardHook(folder / "tensorboard")
    hooks: list[Hook] = [board, records, Garbage()]
    profile = [ProfileHook(asked, folder / "profile", STEPS, board.write_text)] if asked else []
    ready = [tiny.step_batches(learner.objective, n, 0, 1, 2) for n in range(start, STEPS)]
    around = [*hooks, *profile]
    heard = [hook.enter for hook in profile]
    run = Run(backend, iter(ready), Constant(), 1e-3, STEPS, 1, around, observers=heard)
    train(run, Progress(start))
    return records


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where steps 3 and 4 of a run were looked at."""
    return tmp_path_factory.mktemp("profiled")


@pytest.fixture(scope="module")
def records(place: Path) -> Records:
    return go(place, ProfileConfig(first=3, steps=2))


@pytest.fixture(scope="module")
def found(place: Path, records: Records) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "profile" / "profile.json").read_text())
    return found


def test_the_files_are_complete(place: Path, found: dict[str, Any]) -> None:
    assert names(place / "profile") == ["profile.json", "profile.md", "rank-0.trace.json.gz"]
    with gzip.open(place / "profile" / found["trace"]) as file:
        events = json.load(file)["traceEvents"]
    marks = [each["name"] for each in events if each.get("cat") == "user_annotation"]
    step = ["data", "reduce", *["forward", "backward"] * 2, "optimizer", "tensorboard", "records"]
    ours = [mark.removeprefix("phase: ") for mark in marks if mark.startswith("phase: ")]
    assert ours == [*step, "garbage"] * 2
    assert found["steps"] == {"first": 3, "last": 4}


def test_the_phases_are_the_step(records: Records, found: dict[str, Any]) -> None:
    calls = {each["phase"]: each["calls"] for each in found["phases"]}
    assert calls == {
        "data": 1,
        "reduce": 1,
        "forward": 2,
        "backward": 2,
        "optimizer": 1,
        "tensorboard": 1,
        "records": 1,
        "garbage": 1,
    }
    assert sum(each["seconds"] for each in found["phases"]) == pytest.approx(found["step_seconds"])
    in_step = [e["seconds"] for e in found["phases"] if e["phase"] in set(list(calls)[:5])]
    by_the_loop = sum(record.seconds for record in records.kept[2:4]) / 2
    assert sum(in_step) > by_the_loop / 2


def test_kinds_and_operators_add_up(found: dict[str, Any]) -> None:
    kinds = {each["kind"]: each["seconds"] for each in found["kinds"]}
    assert sum(kinds.values()) == pytest.approx(found["step_seconds"])
    assert all(seconds >= 0 for seconds in kinds.values())
    operators = found["operators"]
    assert len(operators) == LISTED
    assert [e["seconds"] for e in operators] == sorted(e["seconds"] for e in operators)[::-1]
    products = [e["seconds"] for e in operators if e["name"] in {"aten::mm", "aten::addmm"}]
    assert 0 < sum(products) <= kinds["matrix products"] + 1e-9
    for each in (*found["phases"], *found["kinds"], *operators):
        assert each["share"] == pytest.approx(each["seconds"] / found["step_seconds"])
    assert found["memory"]["peak_above_start_bytes"] > 4 * 24 * tiny.VOCABULARY


def test_people_read_the_same_in_a_file_and_in_tensorboard(
    place: Path, found: dict[str, Any]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    text = (place / "profile" / "profile.md").read_text()
    assert text.startswith("# Profile of steps 3 to 4\n")
    for each in found["phases"]:
        assert f"| {each['phase']} | {each['calls']:g} | {1000 * each['seconds']:.2f} |" in text
    events = EventAccumulator(str(place / "tensorboard"))
    events.Reload()
    (shown,) = events.Tensors("profile/text_summary")
    assert (shown.step, shown.tensor_proto.string_val[0].decode()) == (4, text)


def test_the_run_is_the_same_without_it(tmp_path: Path, records: Records) -> None:
    without = go(tmp_path, None)
    assert names(tmp_path / "profile") == []
    for mine, theirs in zip(records.kept, without.kept, strict=True):
        assert torch.equal(mine.losses, theirs.losses)
        assert torch.equal(
            torch.as_tensor(mine.gradient_norm), torch.as_tensor(theirs.gradient_norm)
        )


@pytest.mark.parametrize(("start", "steps"), [(0, (4, 6)), (4, (5, 6))])
def test_a_short_run_is_looked_at_at_its_end(
    tmp_path: Path, start: int, steps: Sequence[int]
) -> None:
    go(tmp_path, ProfileConfig(first=50, steps=3), start=start)
    told = json.loads((tmp_path / "profile" / "profile.json").read_text())["steps"]
    assert told == {"first": steps[0], "last": steps[1]}


def test_a_run_that_ends_before_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"):
        go(tmp_path, ProfileConfig(first=2, steps=3), fails_at=3)
    assert names(tmp_path / "profile") == []
    # The profiler has stopped, or this one could not begin.
    go(tmp_path, ProfileConfig(first=1, steps=1))
    assert "profile.json" in names(tmp_path / "profile")


def test_a_disk_that_refuses_costs_the_profile_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("in the way")
    assert len(go(tmp_path, ProfileConfig(first=1, steps=1)).kept) == STEPS
    assert "no profile" in caplog.text


def test_true_means_the_defaults() -> None:
    assert ProfileConfig.model_validate(True) == ProfileConfig()
    for wrong in (False, 3, {"first": 0}, {"last": 5}):
        with pytest.raises(ValidationError):
            ProfileConfig.model_validate(wrong)


class Event:
    """Of an operator, as the profiler averages it."""

    def __init__(self, key: str, device_us: float, kind: Any) -> None:
        self.key, self.count, self.device_type = key, 2, kind
        self.self_device_time_total, self.self_cpu_time_total = device_us, 1.0
        self.self_device_memory_usage = self.self_cpu_memory_usage = 64


def test_on_a_gpu_the_devices_time_counts_and_each_kernel_once() -> None:
    from torch._C._autograd import DeviceType

    events = [
        Event("aten::mm", 600.0, DeviceType.CPU),
        Event("ampere_gemm", 600.0, DeviceType.CUDA),
        Event("aten::_flash_attention_forward", 200.0, DeviceType.CPU),
        Event("phase: forward", 0.0, DeviceType.CPU),
    ]

    class Profiler:
        class profiler:  # noqa: N801 -- torch's name
            class kineto_results:  # noqa: N801 -- torch's name
                @staticmethod
                def events() -> list[Any]:
                    return []

        @staticmethod
        def key_averages() -> list[Event]:
            return events

    phases = [Phase("forward", 2, 0.002, 0.0009)]
    made = tables(Profiler(), phases, 2, on_gpu=True)
    kinds = {each["kind"]: round(1e6 * each["seconds"]) for each in made["kinds"]}
    assert kinds == {
        "matrix products": 300,
        "fused attention": 100,
        "communication": 0,
        "other operators": 0,
        "idle": 600,
    }
    assert made["phases"][0]["device_seconds"] == pytest.approx(0.00045)
    assert [each["name"] for each in made["operators"]] == [
        "aten::mm",
        "aten::_flash_attention_forward",
    ]
