"""The part a docstring documents: nothing gives it away, no file and no text on two sides."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.errors import DataError
from data_pipeline.example import Document
from downstream.tasks import DocumentationPart
from downstream.tasks.documentation_part import hiding_pattern
from downstream.tasks.stage import card

PARTS = {"nn": 14, "optim": 12, "distributed": 11, "rare": 4}


def documents() -> list[Document]:
    made = []
    for part, files in PARTS.items():
        for file in range(files):
            for index in range(4):
                name = f"pkg.{part}.m{file}.f{index}"
                words = " ".join(f"{part[::-1]}{(file * 7 + index * k) % 13}" for k in range(1, 9))
                text = f"About {chr(97 + file)}{chr(97 + index)} {part}: {words}. See pkg.{part}.f"
                values = {"part": part, "module": f"pkg.{part}.m{file}", "package": "pkg"}
                made.append(Document(text, name, f"pkg/{part}/m{file}.py", values))
    return made


TASK = DocumentationPart(package="pkg", classes=3, shortest=20)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("see torch.nn.Module.forward here", "see NAME here"),
        ("in torch/_inductor/ir.py, line 3", "in NAME, line 3"),
        ("use nn.Module, not annual", "use NAME.Module, not annual"),
        ("TorchInductor and _inductor", "TorchNAME and NAME"),
        ("FX graphs, prefix, fx_graph", "NAME graphs, prefix, NAME_graph"),
        ("a tensor of torch, inner product", "a tensor of torch, inner product"),
    ],
)
def test_names_that_give_the_answer_away_are_hidden(text, hidden):
    pattern = hiding_pattern("torch", ["_inductor", "fx", "nn"])
    assert pattern.sub("NAME", text) == hidden


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_file_and_no_text_on_two_sides(seed):
    data = TASK.build(documents(), seed)
    groups = {side: {row.group for row in rows} for side, rows in data.sides.items()}
    texts = {side: {row.text for row in rows} for side, rows in data.sides.items()}
    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert not groups[first] & groups[second]
        assert not texts[first] & texts[second]
    assert set(data.held_out) == groups["dev"] | groups["test"]
    for rows in data.sides.values():
        assert {row.label for row in rows} == set(data.labels) == {"nn", "optim", "distributed"}
    total = sum(map(len, data.sides.values()))
    assert len(data.sides["test"]) / total == pytest.approx(0.25, abs=0.08)
    assert len(data.sides["dev"]) / total == pytest.approx(0.1, abs=0.08)


def test_a_seed_gives_one_split_and_another_seed_another():
    assert TASK.build(documents(), 1) == TASK.build(documents(), 1)
    assert TASK.build(documents(), 1).held_out != TASK.build(documents(), 2).held_out


def test_equal_texts_stay_once_or_not_at_all():
    extra = documents()
    same = "The very same words, with number {} in them"
    for number, part in enumerate(("nn", "nn", "nn")):
        values = {"part": part, "module": "", "package": "pkg"}
        extra.append(Document(same.format(number), f"n{number}", f"pkg/nn/x{number}.py", values))
    for number, part in enumerate(("nn", "optim")):
        values = {"part": part, "module": "", "package": "pkg"}
        text = "These words are told of two different parts"
        extra.append(Document(text, f"c{number}", f"pkg/{part}/y{number}.py", values))
    ids = {row.id for rows in TASK.build(extra, 0).sides.values() for row in rows}
    assert len(ids & {"n0", "n1", "n2"}) == 1
    assert not ids & {"c0", "c1"}


def test_limits_do_not_move_the_split():
    whole = TASK.build(documents(), 3)
    limited = DocumentationPart.model_validate(TASK.model_dump() | {"limits": {"train": 9}})
    small = limited.build(documents(), 3)
    assert len(small.sides["train"]) == 9
    assert small.sides["test"] == whole.sides["test"]
    assert small.held_out == whole.held_out


def test_too_few_parts_are_refused():
    with pytest.raises(DataError, match="has 3 documented parts of 10 files or more"):
        TASK.model_copy(update={"classes": 4}).build(documents(), 0)


@pytest.mark.processes
def test_the_package_is_read_from_its_source(tmp_path, monkeypatch):
    package = tmp_path / "madeup"
    for part in ("nn", "optim"):
        (package / part).mkdir(parents=True)
        for file in range(10):
            lines = [
                f'def {chr(97 + n)}():\n    """Says {part * 3} {chr(97 + file)} {chr(97 + n)}"""\n'
                for n in range(3)
            ]
            (package / part / f"m{file}.py").write_text("raise ImportError\n" + "".join(lines))
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = DocumentationPart(package="madeup", classes=2, shortest=5)
    task.check(Path)
    data = task.load(Path, seed=0)
    assert data.notes["rows before deduplication"] == 60
    assert "nnnnnn" in data.sides["train"][0].text
    monkeypatch.setattr("data_pipeline.sources.installed_documentation.PART_BYTES", 200)
    for processes in (1, 2):
        monkeypatch.setattr("downstream.tasks.documentation_part.PROCESSES", processes)
        assert task.load(Path, seed=0) == data
    with pytest.raises(DataError, match="'nowhere' is not installed"):
        DocumentationPart(package="nowhere").check(Path)


def test_the_card_tells_what_simple_methods_reach():
    facts = card("documentation_part", TASK.build(documents(), 1))
    words = facts["references"]["tfidf_logistic_regression"]["test"]
    majority = facts["references"]["majority"]
    assert words["accuracy"] == 1.0  # reversed names give the class away to anybody
    assert majority["label"] == "nn"
    share = facts["rows_by_label"]["test"]["nn"] / facts["rows"]["test"]
    assert majority["test"]["accuracy"] == pytest.approx(share)
