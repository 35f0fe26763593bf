"""The commands of a session. `table` lists them; each is a function of the session and what was typed."""
