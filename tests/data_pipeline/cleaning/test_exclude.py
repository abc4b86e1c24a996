"""What must not be trained on is found wherever it stands, and nothing else is."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.cleaning import SHORTEST_CONTAINED, Excluded
from data_pipeline.cleaning.exclude import squeezed

LONG = "".join(f"{n} bottles, " for n in range(20))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab \u7403", min_size=50, max_size=120), max_size=4),
    document=st.text("ab \u7403", max_size=200),
    inserted=st.integers(0, 3),
)
def test_it_is_what_searching_for_each_text_finds(texts, document, inserted):
    if inserted < len(texts):
        document = document[:20] + texts[inserted] + document[20:]
    wanted = [text for text in map(squeezed, texts) if text]
    own = squeezed(document)
    expected = own in wanted or any(t in own for t in wanted if len(t) >= SHORTEST_CONTAINED)
    assert Excluded.of(texts).holds(document) == expected


def test_case_space_and_signs_do_not_count():
    excluded = pickle.loads(pickle.dumps(Excluded.of([LONG])))
    assert excluded.holds("Before. " + LONG.upper().replace(" ", "\n").replace(",", ";") + "After")
    assert not excluded.holds(LONG.replace("17 bottles", "seventeen bottles"))
    assert not excluded.holds(LONG[:150])


@pytest.mark.parametrize("before", [(1 << 16) - 70, (1 << 16) - 1, (1 << 17) + 5])
def test_a_text_across_the_border_of_two_stretches_is_found(before):
    document = "x" * before + LONG
    assert Excluded.of([LONG]).holds(document)
    assert not Excluded.of([LONG]).holds(document[:-8])


def test_short_texts_are_found_only_as_whole_documents():
    excluded = Excluded.of(["Short text.", "", "..."])
    assert excluded.holds("short  text")
    assert not excluded.holds("A short text.")
    assert not excluded.holds("!?")
