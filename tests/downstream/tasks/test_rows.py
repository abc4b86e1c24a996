"""A task folder says what was put into it; limits depend on ids alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from downstream.tasks.rows import LabelledRow, TaskData, checked, limited


def row(index: int, label: str = "a") -> LabelledRow:
    return LabelledRow(f"id{index}", f"g{index}", f"text {index} \u2028 ü", label)


@pytest.fixture
def data() -> TaskData:
    sides = {"train": [row(0), row(1, "b")], "dev": [row(2)], "test": [row(3)]}
    return TaskData(sides, ["a", "b"], ["g2", "g3"], {})


def test_saved_and_opened_is_the_same(data, tmp_path):
    fingerprint = data.save(tmp_path)
    assert TaskData.open(tmp_path) == data
    assert data.save(tmp_path / "again") == fingerprint


def test_fingerprint_covers_the_split(data, tmp_path):
    other = TaskData(data.sides, data.labels, ["g2"], {})
    assert data.save(tmp_path / "a") != other.save(tmp_path / "b")


def test_malformed_folders_name_the_line(data, tmp_path):
    data.save(tmp_path)
    path = tmp_path / "dev.jsonl"
    good = path.read_text()
    path.write_text(good + "{broken\n")
    with pytest.raises(DataError, match=r"dev\.jsonl:2: not JSON"):
        TaskData.open(tmp_path)
    path.write_text(good.replace('"a"', '"z"'))
    with pytest.raises(DataError, match=r"dev\.jsonl:1: label 'z' is not in labels\.json"):
        TaskData.open(tmp_path)
    path.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"dev\.jsonl:1: expected the keys id, group, text, label"):
        TaskData.open(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"dev\.jsonl: no such file"):
        TaskData.open(tmp_path)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), most=st.integers(1, 60), seed=st.integers(0, 5), data=st.data())
def test_limited_rows_do_not_depend_on_order(count, most, seed, data):
    rows = [row(index) for index in range(count)]
    kept = limited(rows, most, seed)
    assert len(kept) == min(most, count)
    assert kept == [one for one in rows if one in kept]
    shuffled = data.draw(st.permutations(rows))
    assert {one.id for one in limited(shuffled, most, seed)} == {one.id for one in kept}
    assert {one.id for one in kept} <= {one.id for one in limited(rows, most + 1, seed)}


def test_unlearnable_tasks_are_refused(data):
    empty = TaskData({**data.sides, "dev": []}, data.labels, [], {})
    with pytest.raises(DataError, match="no row is left in dev"):
        checked(empty, "t")
    lacking = TaskData({**data.sides, "train": [row(0)]}, data.labels, [], {})
    with pytest.raises(DataError, match=r"train has no row of \['b'\]"):
        checked(lacking, "t")
    single = TaskData(data.sides, ["a"], [], {})
    with pytest.raises(DataError, match="at least two"):
        checked(single, "t")
