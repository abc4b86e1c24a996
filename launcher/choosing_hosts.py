"""Which of a hostfile's machines the next start of a supervised run uses, and why no others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from configs.errors import RecipeError
from launcher.hosts import Host

Fits = Callable[[int], None]
"""RecipeError if a batch cannot be split over so many ranks."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The hosts of a start.

    Attributes:
        hosts: to use; empty: it cannot be started so.
        left_out: name -> why.
        kept: name -> why it stays, though it has failed twice.
        trouble: why it cannot be started.
    """

    hosts: tuple[Host, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a choice must keep to.

    Attributes:
        least: hosts.
        first_stays: why rank 0 cannot move from the first host; empty: it can.
    """

    least: int
    fits: Fits
    first_stays: str = ""


def choose(
    hosts: Sequence[Host], unreachable: Mapping[str, str], failing: Mapping[str, str], rules: Rules
) -> Choice:
    """Without the hosts that cannot be reached, and, if the rules allow it, those that fail.

    Args:
        hosts: of the hostfile, in its order.
        unreachable: name -> why; there is no start with these.
        failing: name -> why; a start with these may come to nothing again.
        rules: what must hold for those that are left.
    """
    tried = _without(hosts, {**failing, **unreachable}, rules)
    if tried.hosts or not failing:
        return tried
    kept = dict.fromkeys(set(failing) - set(unreachable), tried.trouble)
    found = _without(hosts, unreachable, rules)
    return Choice(found.hosts, found.left_out, kept, found.trouble)


def _without(hosts: Sequence[Host], out: Mapping[str, str], rules: Rules) -> Choice:
    left = [host for host in hosts if host.name not in out]
    trouble = _refusal(hosts, left, out, rules)
    if trouble:
        return Choice(trouble=trouble)
    # Fewer may divide the batch where all that are left do not.
    for count in range(len(left), max(rules.least, 1) - 1, -1):
        used = _first(left, count, hosts[0].name if rules.first_stays else "")
        try:
            rules.fits(sum(host.slots for host in used))
        except RecipeError as error:
            trouble = trouble or str(error)
            continue
        idle = {host.name: "the batch cannot be split over it, too" for host in left}
        spare = {name: why for name, why in idle.items() if name not in {h.name for h in used}}
        here = {host.name for host in hosts}
        return Choice(tuple(used), {n: why for n, why in out.items() if n in here} | spare)
    return Choice(trouble=trouble)


def _refusal(
    hosts: Sequence[Host], left: Sequence[Host], out: Mapping[str, str], rules: Rules
) -> str:
    """Why these cannot be left out; empty: they can."""
    if len(left) == len(hosts):
        return ""
    for host in hosts:
        if host.name in out and host.is_here:
            return f"{host.name} is where this command runs, so it cannot be left out"
    if hosts[0].name in out and rules.first_stays:
        return f"{hosts[0].name} is the first host, and {rules.first_stays}"
    if len(left) < max(rules.least, 1):
        least = f"at least {rules.least} are asked for (--min-hosts)"
        return f"{len(left)} of {len(hosts)} hosts are left, and {least}"
    return ""


def _first(hosts: Sequence[Host], count: int, name: str) -> list[Host]:
    """So many, in their order; that one, and the one that this command runs on, before others."""
    ranked = sorted(hosts, key=lambda host: (host.name != name, not host.is_here))
    return [host for host in hosts if host in ranked[:count]]
