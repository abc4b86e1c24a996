"""Whether the hosts agree on the time: logs, leases and file times are compared by it."""

from collections.abc import Iterator

from launcher.doctor.finding import Finding
from launcher.doctor.scene import Scene

_SECONDS = 2.0


def judge_clocks(scene: Scene) -> Iterator[Finding]:
    """Ahead of or behind this machine by more than two seconds, for certain."""
    for host, clock in scene.told("clock"):
        offset, error = clock["offset"], clock["error"]
        if abs(offset) - error > _SECONDS:
            side = "ahead of" if offset > 0 else "behind"
            yield Finding(
                f"its clock is {abs(offset):.1f} s {side} this machine's (+-{error:.1f} s)",
                host.name,
                "keep the time by NTP (chrony, systemd-timesyncd)",
                "warning",
                {"offset": offset, "error": error},
            )
