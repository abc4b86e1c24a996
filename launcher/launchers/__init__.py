"""What deepspeed's runner starts processes on other hosts by: one file each."""

from launcher.launchers.base import Launcher
from launcher.launchers.openmpi import OpenMPI
from launcher.launchers.pdsh import Pdsh
from launcher.launchers.slurm import Slurm

LAUNCHERS: dict[str, Launcher] = {kind.NAME: kind for kind in (Pdsh(), OpenMPI(), Slurm())}
