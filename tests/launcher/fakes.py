"""Stand-ins for ssh, mpirun, srun, scontrol: they note what they are given, and start it here."""

import json
import sys
from pathlib import Path
from typing import Any

_NOTE = """#!{python}
import json, os, subprocess, sys
words = sys.argv[1:]
note = {{"program": {program!r}, "words": words, "environment": dict(os.environ)}}
with open({log!r}, "a") as file:
    file.write(json.dumps(note) + "\\n")
{body}
"""
_SSH = """
# As sshd does it: the words, joined, are the login shell's to read; of the environment nothing.
if words[:1] == ["-G"]:
    sys.exit(255)
flags = [at for at, word in enumerate(words) if word.startswith("node-")]
command = words[flags[0] + 1:]
kept = {name: os.environ[name] for name in ("PATH", "HOME", "FAKE_LIBRARY") if name in os.environ}
sys.exit(subprocess.run(["sh", "-c", " ".join(command)], env=kept, cwd="/").returncode)
"""
_MPIRUN = """
count = int(words[words.index("-n") + 1])
env = dict(os.environ)
for at, word in enumerate(words):
    if word == "-x":
        name, equals, value = words[at + 1].partition("=")
        if equals:
            env[name] = value
command = words[next(at for at, word in enumerate(words) if "python" in word.rpartition("/")[2]):]
started = []
for rank in range(count):
    own = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": count,
           "OMPI_COMM_WORLD_LOCAL_RANK": rank, "OMPI_COMM_WORLD_LOCAL_SIZE": count}
    started.append(subprocess.Popen(command, env=env | {n: str(v) for n, v in own.items()}))
sys.exit(max(one.wait() for one in started))
"""
_SRUN = """
options = dict(word.lstrip("-").partition("=")[::2] for word in words if word.startswith("--"))
env = dict(os.environ)
for part in options.get("export", "ALL").split(",")[1:]:
    name, _, value = part.partition("=")
    env[name] = value
command = words[next(at for at, word in enumerate(words) if "python" in word.rpartition("/")[2]):]
nodes = int(options["nodes"])
each = int(options.get("ntasks-per-node", options.get("ntasks", 1)))
started = []
for rank in range(nodes * each):
    own = {"SLURM_PROCID": rank, "SLURM_LOCALID": rank % each, "SLURM_NODEID": rank // each,
           "SLURM_STEP_NUM_TASKS": nodes * each, "SLURM_STEP_ID": 0,
           "SLURM_STEP_TASKS_PER_NODE": f"{each}(x{nodes})"}
    started.append(subprocess.Popen(command, env=env | {n: str(v) for n, v in own.items()}))
sys.exit(max(one.wait() for one in started))
"""
_SCONTROL = """
print("\\n".join(words[-1].split(",")))
"""
_BODIES = {"ssh": _SSH, "mpirun": _MPIRUN, "srun": _SRUN, "scontrol": _SCONTROL}
_EMPTY = ("ompi_info", "sinfo")


class Fakes:
    """A folder of them for the front of PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "fakes"
        self._log = folder / "fakes.jsonl"
        self.folder.mkdir()
        for program, body in {**_BODIES, **dict.fromkeys(_EMPTY, "")}.items():
            facts = {"python": sys.executable, "program": program, "log": str(self._log)}
            path = self.folder / program
            path.write_text(_NOTE.format(**facts, body=body))
            path.chmod(0o755)

    def notes(self, program: str) -> list[dict[str, Any]]:
        """What one of them was given, each time."""
        if not self._log.exists():
            return []
        found = [json.loads(line) for line in self._log.read_text().splitlines()]
        return [note for note in found if note["program"] == program]

    def all_notes(self) -> str:
        """What all of them were given, as text."""
        return self._log.read_text() if self._log.exists() else ""
