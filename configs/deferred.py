"""Names of a package whose modules are imported when they are first asked for."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def deferred(package: str, names: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562), so that a recipe is read without what does the work.

    Args:
        package: its ``__name__``.
        names: module in the package -> the names that it gives the package. A module must not
            bear one of these names: importing it would put the module in the name's place.
    """
    places = {name: module for module, given in names.items() for name in given}

    def find(name: str) -> Any:
        if name not in places:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg, name=name, obj=sys.modules[package])
        found = getattr(import_module(f"{package}.{places[name]}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return find
