"""What holds for every source of records: the same rows in any format are the same documents."""

import pickle
from itertools import chain
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from configs.errors import DataError, RecipeError
from data_pipeline.example import Document
from data_pipeline.sources import Rejected, Source
from tests.data_pipeline.sources.formats import FORMATS

TEXTS = [
    "An ordinary sentence.",
    "今天天气很好,我们去公园散步。\n第二行。",
    '中英 mixed 文本 with "quotes", commas; tabs\tand \' marks',
    "שלום עולם — مرحبا بالعالم",
    "👩‍👩‍👧‍👦 emoji 🎉 and e\u0301 combining",
    "\n starts with a line end",
    "x" * 300,
    '""',
    "\ufeff a mark within",
    "last",
]
ROWS = [
    {"body": text, "key": f"k{at}", "book": f"b{at % 3}", "year": str(1990 + at), "unused": "-"}
    for at, text in enumerate(TEXTS)
]
FIELDS = {"text": "body", "id": "key", "group": "book", "metadata": ["year"]}
DOCUMENTS = [Document(r["body"], r["key"], r["book"], {"year": r["year"]}) for r in ROWS]


def source_of(form, path, **values):
    config = form.config | {"path": str(path), "fields": FIELDS} | values
    return TypeAdapter(Source).validate_python(config)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_same_rows_are_the_same_documents_whole_and_in_parts(form, tmp_path, small_parts):
    source = source_of(form, form.make(tmp_path / "data", ROWS))
    source.check(Path)
    assert list(source.documents(Path)) == DOCUMENTS
    parts = source.parts(Path)
    assert parts == source.parts(Path)
    assert (len(parts) > 1) == form.cut
    # Each by itself, in another process's place and in any order.
    read = [list(pickle.loads(pickle.dumps(part)).read()) for part in reversed(parts)]
    assert list(chain.from_iterable(reversed(read))) == DOCUMENTS


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_without_an_id_each_row_has_a_name_of_its_own(form, tmp_path, small_parts):
    path = form.make(tmp_path / "data", ROWS)
    found = list(source_of(form, path, fields={"text": "body"}).documents(Path))
    assert len({document.id for document in found}) == len(ROWS)
    assert all(d.group == d.id and not d.metadata for d in found)
    moved = form.make(tmp_path / "elsewhere", ROWS)
    again = source_of(form, moved, fields={"text": "body"})
    assert [d.id for d in again.documents(Path)] == [d.id for d in found]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_digest_and_stamp_follow_the_content(form, tmp_path):
    source = source_of(form, form.make(tmp_path / "data", ROWS))
    before = source.digest(Path), [file.stamp() for file in source.files(Path)]
    assert before[0] == source_of(form, form.make(tmp_path / "copy", ROWS)).digest(Path)
    form.make(tmp_path / "data", [*ROWS[1:], ROWS[0] | {"key": "another"}])
    after = source.digest(Path), [file.stamp() for file in source.files(Path)]
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    "form",
    [f for f in FORMATS.values() if f.columns],
    ids=[n for n, f in FORMATS.items() if f.columns],
)
def test_rows_without_text_are_rejected_by_number(form, tmp_path, small_parts):
    bad = {1, 4, 9}
    rows = [row | ({"body": None} if at in bad else {}) for at, row in enumerate(ROWS)]
    source = source_of(form, form.make(tmp_path / "data", rows), max_rejected=3)
    items = list(chain.from_iterable(part.read() for part in source.parts(Path)))
    rejected = [item for item in items if isinstance(item, Rejected)]
    assert [item for item in items if isinstance(item, Document)] == [
        d for at, d in enumerate(DOCUMENTS) if at not in bad
    ]
    assert {item.reason for item in rejected} == {"'body' is null, expected a string"}
    assert len({item.where for item in rejected}) == 3
    assert len(list(source.documents(Path))) == 7
    with pytest.raises(DataError, match=r"\(rejected: 3; max_rejected is 2\)"):
        list(source.model_copy(update={"max_rejected": 2}).documents(Path))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_field_that_is_nowhere_is_an_error(form, tmp_path):
    path = form.make(tmp_path / "data", ROWS)
    with pytest.raises(DataError, match=r"no (column|field) 'nope'"):
        list(source_of(form, path, fields={"text": "nope"}).documents(Path))


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_record_longer_than_the_limit_is_rejected(form, tmp_path, small_parts):
    path = form.make(tmp_path / "data", ROWS)
    source = source_of(form, path, longest_record=250, max_rejected=1)
    assert list(source.documents(Path)) == [d for d in DOCUMENTS if len(d.text) < 300]
    items = chain.from_iterable(part.read() for part in source.parts(Path))
    (long,) = [item for item in items if isinstance(item, Rejected)]
    assert "bytes long; longest_record is 250" in long.reason


def test_a_share_of_rejected_records(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' * 98 + "{\n{\n")
    make = TypeAdapter(Source).validate_python
    config = {"name": "jsonl", "path": str(path)}
    borne = make(config | {"max_rejected": 0.02})
    assert len(list(borne.documents(Path))) == 98
    assert (borne.rejected_at_most, borne.rejected_share) == (None, 0.02)
    strict = make(config | {"max_rejected": 0.019})
    with pytest.raises(
        DataError, match=r":100: .*last of 2 rejected among 100; max_rejected is 0.019"
    ):
        list(strict.documents(Path))
    strict.bear(2, Rejected("x", "y"))  # nothing can be said before all is read


@pytest.mark.parametrize("most", [-1, 1.0, 1.5, True, "3"])
def test_a_limit_that_means_nothing_is_refused(most):
    with pytest.raises(ValidationError):
        TypeAdapter(Source).validate_python({"name": "jsonl", "path": "x", "max_rejected": most})


def test_passwords_do_not_belong_into_recipes():
    config = {"name": "jsonl", "path": "https://me:secret@host/rows.jsonl"}
    with pytest.raises(RecipeError) as told:
        TypeAdapter(Source).validate_python(config)
    assert "secret" not in str(told.value)
