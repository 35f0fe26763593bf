"""Presets: a model, options and a prompt's form under one name; those of the GPT-2 paper's tasks are built in."""
