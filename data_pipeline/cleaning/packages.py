"""Packages that only some recipes need."""

from importlib.util import find_spec

from configs.errors import RecipeError

_EXTRAS = {"datatrove": "cleaning", "lingua": "cleaning", "rensa": "cleaning", "rjieba": "chinese"}


def require(package: str, key: str) -> None:
    """RecipeError when a package is absent that a key of the recipe needs."""
    if find_spec(package) is None:
        msg = f"{key} needs the package {package}; pip install 'onward[{_EXTRAS[package]}]'"
        raise RecipeError(msg)
