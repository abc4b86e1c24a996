"""What ``--run`` names: a recipe, a run, or a folder; and what the recipe will take there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.devices import find_device
from configs.errors import OnwardError, RecipeError
from launcher.doctor.scene import Needs
from launcher.hosts import Host

if TYPE_CHECKING:
    from launcher.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run writes, and what it is, if that is known."""

    folder: Path
    recipe: "Recipe | None" = None


def target(path: Path) -> Target:
    """A recipe's ``output``, or the folder itself.

    Raises:
        RecipeError: a recipe that cannot be read.
    """
    from launcher.recipe import load_recipe

    if path.is_dir() or not path.suffix:
        written = path / "recipe.yaml"
        return Target(path.absolute(), load_recipe(written) if written.is_file() else None)
    recipe = load_recipe(path)
    return Target(recipe.output.absolute(), recipe)


def needs(recipe: "Recipe", hosts: Sequence[Host]) -> Needs:
    """By the planner's arithmetic."""
    from launcher.plan_times import Cluster
    from launcher.planning import plan
    from launcher.recipe import check_world

    world = sum(host.slots for host in hosts)
    trouble = []
    for name in recipe.stages:
        try:
            check_world(recipe, [name], world)
        except RecipeError as error:
            trouble.append(str(error))
    # Disk does not depend on the device.
    cluster = Cluster(len(hosts), max(host.slots for host in hosts), find_device("h200"))
    try:
        disks = [stage["disk"] for stage in plan(recipe, [], cluster).stages if "disk" in stage]
    except OnwardError as error:
        return Needs(trouble=(*trouble, str(error)))
    return Needs(
        disk=sum(disk["checkpoints"] + disk["export"] for disk in disks),
        checkpoint=max((disk["checkpoint"] for disk in disks), default=0),
        trouble=tuple(trouble),
    )
