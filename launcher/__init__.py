"""The command line and the placing of processes on hosts."""
