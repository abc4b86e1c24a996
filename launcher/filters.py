"""``--include`` and ``--exclude``: which hosts and slots of a hostfile, in DeepSpeed's words."""

from collections.abc import Sequence

from configs.errors import RecipeError
from configs.yaml_source import nearest
from launcher.hosts import Host


def chosen(hosts: Sequence[Host], include: str = "", exclude: str = "") -> tuple[Host, ...]:
    """The hosts that are left, in the hostfile's order.

    Both are ``NAME[:SLOT[,SLOT]...][@NAME...]``; without slots, the whole host.

    Raises:
        RecipeError: both are given; a name or slot that the hostfile has not; nothing is left.
    """
    if include and exclude:
        msg = "--include and --exclude: give one"
        raise RecipeError(msg)
    if not include and not exclude:
        return tuple(hosts)
    option, given = ("--include", include) if include else ("--exclude", exclude)
    named = _parse(option, given, hosts)
    left = []
    for host in hosts:
        slots = named.get(host.name, ())
        ids = [n for n in host.ids if (n in slots) == bool(include)]
        if ids:
            left.append(Host(host.name, len(ids), tuple(ids)))
    if not left:
        msg = f"{option} {given}: leaves no slot of any host"
        raise RecipeError(msg)
    return tuple(left)


def _parse(option: str, given: str, hosts: Sequence[Host]) -> dict[str, set[int]]:
    by_name = {host.name: host for host in hosts}
    found: dict[str, set[int]] = {}
    for part in given.split("@"):
        name, colon, listed = part.partition(":")
        if name not in by_name:
            msg = f"{option} {given}: no host '{name}' in the hostfile; {nearest(name, by_name)}"
            raise RecipeError(msg)
        slots = _slots(f"{option} {given}", by_name[name], listed) if colon else by_name[name].ids
        found.setdefault(name, set()).update(slots)
    return found


def _slots(where: str, host: Host, listed: str) -> list[int]:
    slots = []
    for word in listed.split(","):
        if not (word.isascii() and word.isdecimal()):
            msg = f"{where}: '{word}' is no slot; expected NAME[:SLOT[,SLOT]...][@NAME...]"
            raise RecipeError(msg)
        if int(word) not in host.ids:
            msg = (
                f"{where}: host {host.name} has no slot {word}; the hostfile gives it "
                f"{host.slots}, counted from 0"
            )
            raise RecipeError(msg)
        slots.append(int(word))
    return slots


def format_filter(hosts: Sequence[Host]) -> str:
    """The hosts and slots as an ``--include``; empty if every host has its first ones."""
    if all(host.has_first_slots for host in hosts):
        return ""
    return "@".join(f"{host.name}:{','.join(map(str, host.ids))}" for host in hosts)
