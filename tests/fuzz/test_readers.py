"""No reader of files crashes on one that is damaged or made up; ``make fuzz`` tries more."""

import pytest

from tests.fuzz.campaign import Found, attempt, try_all
from tests.fuzz.targets import READERS, Target


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_taken_or_refused(name: str, tmp_path) -> None:
    target = READERS[name](tmp_path)
    found = try_all(target, 100 if target.share < 10 else 300)
    assert found.crashes == []
    assert found.inputs >= 50
    assert set(found.kinds) - {"taken"} or name in TAKEN


TAKEN = (
    "board records",
    "outcomes",
    "packing plans",
    "prepared state",
    "signs of life",
    "export card",
    "checkpoint manifest",
)
"""Readers that answer what is wrong, or that nothing is there, instead of raising."""


def test_a_crash_is_found() -> None:
    from hypothesis import strategies as st

    def read(number: int) -> float:
        return 1 / (number - 70)

    found = try_all(Target(st.integers(0, 100), read, 1), 500)
    assert "ZeroDivisionError" in found.crashes[0]
    with pytest.raises(ZeroDivisionError):
        attempt(Target(st.integers(), read, 1), 70, Found())
