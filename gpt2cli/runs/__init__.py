"""Runs that were: their record as data, the log that keeps them, and whether a text came out the same."""
