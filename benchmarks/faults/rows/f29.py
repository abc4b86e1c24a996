"""F29: shell metacharacters in paths, environment values and arguments, by every launcher."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.rows.row import Measured, Row
from configs.errors import RecipeError, ResourceError
from launcher import exports, spelling
from launcher.command import Launch, deepspeed_command
from launcher.hosts import Host
from launcher.placement import remote_environments

_PIECES = [
    *("$HOME", "`id`", "$(id)", "${IFS}", "'", '"', "\\", "\n", "\t", "\r", " ", "  ", ";", "&"),
    *("&&", "|", "||", ">", "<", "*", "?", "[a]", "{a,b}", "~", "!", "!!", "#", "%n", "%h", "%%"),
    *("%", "=", ",", "+", "+2F", "@", "^", "(", ")", "é", "日本", "\u2028", "\udcff", "-", "--x"),
    *("a", "b", "\x7f", "\x01", "\\n", "$'x'", "\\\\", "${x:-y}", "$((1+1))", "=ls", "<(id)"),
]
_SHOWS = """
import json, os, sys
from launcher import exports, spelling
os.environ.update(exports.unpacked(os.environ))
told = {"words": spelling.read_if_spelled(sys.argv[1:]), "value": os.environ.get("FI_HOSTILE")}
with open(os.environ["SHOWN"], "w") as file:
    json.dump(told, file)
"""


def strings(count: int) -> Iterator[str]:
    """Each piece alone, then mixtures; no NUL, which no process can be given."""
    yield from _PIECES[:count]
    draw = random.Random(29)
    for _ in range(count - len(_PIECES)):
        yield "".join(draw.choices(_PIECES, k=draw.randrange(2, 9)))


class _Scene:
    """deepspeed's own classes make the commands; what stands for the far side reads them again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = folder / "shown.json"
        self.ssh = folder / "programs"
        self.ssh.mkdir()
        # As sshd does it: the words, joined, are the login shell's to read.
        script = self.ssh / "ssh"
        script.write_text(
            '#!/bin/sh\nwhile [ "$1" != node-1 ]; do shift; done; shift\nexec sh -c "$*"\n'
        )
        script.chmod(0o755)
        self.module = folder / "shows.py"
        self.module.write_text(_SHOWS)

    def launch(self, launcher: str, text: str) -> Launch:
        place = self.folder / "x" if "/" in text else Path(f"/runs/{text}")
        return Launch(
            recipe=place / "recipe.yaml",
            stages=["base"],
            port=4000,
            folder=place,
            hosts=(Host("node-1", 1),),
            hostfile=self.folder / "hosts",
            launcher=launcher,
            address="10.0.0.1",
            working=place,
        )

    def far_side(self, launcher: str, launch: Launch, value: str) -> Mapping[str, Any]:
        """What a worker is given by deepspeed's own command for this launcher."""
        command = deepspeed_command(launch, [], {})
        passed, _ = remote_environments(launch, {}, {"FI_HOSTILE": value})
        lines = exports.format_exports(passed)
        made = _deepspeed_words(launcher, command, lines)
        if launcher == "pdsh":
            self.shown.unlink(missing_ok=True)
            self._start(made)
            return dict(json.loads(self.shown.read_text()))
        # mpirun and srun hand a list on to exec; only the variables are read from a text.
        given = dict(_given(launcher, made))
        rest = made[made.index("-u") + 1 :]
        words = spelling.read_if_spelled(rest[2 if rest[0] == "-m" else 1 :])
        return {"words": words, "value": {**given, **exports.unpacked(given)}.get("FI_HOSTILE")}

    def _start(self, made: Sequence[str]) -> None:
        env = {
            "PATH": f"{self.ssh}:{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "SHOWN": str(self.shown),
            "PDSH_RCMD_TYPE": "ssh",
        }
        # launch.py starts the worker with an argument list: its own words are left out.
        at, end = made.index(sys.executable), made.index("launcher.worker")
        worker = [sys.executable, "-S", str(self.module)]
        subprocess.run([*made[:at], *worker, *made[end + 1 :]], env=env, check=True)


def _given(launcher: str, made: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Environment variables as mpirun and srun read them from their command lines."""
    if launcher == "openmpi":
        for at, word in enumerate(made):
            if word == "-x":
                name, _, value = made[at + 1].partition("=")
                yield name, value
        return
    (export,) = [word for word in made if word.startswith("--export=")]
    for part in export.partition("=")[2].split(",")[1:]:
        name, _, value = part.partition("=")
        yield name, value


def _deepspeed_words(launcher: str, command: Sequence[str], lines: str) -> list[str]:
    """The command of deepspeed's own class for a launcher, read as its runner reads it."""
    from deepspeed.launcher import runner
    from deepspeed.launcher.multinode_runner import OpenMPIRunner, PDSHRunner, SlurmRunner

    args = runner.parse_args(list(command))
    world = runner.encode_world_info({"node-1": [0]})
    if launcher == "pdsh":
        made = PDSHRunner(args, world)
    else:
        kind = OpenMPIRunner if launcher == "openmpi" else SlurmRunner
        made = kind(args, world, {"node-1": 1})
    for line in lines.splitlines():
        made.add_export(*line.split("=", maxsplit=1))
    found = made.get_cmd({}, {"node-1": [0]})
    return list(found[0] if launcher == "pdsh" else found)


def measure(repeats: int, folder: Path) -> Measured:
    """``repeats`` strings, each as a folder's name, an argument and a value, by each launcher."""
    if shutil.which("pdsh") is None:
        msg = "pdsh is not installed"
        raise ResourceError(msg)
    scene = _Scene(folder)
    held = of = refused = 0
    notes = []
    for text in strings(repeats):
        for launcher in ("pdsh", "openmpi", "slurm"):
            of += 1
            launch = scene.launch(launcher, text)
            try:
                told = scene.far_side(launcher, launch, text)
            except RecipeError:
                refused += 1
                held += 1
                continue
            words = [str(launch.recipe), "base", f"--report_to={launch.folder}"]
            kept = told["value"] == text and told["words"][:3] == words
            held += kept and f"--folder={launch.working}" in told["words"]
            if not kept:
                notes.append(f"{launcher}: {text!r} -> {told}")
    figures: dict[str, float | int | str] = {"refused": refused, "passed literally": held - refused}
    return Measured(held, of, figures, tuple(notes[:5]))


ROW = Row(
    id="F29",
    fault="shell metacharacters in paths, environment values and arguments for other hosts",
    promise="they arrive as they were, or are refused before anything starts",
    measure=measure,
    repeats=200,
)
