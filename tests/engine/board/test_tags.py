"""Every number that a hook writes has a place on the board, and what is not known is shown, too."""

import re
from typing import Any

import pytest

from engine.board.layout import layout
from engine.board.tags import place, results, values

GROUPED = re.compile(r"^[1-7] (learning|forgetting|speed|health|sources|checkpoints|totals)/\S")


@pytest.mark.parametrize(
    ("kind", "path", "tag"),
    [
        ("train", "loss", "1 learning/loss"),
        ("train", "accuracy", "1 learning/accuracy"),
        ("train", "pair_loss", "1 learning/pair_loss"),
        ("train", "grad_norm", "4 health/gradient norm"),
        ("train", "rates/matrices", "4 health/learning rate by group/matrices"),
        ("train", "memory/host_peak", "4 health/memory/host_peak"),
        ("train", "sources/domain/loss", "5 sources/loss/domain"),
        ("train", "sources/domain/share", "5 sources/share, observed/domain"),
        ("train", "sources/domain/asked", "5 sources/share, asked/domain"),
        ("validation", "general/loss", "1 learning/held-out loss/general"),
        ("validation", "general/average/loss", "1 learning/held-out loss of the average/general"),
        ("validation", "general/targets", "7 totals/held-out targets/general"),
        ("probe", "topics/macro_f1", "1 learning/probe macro-F1/topics"),
        ("forgetting", "general/low", "2 forgetting/low/general"),
        ("forgetting", "general/floors/noise", "2 forgetting/general/floors/noise"),
        ("forgetting", "change", "2 forgetting/change"),
        ("forgetting", "done/roll_back", "2 forgetting/done/roll_back"),
        ("checkpoint", "stall_seconds", "3 speed/checkpoint stall seconds"),
        ("stragglers", "slowest/ratio", "3 speed/slowest rank to the median"),
        ("finetune", "dev/macro_f1", "1 learning/dev macro-F1"),
        ("novel", "a/b", "novel/a/b"),
        ("checkpoint", "novel", "checkpoint/novel"),
        ("train", "novel/deep/number", "train/novel/deep/number"),
    ],
)
def test_a_number_has_its_place(kind: str, path: str, tag: str) -> None:
    assert place(kind, path.split("/")) == tag


def test_two_numbers_never_share_a_tag() -> None:
    numbers = {
        "train": {
            "loss": 1,
            "sources": {"loss": {"loss": 1, "share": 1, "asked": 1, "tokens": 1}},
            "rates": {"a": 1},
            "lr": 1,
        },
        "validation": {"a": {"loss": 1, "targets": 1, "average": {"loss": 1, "targets": 1}}},
        "forgetting": {"a": {"change": 1, "low": 1, "high": 1}, "action": 1},
    }
    tags = [place(kind, path) for kind, told in numbers.items() for path, _ in values(told)]
    assert len(set(tags)) == len(tags)


def test_what_is_no_number_is_kept_apart_and_nulls_are_left_out() -> None:
    numbers: dict[str, Any] = {"a": None, "b": [1, {"c": True}], "d": "word", "e": {"f": 2.5}}
    assert list(values(numbers)) == [
        (("b", "0"), 1.0),
        (("b", "1", "c"), 1.0),
        (("d",), "word"),
        (("e", "f"), 2.5),
    ]


def test_names_of_sets_may_hold_anything() -> None:
    assert place("validation", ("a/b {c}", "loss")) == "1 learning/held-out loss/a/b {c}"


def test_results_are_those_that_end_a_stage() -> None:
    chief = ["1 learning/loss", "1 learning/held-out loss/general", "2 forgetting/change/general"]
    others = ["2 forgetting/low/general", "4 health/gradient norm", "1 learning/dev macro-F1"]
    assert results([*others, *reversed(chief)]) == chief


def test_the_band_of_noise_is_a_margin_of_the_three_tags() -> None:
    band = [f"2 forgetting/{name}/general" for name in ("change", "low", "high")]
    charts = layout(["1 learning/loss", *band, "2 forgetting/change/task"])["2 Is it forgetting?"]
    assert charts["general, with the band of its noise"] == ("Margin", band)
    kind, patterns = charts["task"]
    assert kind == "Multiline"
    assert [re.match(pattern, "2 forgetting/change/task") is not None for pattern in patterns] == [
        True
    ]


def test_one_set_that_is_watched_needs_no_name() -> None:
    band = [f"2 forgetting/{name}" for name in ("change", "low", "high")]
    charts = layout([*band, "2 forgetting/rate", "2 forgetting/changes"])["2 Is it forgetting?"]
    (name, actions) = charts
    assert charts[name] == ("Margin", band)
    assert charts[actions][0] == "Multiline"


def test_there_is_no_chart_without_a_curve() -> None:
    tags = ["1 learning/loss", "3 speed/MFU", "4 health/memory/host"]
    charts = [chart for page in layout(tags).values() for chart in page.values()]
    for kind, patterns in charts:
        assert kind == "Multiline"
        assert any(re.match(pattern, tag) for pattern in patterns for tag in tags)
    assert len(charts) == len(tags)
    assert layout([]) == {}


def test_the_charts_of_two_stages_are_the_same_where_both_have_them() -> None:
    """Or TensorBoard, which joins them, would show them twice."""
    one = layout(["1 learning/loss", "3 speed/MFU"])
    other = layout(["1 learning/loss", "1 learning/held-out loss/a", "3 speed/MFU"])
    assert one == other
