"""Presets: a model, options and a prompt's form under one name.

Those of the tasks of the GPT-2 paper (Radford et al. 2019) are built in.
"""
