"""Names of a package that are loaded when they are asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def loader(package: str, where: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package: `where` says in which module each name is. (`ditto` has one of its own: importing
    it loads no other module.)"""

    def load(name: str) -> object:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(where[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return load
