"""A batch file for Slurm that saves before its time is over, and goes on in a requeued job."""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from configs.errors import RecipeError
from configs.stage import StageConfig
from configs.yaml_source import nearest
from launcher.environment import PROJECT
from launcher.links import ChainRecipe

FIRST_LINES = "#!/bin/bash\n# Made by `onward launch-script`"
_RESERVED = {
    *("job-name", "nodes", "ntasks-per-node", "signal", "requeue", "no-requeue", "open-mode"),
    *("ntasks", "array", "time", "partition", "account", "gpus-per-node"),
}
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@%+=\[\]-]+")
_TIME = re.compile(r"(?:([0-9]{1,4})-)?([0-9]{1,4}):([0-5]?[0-9]):([0-5]?[0-9])")
_RECORDS = ".prepare/**/*.json"
_MARGIN = 60
"""Seconds: Slurm may send the signal so much earlier or later than asked."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of Slurm, and what is to be run.

    Attributes:
        recipe: its file.
        loaded: what it says.
        words: stages and settings of the command line, as given; stages: those to run, in order.
        nodes: hosts.
        tasks: ranks on each of them.
        grace: seconds for saving; Slurm's signal comes so long, and a minute, before the end.
        settings: further options of sbatch, without dashes; empty values stand for flags.
        container: an image, or empty.
        working: the folder that relative paths are meant from.
    """

    recipe: Path
    loaded: ChainRecipe
    words: Sequence[str]
    stages: Sequence[str]
    nodes: int
    tasks: int
    time: str = ""
    partition: str = ""
    account: str = ""
    gpus_per_node: int | None = None
    grace: float = 120.0
    settings: Mapping[str, str] = field(default_factory=dict)
    container: str = ""
    working: Path = field(default_factory=Path.cwd)

    @property
    def run_folder(self) -> Path:
        """Where the run's results go."""
        return self.working / self.loaded.output


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` and ``KEY`` as options of sbatch; RecipeError for what is no option."""
    found = {}
    for word in words:
        key, _, value = word.partition("=")
        key = key.lstrip("-")
        if not _KEY.fullmatch(key):
            msg = f"--set {word}: expected KEY=VALUE or KEY, such as qos=long or exclusive"
            raise RecipeError(msg)
        if key in _RESERVED:
            msg = (
                f"--set {word}: {key} is set by this command itself, from its options or the recipe"
            )
            raise RecipeError(msg)
        found[key] = value
    return found


def chosen_stages(recipe: ChainRecipe, names: Sequence[str]) -> list[str]:
    """The named stages in the recipe's order, all without names; RecipeError for unknown ones."""
    for name in names:
        if name not in recipe.stages:
            msg = f"no stage '{name}' in this recipe; {nearest(name, recipe.stages)}"
            raise RecipeError(msg)
    return [name for name in recipe.stages if not names or name in names]


def is_apptainer(image: str) -> bool:
    """An image file of Apptainer; anything else is enroot's, by pyxis: ``--container-image``."""
    return image.endswith(".sif")


def batch_script(job: Job) -> str:
    """The file's text.

    Raises:
        RecipeError: an option that sbatch could not read back; settings together with a container.
    """
    return "\n".join(
        [
            FIRST_LINES,
            *_directives(job),
            _HEAD.format(
                working=shlex.quote(str(job.working)),
                run=shlex.quote(str(job.run_folder)),
                kept=_kept(job),
            ),
            *(_in_container(job) if job.container else _plain(job)),
            _TAIL,
        ]
    )


def _require_time(job: Job) -> None:
    """RecipeError for what sbatch would not take, or what leaves no time before the signal."""
    if not job.time:
        return
    parts = _TIME.fullmatch(job.time)
    if parts is None:
        msg = f"--time {job.time}: expected [D-]HH:MM:SS, such as 12:00:00 or 2-00:00:00"
        raise RecipeError(msg)
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    before = int(job.grace) + _MARGIN
    if total <= before:
        msg = (
            f"--time {job.time}: the run would be asked to save {before} s before its end (--grace "
            "and a minute), which is at once; give more time, or a shorter --grace"
        )
        raise RecipeError(msg)


def _directives(job: Job) -> Iterator[str]:
    _require_time(job)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", job.loaded.name).strip("-.") or "run"
    options: dict[str, str | int | None] = {
        "job-name": f"onward-{name}",
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks,
        "gpus-per-node": job.gpus_per_node,
        "time": job.time or None,
        "partition": job.partition or None,
        "account": job.account or None,
        "signal": f"B:USR1@{int(job.grace) + _MARGIN}",
        "requeue": "",
        "open-mode": "append",
        **job.settings,
    }
    for key, value in options.items():
        if value is None:
            continue
        if value != "" and not _PLAIN.fullmatch(str(value)):
            given = f"--set {key}={value}" if key in job.settings else f"--{key} {value}"
            msg = f"{given}: sbatch reads only letters, digits and _.,:/@%+=[]- unchanged"
            raise RecipeError(msg)
        yield f"#SBATCH --{key}" + (f"={value}" if value != "" else "")


def _kept(job: Job) -> str:
    """What shows progress: a done stage, and what an unfinished one would not lose."""
    globs = (
        f"{shlex.quote(name)}/{pattern}"
        for name in job.stages
        for pattern in _patterns(job.loaded.stages[name])
    )
    return " ".join(globs)


def _patterns(stage: StageConfig) -> list[str]:
    """Hosts that share a stage note each task that is done."""
    return [*sorted(stage.KEPT), *([_RECORDS] if stage.RUNS == "hosts" else [])]


def _plain(job: Job) -> Iterator[str]:
    words = [
        *(sys.executable, "-P", "-m", "launcher", "run", str(job.recipe.absolute()), *job.words),
        *("--launcher", "slurm", "--processes", str(job.tasks), f"--grace={job.grace:g}"),
    ]
    project = shlex.quote(str(PROJECT))
    yield f'export PYTHONPATH={project}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1\n'
    yield f"run_all() {{\n    begin {shlex.join(words)}\n}}"


def _in_container(job: Job) -> Iterator[str]:
    """One step a group of stages: srun is not to be had inside of a container."""
    if any("=" in word for word in job.words):
        msg = "--container: write the settings into the recipe; workers read its file alone"
        raise RecipeError(msg)
    yield _MEETING
    yield "run_all() {"
    for launched, names in _groups(job):
        recipe = str(job.recipe.absolute())
        if launched:
            size = [f"--nodes={job.nodes}", f"--ntasks-per-node={job.tasks}"]
            program = ["launcher.worker", recipe, *names, f"--grace={job.grace:g}"]
        else:
            size = ["--nodes=1", "--ntasks=1"]
            program = ["launcher", "run", recipe, *names, f"--grace={job.grace:g}"]
        words = ["srun", *size, "--kill-on-bad-exit=1", *_entered(job)]
        yield f"    begin {shlex.join([*words, 'python3', '-P', '-m', *program])} || return"
    yield "}"


def _groups(job: Job) -> Iterator[tuple[bool, list[str]]]:
    """Stages that run together, in order; whether on all ranks, or on one host."""
    together: list[str] = []
    for name in job.stages:
        launched = job.loaded.stages[name].RUNS == "ranks"
        if together and launched != (job.loaded.stages[together[0]].RUNS == "ranks"):
            yield not launched, together
            together = []
        together.append(name)
    if together:
        yield job.loaded.stages[together[0]].RUNS == "ranks", together


def _entered(job: Job) -> list[str]:
    """Into the container, in which Onward is installed; with the same folders at the same paths."""
    folders = [job.working, job.recipe.absolute().parent, job.run_folder]
    shared = list(dict.fromkeys(map(str, folders)))
    for path in shared:
        if re.search(r"[:,\s]", path):
            msg = f"--container: {path}: a mounted folder's path cannot hold ':', ',' or spaces"
            raise RecipeError(msg)
    if is_apptainer(job.container):
        gpus = ["--nv"] if job.gpus_per_node else []
        binds = [word for path in shared for word in ("--bind", path)]
        return ["apptainer", "exec", *gpus, *binds, "--pwd", str(job.working), job.container]
    return [
        f"--container-image={job.container}",
        f"--container-mounts={','.join(f'{path}:{path}' for path in shared)}",
        f"--container-workdir={job.working}",
    ]


_HEAD = r"""
# Its time is nearly over: Slurm sends SIGUSR1 to this shell alone, which hands it on; the run saves
# its state and ends with 75, and the job goes back into the queue. Submit it with sbatch.
set -u
cd -- {working} || exit
run_folder={run}
mkdir -p -- "$run_folder" || exit
record="$run_folder/.requeued-$SLURM_JOB_ID"

progress() {{
    # What is worth keeping of the stages, and which are done.
    (
        cd -- "$run_folder" || exit
        shopt -s nullglob globstar
        printf '%s\n' {kept}
        # Before the first stage there is no such file, and grep would read the terminal.
        grep -ls '"state": "done"' /dev/null ./*/status.json
    ) | sort | cksum
}}

# Twice without progress, for whatever reason, is the end: no job runs in circles.
idle=0
before=$(progress)
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt 0 ] && [ -f "$record" ]; then
    {{ read -r idle; read -r last; }} < "$record"
    if [ "$before" = "$last" ]; then idle=$((idle + 1)); else idle=0; fi
fi
if [ "$idle" -ge 2 ]; then
    echo "onward: requeued twice without progress; not run again" >&2
    exit 1
fi
printf '%s\n%s\n' "$idle" "$before" > "$record"

run=
asked=
trap 'asked=yes; [ -n "$run" ] && kill -USR1 "$run" 2>/dev/null' USR1
trap '[ -n "$run" ] && kill -TERM "$run" 2>/dev/null' TERM

begin() {{
    # Runs a command to its end; a signal's trap ends `wait` early.
    local code=0 answer
    [ -z "$asked" ] || return 75
    "$@" &
    run=$!
    while :; do
        wait "$run"
        answer=$?
        [ "$answer" -ne 127 ] && code=$answer
        kill -0 "$run" 2>/dev/null || break
    done
    if [ "$code" -gt 128 ]; then
        wait "$run"
        answer=$?
        [ "$answer" -ne 127 ] && code=$answer
    fi
    run=
    return "$code"
}}
"""

_MEETING = r"""
# This shell runs on the first host. A port below those that the kernel gives out itself.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
while (exec 3<> "/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do
    MASTER_PORT=$((MASTER_PORT + 1))
done
export MASTER_ADDR MASTER_PORT
"""

_TAIL = r"""
run_all
code=$?

# 75: saved and ended. 138: ended by SIGUSR1 where there was nothing to save. 5, 137: a process or
# host was lost, which the run may see before Slurm does. These go on; other ends would come again.
again=
case "$code" in 5 | 75 | 137 | 138) again=yes ;; esac
if [ -n "$again" ]; then
    if [ "$(progress)" = "$before" ] && [ "$idle" -ge 1 ]; then
        echo "onward: twice without progress; not requeued" >&2
    elif [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null)" = RUNNING ]; then
        # Somebody who cancels a job does not want it back.
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
"""
