"""Whether the recipe can run on so many ranks."""

from collections.abc import Iterator

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene


def judge_recipe(scene: Scene) -> Iterator[Finding]:
    """As ``onward check`` finds it."""
    for trouble in scene.needs.trouble if scene.needs else ():
        yield Finding(trouble, "the recipe", "onward check and onward plan tell more")
