"""The documentation of installed Python packages, read from their source.

No package is imported. The one module that is, ``pydoc_data.topics`` of the standard library, holds
nothing but text.
"""

import ast
import gc
import importlib.util
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from configs.errors import DataError
from data_pipeline.example import Document
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.source import DocumentSource, Locate, Part, Rejected

STDLIB = "stdlib"
SKIPPED_FOLDERS = frozenset({"test", "tests", "site-packages", "dist-packages", "__pycache__"})
PART_BYTES = 2 << 20
ADD_DOCUMENTATION = ("add_docstr", "_add_docstr", "add_newdoc", "add_docstr_all")
"""Functions by which packages attach docstrings to what is written in C."""


class InstalledDocumentation(DocumentSource):
    """Docstrings of modules, classes and functions; for the standard library pydoc's topics too.

    A document's ``id`` is its dotted name, its ``group`` the file it stands in, and its
    ``metadata`` holds package, module, kind (module, class, function, topic) and part: the first
    name below the package (``nn`` for ``torch.nn.functional``; "" for the package itself).

    Attributes:
        packages: ``stdlib``, or importable top-level names.
    """

    name: Literal["installed_documentation"] = "installed_documentation"
    packages: list[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]] = Field(min_length=1)

    @property
    def rejected_at_most(self) -> int | None:
        # Packages ship files for other Python versions; they are listed, and nobody's mistake.
        return None

    def files(self, locate: Locate) -> list[SourceFile]:
        del locate
        return [file for package in self.packages for file in _package_files(package)]

    def check(self, locate: Locate) -> None:
        del locate
        for package in self.packages:
            _roots(package)

    def parts(self, locate: Locate) -> list[Part]:
        del locate
        parts: list[Part] = []
        for package in self.packages:
            parts += _shares(package, _package_files(package))
            if package == STDLIB:
                parts.append(TopicsPart())
        return parts


@dataclass(frozen=True, slots=True)
class DocstringsPart:
    """Some files of one package."""

    package: str
    files: tuple[SourceFile, ...]

    def read(self) -> Iterator[Document | Rejected]:
        for file in self.files:
            yield from _docstrings(self.package, file)


@dataclass(frozen=True, slots=True)
class TopicsPart:
    """The language reference that ``help()`` shows: a module that holds nothing but text."""

    def read(self) -> Iterator[Document | Rejected]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            values = {"package": STDLIB, "module": "pydoc_data.topics", "part": "topics"}
            place = f"pydoc_data/topics/{name}"
            yield Document(topics[name], f"topic {name}", place, values | {"kind": "topic"})


@dataclass(frozen=True, slots=True)
class _Found:
    name: str
    kind: str
    text: str


def _package_files(package: str) -> list[SourceFile]:
    """Its ``.py`` files in order of their names, tests left out."""
    files: list[SourceFile] = []
    for root in _roots(package):
        files += _tree(root, package) if root.is_dir() else [SourceFile(root, f"{package}.py")]
    if not files:
        msg = f"installed_documentation: package '{package}' has no Python source; take it out"
        raise DataError(msg)
    return files


def _roots(package: str) -> list[Path]:
    """The folders of a package, or the one file of a module; it is not imported."""
    if package == STDLIB:
        return [Path(sysconfig.get_path("stdlib"))]
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that runs has none, such as __main__
        spec = None
    if spec is None:
        msg = (
            f"installed_documentation: package '{package}' is not installed for "
            f"{sys.executable}; install it, or take it out of `packages`"
        )
        raise DataError(msg)
    if spec.submodule_search_locations:
        return sorted(map(Path, spec.submodule_search_locations))
    return [Path(spec.origin)] if spec.origin and spec.origin.endswith(".py") else []


def _tree(folder: Path, prefix: str) -> list[SourceFile]:
    files = []
    for path in folder.rglob("*.py"):
        inner = path.relative_to(folder)
        if SKIPPED_FOLDERS.isdisjoint(inner.parts[:-1]) and not _is_test(inner.name):
            files.append(SourceFile(path, f"{prefix}/{inner.as_posix()}"))
    return sorted(files, key=lambda file: file.name)


def _is_test(name: str) -> bool:
    return name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"


def _shares(package: str, files: Sequence[SourceFile]) -> Iterator[Part]:
    share: list[SourceFile] = []
    size = 0
    for file in files:
        share.append(file)
        size += file.size() or 0
        if size >= PART_BYTES:
            yield DocstringsPart(package, tuple(share))
            share, size = [], 0
    if share:
        yield DocstringsPart(package, tuple(share))


def _docstrings(package: str, file: SourceFile) -> Iterator[Document | Rejected]:
    with file.open() as stream:
        code = stream.read()
    try:
        with _quick_parsing():
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        yield Rejected(str(file), f"not parsed by this Python: {type(error).__name__}: {error}")
        return
    module = _module_name(package, file)
    below = module.split(".")[0 if package == STDLIB else 1 :]
    values = {"package": package, "module": module, "part": below[0] if below else ""}
    for found in _in_module(module, tree):
        text = cleandoc(found.text)
        if text.strip():
            yield Document(text, found.name, file.name, values | {"kind": found.kind})


def _module_name(package: str, file: SourceFile) -> str:
    parts = file.name.removesuffix(".py").split("/")
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts[1:] if package == STDLIB else parts)


def _in_module(module: str, tree: ast.Module) -> Iterator[_Found]:
    text = ast.get_docstring(tree, clean=False)
    if text:
        yield _Found(module, "module", text)
    yield from _in_body(module, tree.body)


def _in_body(scope: str, body: Sequence[ast.stmt]) -> Iterator[_Found]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{scope}.{node.name}"
            text = ast.get_docstring(node, clean=False)
            if text:
                yield _Found(name, "class" if isinstance(node, ast.ClassDef) else "function", text)
            yield from _in_body(name, node.body)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _attached(scope, node.value)
        else:
            for inner in ("body", "orelse", "finalbody"):
                yield from _in_body(scope, getattr(node, inner, ()))


def _attached(scope: str, call: ast.Call) -> Iterator[_Found]:
    """``add_docstr(torch.abs, r"...")``, also with ``"...".format(...)`` as its text."""
    function = call.func
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name not in ADD_DOCUMENTATION or len(call.args) < 2:
        return
    text = call.args[-1]
    if isinstance(text, ast.Call) and isinstance(text.func, ast.Attribute):
        text = text.func.value
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        about = ".".join(_told(argument) for argument in call.args[:-1])
        yield _Found(f"{scope}:{about}", "function", text.value)


def _told(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    return ast.unparse(node)


@contextmanager
def _quick_parsing() -> Iterator[None]:
    """No cycles arise while parsing, and the collector's passes would triple its time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()
