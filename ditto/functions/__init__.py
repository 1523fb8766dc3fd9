"""Functions built from operations: each adds typed steps to a program."""
