"""Names that a package imports when asked: each is its module's own, and unknown ones are told."""

from importlib import import_module

import pytest

PACKAGES = ("data_pipeline.shards", "data_pipeline.streaming")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_gives_all_that_it_says_it_gives(name: str) -> None:
    package = import_module(name)
    for given in package.__all__:
        assert getattr(package, given) is package.__dict__[given]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_name_that_it_does_not_give_is_an_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        import_module(name).nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {name} import nothing")
