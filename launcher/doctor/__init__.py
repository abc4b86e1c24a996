"""What keeps a run from starting, found before it is started: facts are gathered, then judged."""
