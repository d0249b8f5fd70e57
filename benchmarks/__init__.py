"""Experiments: one file each, with the command that repeats it."""
