"""Whether the hosts' processes meet, and how quickly they sum; who is slow is named."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene
from launcher.doctor.trials import GIVEN_UP

_SLOW = 0.5
"""Of the median of the others."""
_LONG, _NOTABLE = 5.0, 0.002
"""Times the others' median, and seconds: a small sum that takes both is slow."""
_WAITED = ("timed out", "Timed out", "have come together", "could not reach rank 0")
_CABLE = "look at its cable, port and card (ethtool), and at who else uses the link"


def judge_meeting(scene: Scene) -> Iterator[Finding]:
    """Who did not come to rank 0, and where they were to come."""
    told = scene.collectives
    if not told.get("errors"):
        return
    came, place = told["came"], told["place"]
    errors = _causes(told["errors"])
    first = next(iter(came))
    absent = [name for name in errors if came[name] == "nothing"]
    far = [name for name in errors if came[name] == "started" and name != first]
    for name in absent:
        what = f"its process did not start: {_last(errors[name])}"
        yield Finding(what, name, "see what Python says there", details=told)
    for name in far:
        yield Finding(
            f"did not come to rank 0 on {first} at {place}: {_last(errors[name])}",
            name,
            f"open ports above 1024 on {first}, or choose another network: GLOO_SOCKET_IFNAME",
            details=told,
        )
    if absent or far:
        return
    for name, error in errors.items():
        step = "met the others, then failed: " if came[name] == "joined" else ""
        yield Finding(
            f"{step}{_last(error)}",
            name,
            "choose a network that all hosts share: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME",
            details=told,
        )


def _causes(errors: Mapping[str, str]) -> Mapping[str, str]:
    """Those that did not only follow from another; where all that failed had waited, all."""
    own = {name: error for name, error in errors.items() if error != GIVEN_UP}
    has_waited = all(any(sign in error for sign in _WAITED) for error in own.values())
    return errors if has_waited else own


def judge_pace(scene: Scene) -> Iterator[Finding]:
    """A pair far below the others; if all pairs of one host are, that host."""
    pairs = scene.collectives.get("pairs", ())
    slow = [pair for pair in pairs if _is_slow(pair, pairs)]
    hosts = {name for pair in slow for name in pair["hosts"]}
    guilty = [name for name in sorted(hosts) if _is_guilty(name, slow, pairs)]
    for name in guilty:
        own = [pair for pair in slow if name in pair["hosts"]]
        what = f"is slow to every other host: {_said(own[0])}; the others {_usual(own[0], pairs)}"
        yield Finding(what, name, _CABLE, "warning", {"pairs": own})
    for pair in slow:
        if not set(guilty) & set(pair["hosts"]):
            yield Finding(
                f"slow: {_said(pair)}; the others {_usual(pair, pairs)}",
                " - ".join(pair["hosts"]),
                _CABLE,
                "warning",
                pair,
            )


def _is_slow(pair: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> bool:
    others = [other for other in pairs if other is not pair]
    if not others:
        return False
    latency = median(other["latency"] for other in others)
    is_late = bool(pair["latency"] > max(_NOTABLE, _LONG * latency))
    bandwidth = median(other["bandwidth"] for other in others)
    return is_late or bool(pair["bandwidth"] < _SLOW * bandwidth)


def _is_guilty(
    name: str, slow: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]
) -> bool:
    own = [pair for pair in pairs if name in pair["hosts"]]
    apart = [pair for pair in pairs if name not in pair["hosts"]]
    return len(own) > 1 and all(pair in slow for pair in own) and any(p not in slow for p in apart)


def _said(pair: Mapping[str, Any]) -> str:
    return f"{speed(pair['bandwidth'])}, {pair['latency'] * 1e3:.2f} ms"


def _usual(pair: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str:
    others = [other for other in pairs if not set(other["hosts"]) & set(pair["hosts"])]
    others = others or [other for other in pairs if other is not pair]
    return _said({key: median(o[key] for o in others) for key in ("bandwidth", "latency")})


def speed(bytes_second: float) -> str:
    """As networks are sold: bits."""
    bits = bytes_second * 8
    return f"{bits / 1e9:.1f} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.1f} Mbit/s"


def _last(error: str) -> str:
    return (error.strip().splitlines() or ["no answer"])[-1]
