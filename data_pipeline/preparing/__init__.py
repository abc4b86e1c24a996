"""How a corpus is prepared: phases of tasks that any number of processes and hosts share."""
