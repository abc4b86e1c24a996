"""F27: secrets in the environment, the recipe, the command line and the hostfile."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from benchmarks.faults import scene
from benchmarks.faults.draw import Setup
from benchmarks.faults.rows.row import Measured, Row
from configs.errors import ResourceError

_NAMES = ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "MV2_PASS")
_SETUP = Setup(
    model="bert",
    stage=0,
    precision="fp32",
    world=1,
    extra="plain",
    batch=4,
    micro=4,
    steps=4,
    every=4,
    keep=1,
    mode="sync",
    guard=False,
)
# As sshd does it; what the client is given of words and environment is kept to be looked through.
_SSH = """#!/bin/sh
{{ printf '%s\\n' "$@"; env; }} >> {log}
while [ "$1" != node-1 ]; do shift; done; shift
unset {names}
exec sh -c "$*"
"""


class _Scene:
    """A training run on another host, by pdsh and a stand-in for ssh, and where it could leak."""

    def __init__(self, folder: Path, canary: str) -> None:
        self.folder = folder
        self.canary = canary
        self.log = folder / "remote"
        self.programs = folder / "programs"
        self.programs.mkdir(parents=True)
        ssh = self.programs / "ssh"
        ssh.write_text(_SSH.format(log=self.log, names=" ".join(_NAMES)))
        ssh.chmod(0o755)
        self.hostfile = folder / "hosts"
        self.hostfile.write_text(f"# password: {canary}\nnode-1 slots=1 # {canary}\n")
        self.seen: set[str] = set()

    def recipe(self, prepared: Path) -> Path:
        values = scene.recipe(prepared, self.folder / "run", _SETUP, scene.Now(1, 0))
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    def run(self, recipe: Path, *words: str, **environment: str) -> tuple[int, str]:
        """``onward run`` to its end: its exit code and what it said."""
        env = {
            **scene.environment(),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            **{name: f"{self.canary}-{name}" for name in _NAMES},
            **environment,
        }
        command = [sys.executable, "-m", "launcher", "run", str(recipe), *words]
        said = self.folder / "said"
        with said.open("w") as file:
            process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
            while process.poll() is None:
                self._look_around(process.pid)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
        return process.returncode, said.read_text()

    def _look_around(self, own: int) -> None:
        """At every process's command line, as anybody may; but what was typed is the user's."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue
            if self.canary in words and int(path.parts[2]) != own:
                self.seen.add(f"a command line: {words[:200]}")

    def leaks(self) -> Iterator[str]:
        """Files of the run, and what other hosts were told, with the canary in them."""
        yield from sorted(self.seen)
        for path in (self.log, *sorted((self.folder / "run").rglob("*"))):
            if path.is_file() and self.canary.encode() in path.read_bytes():
                yield str(path.relative_to(self.folder))


def _refused(made: _Scene, recipe: Path) -> dict[str, tuple[Sequence[str], dict[str, str]]]:
    """Commands that would hand a secret on, or write it down."""
    url = f"https://user:{made.canary}@example.org/x.jsonl"
    host = ("--hostfile", str(made.hostfile))
    return {
        "a password in a URL of the recipe": ((f"output={url}", *host), {}),
        "a key in the DeepSpeed config": (
            (f"stages.train.backend.config.comet.api_key={made.canary}", *host),
            {},
        ),
        "--env with a secret name": ((*host, "--env", "HF_TOKEN"), {}),
        "a password in a variable that is passed on": (host, {"UCX_PROXY": url}),
    }


def measure(repeats: int, folder: Path) -> Measured:
    """A whole run in such an environment, then what must be refused; another canary each time."""
    if shutil.which("pdsh") is None:
        msg = "pdsh is not installed"
        raise ResourceError(msg)
    prepared = scene.prepare(folder / "texts")
    held = of = files = 0
    notes = []
    for repeat in range(repeats):
        made = _Scene(folder / str(repeat), f"canary{secrets.token_hex(8)}")
        recipe = made.recipe(prepared)
        code, said = made.run(recipe, "--hostfile", str(made.hostfile))
        found = [*made.leaks(), *(["the screen"] if made.canary in said else [])]
        files += sum(path.is_file() for path in (made.folder / "run").rglob("*"))
        of, held = of + 1, held + (code == 0 and not found)
        notes += [f"leaked: {place}" for place in found]
        notes += [f"the run ended with {code}: {said[-500:]}"] if code else []
        for what, (words, environment) in _refused(made, recipe).items():
            code, said = made.run(recipe, *words, **environment)
            kept = code == 2 and made.canary not in said and not list(made.leaks())
            of, held = of + 1, held + kept
            notes += [] if kept else [f"{what}: exit code {code}: {said[-300:]}"]
    return Measured(held, of, {"files looked through": files}, tuple(notes[:6]))


ROW = Row(
    id="F27",
    fault="secrets in the environment, the recipe, the command line and the hostfile",
    promise="in no log, report, checkpoint, command line or other host's hands; 0 canaries",
    measure=measure,
    repeats=1,
)
