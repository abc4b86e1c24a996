"""Trying again: what is worth another attempt, how long to wait, and when to give up."""

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from configs.errors import DataError, OnwardError, RecipeError

DEADLINE_VARIABLE = "ONWARD_REMOTE_DEADLINE"
TIMEOUT_VARIABLE = "ONWARD_REMOTE_TIMEOUT"
LONGEST_DEADLINE = 1500.0
"""Seconds. The other processes wait in a collective meanwhile, and that gives up after 1800."""
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""Protocol -> the extra of this package that brings its driver."""
_TRANSIENT_STATUS = {408, 409, 416, 425, 429}
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_MISUSED = (TypeError, AttributeError, NotImplementedError)
_PERMANENT_NAMES = {"NoCredentialsError", "PartialCredentialsError", "InvalidURL"}
# Up to the last @ before the path: a password may hold one.
_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s'\"]+@")
# What may belong to a query is masked, punctuation too: rather a bracket lost than a token told.
_QUERY = re.compile(r"(://[^\s?#'\"]*[?#])[^\s\"]+?(?=[.,:;)\]'>]*(?:[\s\"]|$))")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a remote store is borne with; all in seconds.

    Attributes:
        deadline: from the first attempt to the last, waits included.
        timeout: for one request or read.
        first: the longest wait after the first attempt; it doubles with each further one.
        longest: no wait is longer.
    """

    deadline: float = 300.0
    timeout: float = 60.0
    first: float = 0.5
    longest: float = 30.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Patience":
        """What ONWARD_REMOTE_DEADLINE and ONWARD_REMOTE_TIMEOUT say; RecipeError if nonsense."""
        default = cls()
        return cls(
            _seconds(environment, DEADLINE_VARIABLE, default.deadline),
            _seconds(environment, TIMEOUT_VARIABLE, default.timeout),
        )

    def until(self) -> float:
        """The time (of ``time.monotonic``) by which all must be done, if it begins now."""
        return time.monotonic() + self.deadline

    def wait(self, attempt: int) -> float:
        """Seconds before the attempt after number ``attempt`` (from 1), drawn from all between.

        Full jitter: many processes that failed together do not come back together.
        Source: AWS Architecture Blog, "Exponential Backoff And Jitter", 2015.
        """
        most = min(self.longest, self.first * 2.0 ** min(attempt - 1, 30))
        return random.uniform(0.0, most)


def persist(
    url: str, act: Callable[[], T], patience: Patience | None = None, until: float | None = None
) -> T:
    """What ``act`` returns, once it does.

    Args:
        url: what it is about; named, without its secrets, in every error.
        act: runs in a thread of its own, so that one that hangs is left behind.
        patience: None: what the environment says.
        until: a deadline that was set earlier; None: patience's, from now.

    Raises:
        DataError: it cannot succeed (no such file, no permission, no driver), or did not in time.
    """
    patience = patience or Patience.from_environment()
    begun = time.monotonic()
    until = until or patience.until()
    attempt = 0
    while True:
        attempt += 1
        try:
            return _within(min(patience.timeout, max(until - time.monotonic(), 0.001)), act)
        except OnwardError:
            raise
        except Exception as error:
            refusal = _refusal(url, error)
            if refusal is not None:
                raise refusal from None
            wait = patience.wait(attempt)
            if time.monotonic() + wait >= until:
                raise given_up(url, error, attempt, time.monotonic() - begun) from None
            time.sleep(wait)


def given_up(url: str, error: BaseException, attempts: int, seconds: float) -> DataError:
    """The error for something that was tried long enough."""
    many = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    return DataError(
        f"{mask_secrets(url)}: given up after {many} in {seconds:.0f} s; the last: "
        f"{_told(_root(error))}; check the address and the network, or raise {DEADLINE_VARIABLE}"
    )


def mask_secrets(text: str) -> str:
    """The text with user names, passwords, queries and fragments of its URLs as ``***``."""
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def require_no_secrets(location: str) -> None:
    """RecipeError when a location holds a name or password: recipes are kept with their runs."""
    if _CREDENTIALS.search(location):
        msg = (
            f"{mask_secrets(location)}: a password in a recipe would be kept with the run; "
            "give it in the driver's own settings: its environment variables, ~/.config/fsspec "
            "or ~/.netrc"
        )
        raise RecipeError(msg)


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    given = environment.get(name)
    if not given:
        return default
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= LONGEST_DEADLINE:
        msg = (
            f"{name}={given}: expected seconds, more than 0 and at most {LONGEST_DEADLINE:.0f}: "
            "other processes that wait for this one give up after 1800"
        )
        raise RecipeError(msg)
    return seconds


def _within(seconds: float, act: Callable[[], T]) -> T:
    """What ``act`` returns, or TimeoutError; a driver's own time-outs cannot be relied on."""
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(act())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="remote", daemon=True).start()
    if not done.wait(seconds):
        msg = f"no answer within {seconds:.1f} s"
        raise TimeoutError(msg)
    if errors:
        raise errors[0]
    return results[0]


def _refusal(url: str, error: BaseException) -> DataError | None:
    """The error to raise at once, or None when another attempt may help."""
    name = mask_secrets(url)
    cause = _root(error)
    protocol = url.partition("://")[0].rpartition("::")[2]
    if isinstance(cause, ImportError):
        extra = EXTRAS.get(protocol)
        to_do = f"pip install 'onward[{extra}]'" if extra else "install it"
        return DataError(f"{name}: its driver is not installed ({_told(cause)}); {to_do}")
    status = _status(cause)
    if status is not None:
        if status >= 500 or status in _TRANSIENT_STATUS or status < 400:
            return None
        return DataError(f"{name}: refused with status {status} ({_told(cause)}); {_TO_DO}")
    if isinstance(cause, _PERMANENT) or type(cause).__name__ in _PERMANENT_NAMES:
        return DataError(f"{name}: {_told(cause)}; {_TO_DO}")
    if isinstance(cause, _MISUSED):
        return DataError(f"{name}: cannot be read ({_told(cause)}); {_TO_DO}")
    return None


_TO_DO = "check the address and the right to read it"


def _root(error: BaseException) -> BaseException:
    """What lies behind it: fsspec's HTTP driver says FileNotFoundError whatever went wrong."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _status(error: BaseException) -> int | None:
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        response = response.get("ResponseMetadata", {})
        found = response.get("HTTPStatusCode")
        return found if isinstance(found, int) else None
    for holder, attribute in ((response, "status_code"), (error, "status"), (error, "code")):
        found = getattr(holder, attribute, None)
        if isinstance(found, int) and 100 <= found < 600:
            return found
    return None


def _told(error: BaseException) -> str:
    kind = type(error).__name__
    text = mask_secrets(" ".join(str(error).split()))
    if isinstance(error, TimeoutError) and not text:
        return "time-out"
    return f"{kind}: {text[:300]}" if text else kind
