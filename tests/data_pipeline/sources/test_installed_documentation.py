"""Documentation of packages: read from source, never imported."""

import gc
import sys
from collections import Counter
from pathlib import Path

import pytest

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources import InstalledDocumentation, Rejected

FILES = {
    "__init__.py": '"""Top."""\nraise RuntimeError("imported")\n',
    "nn/__init__.py": "",
    "nn/layers.py": '''
"""Layers \\d."""
import nothing_there
if True:
    class Layer:
        """A layer.

            Indented.
        """
        def forward(self):
            """Forward."""
            def inner():
                """Inner."""
        async def later(self): "Later."
        def silent(self): return "no docstring"
add_docstr(Layer.weight, r"""The weight.""")
try:
    add_newdoc("numpy", "sin", """Sine of {x}.""".format(x=1))
except ImportError:
    pass
''',
    "tests/inner.py": '"""Skipped."""',
    "test_all.py": '"""Skipped."""',
    "conftest.py": '"""Skipped."""',
    "other_python.py": "print 'hello'\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, content in FILES.items():
        path = tmp_path / "documented_package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    return "documented_package"


def test_docstrings_of_all_kinds(package):
    found = list(InstalledDocumentation(packages=[package]).documents(Path))
    layers = f"{package}.nn.layers"
    assert [(d.id, d.text, d.metadata["kind"]) for d in found] == [
        (package, "Top.", "module"),
        (layers, "Layers \\d.", "module"),
        (f"{layers}.Layer", "A layer.\n\nIndented.", "class"),
        (f"{layers}.Layer.forward", "Forward.", "function"),
        (f"{layers}.Layer.forward.inner", "Inner.", "function"),
        (f"{layers}.Layer.later", "Later.", "function"),
        (f"{layers}:Layer.weight", "The weight.", "function"),
        (f"{layers}:numpy.sin", "Sine of {x}.", "function"),
    ]
    assert {d.group for d in found[1:]} == {f"{package}/nn/layers.py"}
    assert found[0].metadata["part"] == ""
    assert dict(found[2].metadata) == {
        "package": package,
        "module": layers,
        "part": "nn",
        "kind": "class",
    }
    assert package not in sys.modules
    assert gc.isenabled()


def test_files_for_another_python_are_listed(package):
    items = [i for p in InstalledDocumentation(packages=[package]).parts(Path) for i in p.read()]
    (rejected,) = [item for item in items if isinstance(item, Rejected)]
    assert rejected.where.endswith("other_python.py")
    assert "SyntaxError" in rejected.reason


def test_several_files_share_parts_in_order(package, monkeypatch):
    whole = list(InstalledDocumentation(packages=[package]).documents(Path))
    monkeypatch.setattr("data_pipeline.sources.installed_documentation.PART_BYTES", 1)
    source = InstalledDocumentation(packages=[package])
    assert len(source.parts(Path)) == 3
    assert list(source.documents(Path)) == whole


def test_the_standard_library_has_topics_and_modules():
    parts = InstalledDocumentation(packages=["stdlib"]).parts(Path)
    topics = [item for item in parts[-1].read() if isinstance(item, Document)]
    assert len(topics) > 50
    assert len({topic.group for topic in topics}) == len(topics)
    (share,) = [part for part in parts[:-1] if any("stdlib/json/" in f.name for f in part.files)]
    found = {d.id: d for d in share.read() if isinstance(d, Document)}
    assert found["json.decoder.JSONDecoder"].metadata["part"] == "json"
    names = [file.name for part in parts[:-1] for file in part.files]
    assert not [name for name in names if "/test/" in name or "site-packages" in name]
    assert max(Counter(names).values()) == 1


def test_a_module_of_one_file(tmp_path, monkeypatch):
    (tmp_path / "documented_module.py").write_text('"""One file."""')
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = InstalledDocumentation(packages=["documented_module"]).documents(Path)
    assert (found.id, found.group) == ("documented_module", "documented_module.py")


@pytest.mark.parametrize("name", ["no_such_package", "__main__"])
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # as in `python script.py`
    source = InstalledDocumentation(packages=[name])
    with pytest.raises(DataError, match=f"'{name}' is not installed"):
        source.check(Path)


def test_a_package_without_source_is_named():
    with pytest.raises(DataError, match="'_thread' has no Python source"):
        InstalledDocumentation(packages=["_thread"]).parts(Path)


def test_digest_follows_the_source(package, tmp_path):
    before = InstalledDocumentation(packages=[package]).digest(Path)
    (tmp_path / package / "nn" / "__init__.py").write_text('"""New."""')
    assert InstalledDocumentation(packages=[package]).digest(Path) != before
