"""A `Command` as a completion script for each shell: Command -> str.

The scripts for bash, fish and PowerShell share one design: tables of what each command takes, and a
walk over the words before the cursor, in the way Typer reads them, that finds the command and the
place. zsh has both in its ``_arguments``.
"""
