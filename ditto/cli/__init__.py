"""The command `ditto`."""

from ditto.cli.app import app, main

__all__ = ["app", "main"]
