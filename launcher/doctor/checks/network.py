"""Whether the processes of the hosts can talk to one another, and over what."""

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene
from launcher.hosts import Host

_VIRTUAL = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "tunl", "ifb")
_NAME_IT = "say which in ~/.deepspeed_env: GLOO_SOCKET_IFNAME=..., NCCL_SOCKET_IFNAME=..."


def judge_interfaces(scene: Scene) -> Iterator[Finding]:
    """Those that were chosen must be there, and lead to the other hosts."""
    if not scene.is_several:
        return
    chosen = scene.chosen_interfaces()
    for host, facts in scene.told("network"):
        missing = list(_missing(chosen, facts["interfaces"]))
        for what in missing:
            usable = [name for name, of in facts["interfaces"].items() if of["addresses"]]
            remedy = f"it has {', '.join(usable)}; {_NAME_IT}"
            yield Finding(what, host.name, remedy, details={"interfaces": facts["interfaces"]})
        if not missing:
            yield from _of_way(host, facts, is_chosen=bool(chosen))


def _missing(chosen: Mapping[str, str], there: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for variable, value in chosen.items():
        if not _matches(variable, value, there):
            yield f"{variable}={value}: no such interface with an address"


def _of_way(host: Host, facts: Mapping[str, Any], *, is_chosen: bool) -> Iterator[Finding]:
    """Over what its ranks would talk."""
    details = {"interfaces": facts["interfaces"]}
    if not facts["address"]:
        what = facts["trouble"] or "no network leads from it to the first host"
        yield Finding(what, host.name, _NAME_IT, details=details)
        return
    if _is_loopback(facts["address"]):
        over = f"{facts['interface']} ({facts['address']})"
        what = f"its processes would talk over {over}, which leads to no other host"
        yield Finding(what, host.name, _NAME_IT, details=details)
        return
    real = [name for name, of in facts["interfaces"].items() if _is_real(name, of)]
    if not is_chosen and len(real) > 1:
        yield Finding(
            f"has several networks ({', '.join(real)}); gloo will use {facts['interface']}",
            host.name,
            f"if another one is meant, or for NCCL: {_NAME_IT}",
            "warning",
            details,
        )


def judge_own_name(scene: Scene) -> Iterator[Finding]:
    """Debian's 127.0.1.1 and the like: ranks do not go by it, but MPI and others may."""
    if not scene.is_several:
        return
    for host, facts in scene.told("network"):
        own = facts["own_name"]
        here = {address for of in facts["interfaces"].values() for address in of["addresses"]}
        what = _wrong(own, here)
        if what:
            yield Finding(
                f"its own name {own['name']} {what}: other hosts cannot be given it",
                host.name,
                "correct /etc/hosts there; ranks do without, but MPI and other programs may not",
                "warning",
                own,
            )


def _wrong(own: Mapping[str, Any], here: set[str]) -> str:
    found = own["addresses"]
    if not found:
        return "cannot be resolved there"
    if all(map(_is_loopback, found)):
        return f"means {found[0]} there"
    return "" if here & set(found) else f"means {found[0]} there, which it has not"


def judge_connections(scene: Scene) -> Iterator[Finding]:
    """A call from every host to every other one, at a port that needs no privilege."""
    if not scene.is_several:
        return
    told = {host.name: facts for host, facts in scene.told("network")}
    for host, answers in scene.told("calls"):
        for peer, trouble in answers.items():
            name, address, port = peer.split()
            if trouble and not _is_loopback(address) and _matters(scene, name, address, told):
                yield Finding(
                    f"cannot call {address}:{port}: {trouble}",
                    f"{host.name} -> {name}",
                    "open all ports above 1024 between the hosts, or choose another network: "
                    f"{_NAME_IT}",
                    details={"address": address, "port": int(port), "trouble": trouble},
                )
    yield from _deaf(scene.told("network"))


def _deaf(told: Iterator[tuple[Host, Mapping[str, Any]]]) -> Iterator[Finding]:
    for host, facts in told:
        for address in dict.fromkeys((facts["address"], facts["master"])):
            if address and address not in [at["address"] for at in facts["listens"]]:
                what = f"cannot listen at its address {address}"
                yield Finding(what, host.name, "free some ports there: ss -s shows who has them")


def _matters(scene: Scene, name: str, address: str, told: Mapping[str, Any]) -> bool:
    """Where its processes will be called; or, of the first host, where all look for rank 0."""
    facts = told[name]
    is_master = name == scene.hosts[0].name and address == facts["master"]
    return bool(address == facts["address"] or is_master)


def judge_port(scene: Scene) -> Iterator[Finding]:
    """Rank 0's port, if one was chosen; a run finds a free one by itself."""
    for host, facts in scene.told("network"):
        if host.name == scene.hosts[0].name and facts["port_trouble"]:
            remedy = "give another --master-port, or none: a run finds a free one"
            what = facts["port_trouble"].partition(";")[0]
            yield Finding(what, host.name, remedy, details={"port": scene.port})


def _matches(variable: str, value: str, there: Mapping[str, Mapping[str, Any]]) -> bool:
    """By gloo's rule (names), or NCCL's (beginnings; ``=`` names, ``^`` all but)."""
    able = [name for name, of in there.items() if of["addresses"]]
    wanted = value.lstrip("^=").split(",")
    if variable.startswith("GLOO"):
        return all(name in able for name in value.split(","))
    if value.startswith("^"):
        return any(not name.startswith(tuple(wanted)) for name in able)
    if value.startswith("="):
        return any(name in wanted for name in able)
    return any(name.startswith(tuple(wanted)) for name in able)


def _is_real(name: str, facts: Mapping[str, Any]) -> bool:
    return bool(facts["is_up"] and facts["addresses"]) and not name.startswith(_VIRTUAL)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
