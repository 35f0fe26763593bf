"""Long jobs over many rows that nothing stops for good: `batch`, and `score` and `features` line by line.

A job writes each row into a file of lines (`rowfile.py`) as it ends. What is written there and complete is
done; a manifest beside it (`manifest.py`) says of which model, options and version its rows are, and a run
with others is refused. Shards (`shards.py`) are parts of one job that know nothing of each other.
"""
