"""What the processes of tests store is encrypted, as a server's is; a thread for models that are too small for two; and
what several files share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from place import place, writer

__all__ = ["place", "writer"]


@pytest.fixture(scope="session", autouse=True)
def stored_encrypted() -> None:
    from ditto.service import stored
    from ditto.service.storage import Storage

    stored.use(Storage(secrets.token_bytes(32)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For models so small that two threads mostly wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on the cluster of `place` come last, one after another: it runs beside no others."""
    items.sort(key=lambda item: "place" in getattr(item, "fixturenames", ()))
