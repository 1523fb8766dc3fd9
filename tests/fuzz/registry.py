"""All targets, by name."""

from __future__ import annotations

from fuzz import methods, model_files, server_files, streams, user_files
from fuzz.target import Target

_MODULES = (methods, streams, model_files, server_files, user_files)
TARGETS: dict[str, Target] = {target.name: target for module in _MODULES for target in module.TARGETS}
