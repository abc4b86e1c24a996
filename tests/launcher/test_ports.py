"""A port is free, or its holder is named."""

import os
import socket

import pytest

from configs.errors import ResourceError
from launcher.ports import free_port, require_free


def test_a_port_in_use_names_its_process() -> None:
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port}: in use by process {os.getpid()};"):
            require_free(port)
    assert require_free(port) == port


def test_a_free_port_can_be_taken() -> None:
    assert require_free(free_port()) > 0
