"""A file of prompts, answered by one engine or many.

The way of a row:

1. `source.py` reads the file once and keeps of each row where it is, a hash, and about how long it will take.
   `rows.py` says what a line asks for: a `Row`, or why it is none.
2. `run.py` leaves out what is done, sorts the rest, and hands rows to an `Engine` of this room (`engine.py`):
   something that runs rows and yields the finished ones. `local.py` is one in this process, `cluster.py` one
   on Ray; another one may ask a server.
3. `output.py` makes a line of what has come of a row, which `run.py` appends to the output at once.

`merge.py` puts the outputs of shards together. Nothing here writes to the terminal. Ray is imported in this
room only.
"""
