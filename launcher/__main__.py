"""``python -m launcher`` is ``onward``."""

from launcher.cli import main

# Processes that prepare's workers are spawned as import this module again.
if __name__ == "__main__":
    main()
