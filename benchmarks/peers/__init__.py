"""Other data loaders, each run by its own Python in an environment of its own.

A peer's file imports nothing of this project: it is run as a script by the Python that has the
peer, and answers one line of JSON for each line of JSON it is asked.
"""
