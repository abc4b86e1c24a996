"""Calls that could run what they read, or a shell: only where a reason is given."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("configs", "data_pipeline", "engine", "downstream", "launcher")
CALLS = {
    "torch.load",
    "torch.save",
    "pickle.load",
    "pickle.loads",
    "pickle.dump",
    "pickle.dumps",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "joblib.dump",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "os.umask",
    "os.chmod",
    "shutil.unpack_archive",
}
METHODS = {"extractall", "extract", "chmod"}
"""Of archives, whatever they are called; and permissions wider than the umask."""
ALLOWED = {
    ("engine/checkpoint/import_deepspeed/reading.py", "torch.load"): "weights_only, or by "
    "--trust-checkpoint, which says what it does",
    ("configs/yaml_source.py", "yaml.load"): "with a subclass of SafeLoader, for one override",
    ("configs/permissions.py", "os.umask"): "ONWARD_UMASK",
}


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def found_in(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield from _in_call(node)
        is_set = isinstance(node, ast.keyword) and _is_true(node.value)
        if is_set and node.arg in {"shell", "allow_pickle", "trust_remote_code"}:
            yield f"{node.arg}=True"
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "os", "yaml", "torch"}:
            yield from (
                f"{node.module}.{name.name}"
                for name in node.names
                if f"{node.module}.{name.name}" in CALLS
            )


def _in_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    if name in CALLS:
        yield name
    if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
        yield node.func.attr
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in {"np.load", "numpy.load"} and _is_true(given.get("allow_pickle")):
        yield "np.load(allow_pickle)"
    if name.endswith(".from_pretrained") and not ({"trust_remote_code", None} & given.keys()):
        yield "from_pretrained without trust_remote_code"


def _is_true(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and value.value is False)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_has_one_without_a_reason(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = set(found_in(path.read_text(encoding="utf-8")))
    allowed = {call for file, call in ALLOWED if file == name}
    assert found - allowed - TRUSTED.get(name, set()) == set()
    assert allowed <= found, "an exception that is needed no more"


TRUSTED = {
    # Of a model whose code the recipe trusts and pins (engine/remote_code.py), or False.
    "engine/checkpoint/export.py": {"trust_remote_code=True"},
}


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system(name)",
        "subprocess.run(f'rm {x}', shell=True)",
        "subprocess.run(x, shell=asked)",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "torch.load(path, weights_only=True)",
        "tarfile.open(x).extractall(y)",
        "from pickle import loads",
        "yaml.load(text, Loader=Loader)",
        "AutoModel.from_pretrained(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "path.chmod(0o777)",
    ],
)
def test_each_is_seen(text: str) -> None:
    assert list(found_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "subprocess.run(['rm', x], shell=False)",
        "np.load(x, allow_pickle=False)",
        "json.load(x)",
        "re.compile(x)",
        "M.from_pretrained(x, trust_remote_code=False)",
        "M.from_pretrained(x, **trusted)",
    ],
)
def test_what_is_harmless_is_not(text: str) -> None:
    assert not list(found_in(text))
