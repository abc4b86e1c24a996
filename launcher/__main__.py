"""``python -m launcher`` is ``onward``."""

from launcher.cli import main

main()
