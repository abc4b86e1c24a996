"""Freed blocks stay with the process: measured in one of its own."""

import subprocess
import sys

_PROGRAM = """
import resource, torch
from engine.kernels.memory import keep_freed_memory
{before}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(1 << 24)
begun = faults()
for _ in range(10):
    torch.ones(1 << 24)
print(faults() - begun)
"""


def faults(before: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_a_block_of_64_mib_is_mapped_once():
    """64 MiB are 16,384 pages, of which the kernel counts each that it must fill, ten times."""
    assert faults("") > 100_000
    assert faults("assert keep_freed_memory()") < 20_000
