"""What every test's own process stores is encrypted, as a server's is."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture(scope="session", autouse=True)
def stored_encrypted() -> None:
    from ditto.service import stored
    from ditto.service.storage import Storage

    stored.use(Storage(secrets.token_bytes(32)))
