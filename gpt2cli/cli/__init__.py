"""The command line: a thin room around the engine. The only place that imports Typer."""
