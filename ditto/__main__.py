"""`python -m ditto` is the command `ditto`."""

from ditto.cli import main

main()
