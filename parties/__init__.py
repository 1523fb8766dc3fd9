"""Thin mains of the processes; everything else is in `ditto`."""
