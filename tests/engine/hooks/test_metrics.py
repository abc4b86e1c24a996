"""Metrics: the numbers of a run, the same whether it was interrupted or not."""

import json
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError, NumericalError, ResourceError
from engine.hooks import JsonLines, MetricsHook
from engine.hooks.vitals import host_memory
from engine.protocols import Progress
from tests.engine.checkpoint.fakes import ThreadRank, on_ranks
from tests.engine.hooks.fakes import SOURCES, FakeBackend, FixedThroughput, Kept, record

TIMING = ("seconds", "tokens_per_second", "step_seconds", "memory", "data_wait", "restarts")


def hook(path: Path, every: int = 2, steps: int = 7, **more: Any) -> MetricsHook:
    return MetricsHook(
        path, SOURCES, every, steps, FixedThroughput(), measures=("accuracy",), **more
    )


def drive(metrics: MetricsHook, backend: Any, first: int, last: int) -> None:
    """The steps that end as numbers ``first`` to ``last``."""
    metrics.on_start(backend, Progress(first - 1))
    for step in range(first, last + 1):
        metrics.after_step(backend, Progress(step), record(step, backend.rank, backend.world))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines(path)]


def test_a_line_holds_the_means_since_the_line_before(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drive(hook(path), FakeBackend(), 1, 7)
    written = lines(path)
    assert [line["step"] for line in written] == [2, 4, 6, 7]
    third, fourth = record(3), record(4)
    line = written[1]
    targets = float(third.counts[0] + fourth.counts[0])
    losses = third.losses.double() + fourth.losses.double()
    assert line["loss"] == float(losses[0]) / targets
    assert line["sources"]["domain"]["loss"] == float(losses[2]) / 10
    assert line["sources"]["domain"]["share"] == (13 + 14) / (2 * 20 + 13 + 14)
    assert line["tokens"] == sum(20 + 10 + step for step in range(1, 5))
    assert line["sources"]["domain"]["tokens"] == sum(10 + step for step in range(1, 5))
    assert (line["lr"], line["grad_norm"], line["mfu"]) == (0.1 / 4, 4.0, 0.5)
    assert line["tflops"] == 33 + 34
    assert line["tokens_per_second"] == pytest.approx((33 + 34) / 4, rel=0.2)
    assert line["seconds"] >= 8


def test_ranks_add_up_and_only_the_first_writes(tmp_path: Path) -> None:
    def act(ranks: ThreadRank) -> int:
        backend = FakeBackend(ranks)
        drive(hook(tmp_path / f"{backend.rank}.jsonl"), backend, 1, 7)
        return backend.reductions

    # Between logged steps nothing is exchanged: two reductions for each line and no more.
    assert on_ranks(2, act) == [8, 8]
    assert not (tmp_path / "1.jsonl").exists()
    first = lines(tmp_path / "0.jsonl")[0]
    total = sum(
        float(record(step, rank, 2).losses[0].double()) for step in (1, 2) for rank in (0, 1)
    )
    assert first["loss"] == total / float(record(1).counts[0] + record(2).counts[0])


@settings(max_examples=20, deadline=None)
@given(every=st.integers(1, 4), saved=st.integers(1, 11), lost=st.integers(0, 5))
def test_a_resumed_run_writes_the_lines_of_an_uninterrupted_one(
    tmp_path_factory: pytest.TempPathFactory, every: int, saved: int, lost: int
) -> None:
    folder = tmp_path_factory.mktemp("metrics")
    whole, path = folder / "whole.jsonl", folder / "metrics.jsonl"
    steps = 12
    drive(hook(whole, every, steps), FakeBackend(), 1, steps)

    first = hook(path, every, steps)
    backend = FakeBackend()
    drive(first, backend, 1, saved)
    state = json.loads(json.dumps(first.state_dict()))
    for step in range(saved + 1, min(saved + lost, steps) + 1):
        first.after_step(backend, Progress(step), record(step))
    with path.open("a") as file:
        file.write('{"step": 99, "lo')
    second = hook(path, every, steps)
    second.load_state_dict(state)
    drive(second, FakeBackend(), saved + 1, steps)
    assert untimed(path) == untimed(whole)


def test_a_run_that_starts_anew_keeps_no_old_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    drive(hook(path), FakeBackend(), 1, 5)
    drive(hook(path), FakeBackend(), 1, 2)
    assert [line["step"] for line in lines(path)] == [2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", ["logged", "saved"])
def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_step(
    tmp_path: Path, bad: float, when: str
) -> None:
    def act(ranks: ThreadRank) -> None:
        backend: Any = FakeBackend(ranks)
        metrics = hook(tmp_path / "metrics.jsonl", every=5)
        metrics.on_start(backend, Progress(10))
        for step in range(11, 16 if when == "logged" else 15):
            changes = {}
            if ranks.rank() == 1 and step >= 13:
                changes["losses"] = torch.tensor([bad, 1.0, bad])
            metrics.after_step(backend, Progress(step), record(step, ranks.rank(), 2, **changes))
        metrics.state_dict()

    outcomes = on_ranks(2, act)
    assert [type(outcome) for outcome in outcomes] == [NumericalError] * 2
    for outcome in outcomes:
        assert str(outcome).startswith("step 13: the loss is not finite on rows of domain;")
    assert lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("bad", [float("nan"), torch.tensor(float("inf"))])
@pytest.mark.parametrize("when", ["logged", "saved"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_step(
    tmp_path: Path, bad: Any, when: str
) -> None:
    metrics, backend = hook(tmp_path / "metrics.jsonl", every=5), FakeBackend()
    metrics.on_start(backend, Progress(10))
    changes = {12: {"gradient_norm": bad, "skipped": True}, 13: {"gradient_norm": bad}}

    def act() -> None:
        for step in range(11, 16 if when == "logged" else 15):
            metrics.after_step(backend, Progress(step), record(step, **changes.get(step, {})))
        metrics.state_dict()

    with pytest.raises(NumericalError, match="step 13: the gradient is not finite; nothing"):
        act()
    assert lines(tmp_path / "metrics.jsonl") == []


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics, backend = hook(path, every=1), FakeBackend()
    metrics.on_start(backend, Progress())
    counts = torch.tensor([4.0, 8.0, 4.0, 0.0, 8.0, 0.0], dtype=torch.float64)
    metrics.after_step(backend, Progress(1), record(1, counts=counts))
    overflowed = record(2, gradient_norm=float("inf"), skipped=True)
    metrics.after_step(backend, Progress(2), overflowed)
    first, second = lines(path)
    assert first["sources"]["domain"] == {
        "tokens": 0,
        "loss": None,
        "accuracy": None,
        "share": 0.0,
        "asked": None,
    }
    assert (second["grad_norm"], second["loss"]) == (None, None)


def test_skipped_steps_are_counted_and_nothing_of_them_enters_the_sums(tmp_path: Path) -> None:
    """Refused ones with a loss that is no number, avoided ones without any, overflowed ones."""
    path, plain = tmp_path / "metrics.jsonl", tmp_path / "plain.jsonl"
    nan, nothing = torch.full((3,), float("nan")), torch.zeros(0)
    bad = {
        2: {"losses": nan, "gradient_norm": float("inf"), "skipped": True, "judged": True},
        3: {
            "losses": nothing,
            "measures": nothing,
            "counts": nothing,
            "gradient_norm": float("nan"),
        }
        | {"skipped": True, "judged": True},
        5: {"gradient_norm": float("inf"), "skipped": True},
    }
    for target, steps in ((path, range(1, 9)), (plain, (1, 4, 6, 7, 8))):
        metrics, backend = hook(target, every=4, steps=8), FakeBackend()
        metrics.on_start(backend, Progress())
        for step in steps:
            metrics.after_step(backend, Progress(step), record(step, **bad.get(step, {})))
    for mine, theirs, skipped in zip(untimed(path), untimed(plain), (2, 3), strict=True):
        norm = {
            key: mine[key] for key in ("update_norm", "update_ratio")
        }  # measured at steps that the other run has not
        assert mine == theirs | {"skipped": skipped} | norm


def test_without_a_guard_an_overflowed_step_must_have_a_finite_loss(tmp_path: Path) -> None:
    metrics, backend = hook(tmp_path / "metrics.jsonl", every=1), FakeBackend()
    metrics.on_start(backend, Progress())
    step = record(1, losses=torch.full((3,), float("nan")), skipped=True)
    with pytest.raises(NumericalError, match="step 1: the loss is not finite"):
        metrics.after_step(backend, Progress(1), step)


def test_a_window_of_skipped_steps_alone_has_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics, backend = hook(path), FakeBackend()
    metrics.on_start(backend, Progress())
    for step in (1, 2):
        none = dict.fromkeys(("losses", "measures", "counts"), torch.zeros(0))
        gone = record(step, **none, skipped=True, judged=True)
        metrics.after_step(backend, Progress(step), gone)
    (line,) = lines(path)
    assert (line["loss"], line["tokens"], line["skipped"]) == (None, 0, 2)
    domain = line["sources"]["domain"]
    assert (domain["tokens"], domain["loss"], domain["share"]) == (0, None, None)


def test_what_was_pending_when_a_run_is_taken_back_does_not_count(tmp_path: Path) -> None:
    path, whole = tmp_path / "metrics.jsonl", tmp_path / "whole.jsonl"
    drive(hook(whole), FakeBackend(), 1, 7)
    metrics, backend = hook(path), FakeBackend()
    drive(metrics, backend, 1, 3)
    state = json.loads(json.dumps(metrics.state_dict()))
    for step in (4, 5):
        metrics.after_step(backend, Progress(step), record(step))
    metrics.load_state_dict(state)
    drive(metrics, backend, 4, 7)
    assert untimed(path) == untimed(whole)


def test_sinks_get_the_same_numbers(tmp_path: Path) -> None:
    kept = Kept()
    drive(hook(tmp_path / "metrics.jsonl", sinks=[kept]), FakeBackend(), 1, 4)
    assert [(kind, {"step": step, **numbers}) for kind, step, numbers in kept.written] == [
        ("train", line) for line in lines(tmp_path / "metrics.jsonl")
    ]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=rf"{path}:2: no JSON object"):
        JsonLines(path).cut_after(3)
    assert path.read_text().count("\n") == 3


def test_a_disk_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    lines_of = JsonLines(tmp_path / "metrics.jsonl")
    lines_of.append({"step": 1})
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: Is a directory.*bytes free"):
        lines_of.sync()


def test_measures_are_means_over_the_targets_whole_and_by_source(tmp_path: Path) -> None:
    def act(ranks: ThreadRank) -> None:
        drive(hook(tmp_path / f"{ranks.rank()}.jsonl"), FakeBackend(ranks), 1, 2)

    on_ranks(2, act)
    (line,) = lines(tmp_path / "0.jsonl")
    records = [record(step, rank, 2) for step in (1, 2) for rank in (0, 1)]
    hits = sum(each.measures.double() for each in records)[0].tolist()
    targets = sum(record(step).counts for step in (1, 2)).tolist()
    assert line["accuracy"] == pytest.approx(sum(hits) / targets[0], rel=1e-12)
    for source, (hit, count) in zip(SOURCES, zip(hits, targets[2:4], strict=True), strict=True):
        assert line["sources"][source]["accuracy"] == hit / count


def test_a_line_tells_what_the_mixture_asks_for(tmp_path: Path) -> None:
    asked = {2: (0.25, 0.75), 4: (0.5, 0.5), 6: (0.5, 0.5), 7: (1.0, 0.0)}
    drive(hook(tmp_path / "metrics.jsonl", asked=asked.__getitem__), FakeBackend(), 1, 7)
    for line in lines(tmp_path / "metrics.jsonl"):
        told = tuple(line["sources"][source]["asked"] for source in SOURCES)
        assert told == asked[line["step"]]


def test_the_update_is_measured_at_logged_steps_alone(tmp_path: Path) -> None:
    metrics, backend = hook(tmp_path / "metrics.jsonl", every=3, steps=7), FakeBackend()
    measured = []
    metrics.on_start(backend, Progress())
    for step in range(1, 8):
        if backend.measure_update:
            measured.append(step)
        metrics.after_step(backend, Progress(step), record(step))
    assert measured == [3, 6, 7]
    assert not backend.measure_update
    for line in lines(tmp_path / "metrics.jsonl"):
        assert (line["update_norm"], line["update_ratio"]) == (0.25, pytest.approx(0.25 / 3))


def test_the_weights_of_all_ranks_count_in_the_ratio(tmp_path: Path) -> None:
    def act(ranks: ThreadRank) -> None:
        drive(hook(tmp_path / f"{ranks.rank()}.jsonl"), FakeBackend(ranks), 1, 2)

    on_ranks(2, act)
    (line,) = lines(tmp_path / "0.jsonl")
    assert line["update_ratio"] == pytest.approx(0.25 / (2 * 9) ** 0.5)


def test_rates_of_the_groups_and_the_loss_scale(tmp_path: Path) -> None:
    drive(hook(tmp_path / "metrics.jsonl", every=4, steps=4), FakeBackend(), 1, 4)
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["rates"] == {"matrices": line["lr"], "vectors": 0.5 * line["lr"]}
    assert line["loss_scale"] == 1024.0


def test_the_rank_that_waits_longest_is_told(tmp_path: Path) -> None:
    pause = {0: 0.0, 1: 0.03}

    def act(ranks: ThreadRank) -> None:
        metrics, backend = hook(tmp_path / f"{ranks.rank()}.jsonl"), FakeBackend(ranks)
        metrics.on_start(backend, Progress())
        for step in (1, 2):
            metrics.enter("data", step)
            time.sleep(pause[backend.rank])
            metrics.enter("reduce", step)
            metrics.enter("forward", step)
            metrics.after_step(backend, Progress(step), record(step, backend.rank, 2))

    on_ranks(2, act)
    (line,) = lines(tmp_path / "0.jsonl")
    # A sleep may take longer, never shorter.
    assert line["data_wait"] >= pause[1]
    assert line["step_seconds"] == pytest.approx(line["seconds"] / 2)


def test_memory_is_that_of_this_process(tmp_path: Path) -> None:
    drive(hook(tmp_path / "metrics.jsonl"), FakeBackend(), 1, 2)
    memory = lines(tmp_path / "metrics.jsonl")[0]["memory"]
    assert 0.05 < memory["host"] <= memory["host_peak"]
    assert memory["host_peak"] == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, rel=0.05
    )
    assert (memory["device"], memory["device_peak"]) == (None, None)


def test_memory_is_null_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert host_memory(tmp_path / "absent") == [None, None]
    (tmp_path / "other").write_text("Name: python\n")
    assert host_memory(tmp_path / "other") == [None, None]


def test_restarts_count_those_that_saved_nothing(tmp_path: Path) -> None:
    path, found = tmp_path / "metrics.jsonl", []
    for first in (1, 1, 3):
        metrics, backend = hook(path), FakeBackend()
        drive(metrics, backend, first, 4)
        # A rollback in the same process is no start.
        drive(metrics, backend, 3, 4)
        found.append(lines(path)[-1]["restarts"])
    assert found == [0, 1, 2]
    starts = lines(tmp_path / "starts.jsonl")
    assert [(start["step"], start["ranks"]) for start in starts] == [(0, 1), (0, 1), (2, 1)]
