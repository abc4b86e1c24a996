"""TCP ports of this machine: a free one, or who holds the one asked for."""

from configs.errors import Cause, ResourceError
from launcher import probe

free_port = probe.free_port
holder = probe.holder


def require_free(port: int) -> int:
    """The port itself; ResourceError names the process that holds it."""
    why = probe.trouble(port)
    if why:
        msg = f"port {port}: {why}; give another one, or none for a free one"
        raise ResourceError(msg, Cause("port"))
    return port
