"""The report says what was found, in one page that needs nothing else."""

import re
from html.parser import HTMLParser

import pytest

from configs.errors import DataError
from downstream.records import write_json
from downstream.report import ReportStage, make_report
from downstream.reporting.gather import Facts
from downstream.reporting.render import duration
from downstream.reporting.verdict import verdict
from tests.downstream import tiny
from tests.downstream.reporting import facts


class Page(HTMLParser):
    """Collects what a page loads, its text, and tags that were never closed."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.open, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value for name, value in attrs if name in {"src", "href", "srcset"}]
        if tag not in {"meta", "img", "br", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = facts.run_folder(tmp_path_factory.mktemp("run"))
    return make_report(folder)


def test_the_page_stands_alone_and_is_well_formed(run):
    assert run.name == "index.html"
    assert run.parent.name == "summary"
    text = run.read_text()
    page = Page(text)
    assert page.open == []
    assert len(page.loaded) == 7
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.loaded)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_page_tells_the_findings(run):
    text = Page(run.read_text()).text
    assert "Significantly better than base in macro-F1: dapt." in text
    assert "0.410 ± 0.010" in text
    assert "+0.070 to +0.150" in text
    assert "not significant" in text
    assert "p < 0.001" in text
    assert "above it: dapt" in text
    assert "Degenerate runs, kept in all numbers: tapt seed 3." in text
    assert "dapt: held-out domain loss down by 0.310 nats" in text
    assert "43.2 % of 10 000" in text.replace("\u202f", " ")
    assert "0.111 (90)" in text
    assert "cell 0.400 prison <b>nucleus</b>" in text
    assert "Of domain 1 000 of 5 000 tokens" in text.replace("\u202f", " ")
    assert "1 25.0 % 100.0 % tensor" in text
    assert "pre 2 min 05 s" in text
    assert "trial & error" in text
    assert "<b>bold</b>" in text  # a class name, escaped


def test_markdown_tables_are_whole(run):
    blocks = re.findall(r"(?:^\|.*\|\n)+", (run.parent / "report.md").read_text(), re.MULTILINE)
    assert len(blocks) == 7
    for block in blocks:
        lines = block.splitlines()
        assert len({line.count("|") for line in lines}) == 1, block
        assert set(lines[1]) <= set("|-:"), block


def test_every_plot_is_a_png_and_named_in_markdown(run):
    made = {path.name for path in run.parent.glob("*.png")}
    of_gap = {"gap_pairs.png", "long_tail.png", "clusters.png"}
    assert made == {"scores.png", "differences.png", "language_model.png", "curves.png"} | of_gap
    assert all((run.parent / name).read_bytes().startswith(b"\x89PNG") for name in made)
    named = set(re.findall(r"\]\((\w+\.png)\)", (run.parent / "report.md").read_text()))
    assert named == made


def test_a_gap_without_contexts_and_clusters_is_shown_too(tmp_path):
    folder = facts.run_folder(tmp_path)
    found = facts.gap()
    found["pairs"][0]["context"] = found["clusters"] = None
    found["pairs"][0]["divergence"] = {"words": 0.1, "tokens": 0.2}
    for corpus in found["corpora"].values():
        corpus["balance"] = None
        corpus["divergence_of_halves"] = {"words": 0.1, "tokens": 0.2}
    for measure in ("context_shift", "covered"):
        del found["matrices"]["measures"][measure]
    write_json(folder / "gap" / "results.json", found)
    page = Page(make_report(folder).read_text())
    assert page.open == []
    assert len(page.loaded) == 6
    assert "shift of contexts (compared words)" not in page.text
    assert "used otherwise" not in page.text


def test_json_holds_the_numbers(run):
    found = tiny.read(run.parent / "report.json")
    assert found["evaluation"] == facts.evaluation()
    assert found["verdict"][0].startswith("Significantly better")
    table = found["costs"][1]
    assert (table["tokens"], table["training_seconds"]) == (450_000, 112.5)


def test_the_stage_shows_what_it_is_given(tmp_path):
    root = facts.run_folder(tmp_path)
    context = tiny.context("report", root / "report", evaluate=root / "evaluate")
    stage = ReportStage(evaluate="stage:evaluate")
    first = stage.run(context)
    assert stage.run(context) == first
    made = {path.name for path in (root / "report").glob("*.png")}
    assert made == {"scores.png", "differences.png", "language_model.png"}
    text = Page((root / "report" / "index.html").read_text()).text
    assert "How far the corpora lie apart" not in text


def test_a_recipe_without_a_report_stage_gets_one(tmp_path):
    page = make_report(facts.run_folder(tmp_path, with_report=False))
    assert page == tmp_path / "report" / "index.html"
    assert "dapt" in page.read_text()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no recipe\.yaml"):
        make_report(tmp_path)
    folder = facts.run_folder(tmp_path / "run")
    (folder / "evaluate" / "results.json").unlink()
    with pytest.raises(DataError, match=r"evaluate/results\.json: no such file"):
        make_report(folder)
    assert not (folder / "summary").exists()
    (folder / "evaluate").rmdir()
    with pytest.raises(DataError, match="run that stage first"):
        make_report(folder)


def of(evaluation) -> Facts:
    return Facts("x", evaluation, None, [], [], {}, {})


def test_no_difference_is_said_first():
    found = facts.evaluation()
    nothing = facts.difference(0.01, 0.03, significant=False)
    found["differences"]["macro_f1"] = {"dapt": nothing, "tapt": nothing}
    sentences = verdict(of(found))
    assert sentences[0] == "No arm differs significantly from base in macro-F1."
    assert "would be found in 8 of 10 such experiments" in sentences[2]


def test_harm_is_said_too():
    found = facts.evaluation()
    found["differences"]["macro_f1"]["dapt"] = facts.difference(-0.11, 0.04, significant=True)
    found["language_model"] = None
    sentences = verdict(of(found))
    assert sentences[0] == "Significantly worse than base in macro-F1: dapt."
    assert not any("held-out" in sentence for sentence in sentences)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.4, "59.4 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said
