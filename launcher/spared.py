"""Threads that the command line does not start: it multiplies nothing, and its workers do."""

import os

_BLAS = "OPENBLAS_NUM_THREADS"
names: list[str] = []
"""Environment variables that were set for this process alone."""


def spare_threads() -> None:
    """Let numpy start no threads in this process; call it before numpy is imported.

    They would cost a fifth of the time that ``check`` and ``plan`` need.
    """
    if _BLAS not in os.environ:
        os.environ[_BLAS] = "1"
        names.append(_BLAS)
