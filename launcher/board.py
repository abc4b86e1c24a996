"""TensorBoard on a run, on loopback only."""

import sys
from pathlib import Path

from configs.errors import DataError, ResourceError
from launcher.ports import free_port, require_free

_USUAL = 6006


def board_command(run: Path, port: int | None) -> tuple[list[str], str]:
    """The command that serves it, and the address to open.

    Raises:
        DataError: the run has no event files yet.
        ResourceError: the port asked for is in use.
    """
    if not any(run.glob("*/tensorboard/*")):
        msg = f"{run}: no stage has written TensorBoard files yet"
        raise DataError(msg)
    chosen = require_free(port) if port else _usual_or_free()
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        f"--logdir={run}",
        "--host=127.0.0.1",
        f"--port={chosen}",
    ]
    return command, f"http://127.0.0.1:{chosen}"


def _usual_or_free() -> int:
    try:
        return require_free(_USUAL)
    except ResourceError:
        return free_port("127.0.0.1")
