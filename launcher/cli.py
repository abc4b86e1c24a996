"""The command line. Verbs import what they need when they run, so that help answers at once."""

import gc
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from configs.errors import OnwardError, Preempted
from configs.permissions import apply_umask
from launcher.secrecy import mask
from launcher.spared import spare_threads
from launcher.verbs import doctor, exchange, launch_script, looking, planning, running
from launcher.verbs.answers import tell
from launcher.verbs.app import app

_OBJECTS_BETWEEN_COLLECTIONS = 100_000
_ORDER = (
    running.quickstart,
    running.check,
    planning.plan,
    doctor.doctor,
    running.run,
    launch_script.launch_script,
    looking.order,
    looking.inspect,
    exchange.export,
    exchange.import_,
    exchange.adopt,
    exchange.export_shards,
    looking.report,
    looking.board,
    exchange.datatrove,
)
"""As ``onward --help`` lists them."""
app.registered_commands.sort(key=lambda verb: _ORDER.index(verb.callback))


def main() -> None:
    """Run the command line."""
    # What is imported lives as long as the command: to look through it again and again for what
    # does not takes a tenth of the time that check and plan need.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    spare_threads()
    # --debug is taken before and after the verb alike.
    words = [word for word in sys.argv[1:] if word != "--debug"]
    guarded(lambda: _run(words))


def _run(words: list[str]) -> None:
    apply_umask()
    app(words, prog_name="onward")


def guarded(run: Callable[[], object]) -> None:
    """Every known error is one message on stderr and its kind's exit code."""
    try:
        run()
    except OnwardError as error:
        if "--debug" in sys.argv:
            traceback.print_exception(error)
        said = mask(str(error))
        tell(said if isinstance(error, Preempted) else f"error: {said}")
        _answer_with(error, error.exit_code)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except BaseException as error:
        _end_otherwise(error)


def _end_otherwise(error: BaseException) -> None:
    from launcher.interruption import Interrupted

    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, Interrupted):
        tell(f"{error}; run the same command again to go on")
        _answer_with(error, error.exit_code)
        sys.exit(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        _answer_with(error, 128 + signal.SIGINT)
        sys.exit(128 + signal.SIGINT)
    if "--debug" in sys.argv:
        raise error
    with tempfile.NamedTemporaryFile(
        "w", prefix="onward-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(mask("".join(traceback.format_exception(error))))
    tell(
        f"error: this should not have happened: {type(error).__name__}: {mask(str(error))}\n"
        f"The traceback is in {file.name}"
    )
    sys.exit(1)


def _answer_with(error: BaseException, exit_code: int) -> None:
    """A program that asked for JSON gets the error, or the interruption, so, too."""
    if "--json" in sys.argv:
        message = mask(str(error)) or "interrupted"
        facts = {"kind": type(error).__name__, "message": message, "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": facts}, ensure_ascii=False) + "\n")
