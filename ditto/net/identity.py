"""Who calls: the identity in a TLS peer's certificate."""

from __future__ import annotations

from typing import NamedTuple

import grpc

SCHEME = "ditto://"


class Identity(NamedTuple):
    """A role and, for a client, the name of a person or program. Text: `client/alice`, `party0`."""

    role: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}" if self.name else self.role


def caller(context: grpc.ServicerContext) -> Identity:
    """From the certificate's URI `ditto://client/NAME`, else from its common name."""
    properties = context.auth_context()
    for raw in properties.get("x509_subject_alternative_name") or []:
        text = raw.decode() if isinstance(raw, bytes) else str(raw)
        if text.startswith(SCHEME):
            role, _, name = text.removeprefix(SCHEME).partition("/")
            return Identity(role, name)
    common = next(iter(properties.get("x509_common_name") or [b""]))
    return Identity(common.decode() if isinstance(common, bytes) else str(common))
