"""The rows of the fault matrix that are not the random campaign's, a file each."""

import importlib
import pkgutil

from benchmarks.faults.rows.row import Measured, Row

__all__ = ["Measured", "Row", "all_rows"]


def all_rows() -> dict[str, Row]:
    """Every file ``fNN.py`` of this folder, by the row's id."""
    names = sorted(
        found.name for found in pkgutil.iter_modules(__path__) if found.name[1:].isdigit()
    )
    rows = [importlib.import_module(f"{__name__}.{name}").ROW for name in names]
    return {row.id: row for row in rows}
