"""The command line and the placing of processes on hosts."""

import os

# Looking for pydantic's plug-ins reads the metadata of every installed package.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
