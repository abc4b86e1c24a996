"""Values that are written as YAML are read back as the same values, strings as strings."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.yaml_source import read_yaml, yaml_text

# A recipe refuses what looks like a shell's variable.
VARIABLE = re.compile(r"\$[{A-Za-z_]")
# What a text is taken for if it stands there without quotes.
LOOKALIKES = st.from_regex(
    r"\A([-+]?[0-9_]{1,4}(\.[0-9_]{0,3})?([eE][-+]?[0-9]{1,5})?|0[xob][0-9a-f]{1,4}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{1,3}:[0-9]{2}|\.?(nan|inf)|yes|No|on|null|~|=|<<|true)\Z"
)
TEXTS = st.one_of(
    LOOKALIKES,
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
).filter(lambda text: not VARIABLE.search(text))
VALUES = st.recursive(
    st.one_of(
        TEXTS,
        st.integers(-(2**128) + 1, 2**128 - 1),
        st.floats(allow_nan=False),
        st.booleans(),
        st.none(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "values.yaml"


@example(values={"commit": "83e1234", "rate": 1e-5, "huge": 1e300, "day": "2024-01-01"})
@example(values={"breaks": "a\x85b\u2028c\u2029d\ne\r\nf", "\x85": "\t \ufeff"})
@given(values=st.dictionaries(TEXTS, VALUES, max_size=4))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_back(path: Path, values: dict[str, Any]) -> None:
    path.write_text(yaml_text(values), encoding="utf-8")
    found = read_yaml(path).values
    assert found == values
    assert repr(found) == repr(values)
