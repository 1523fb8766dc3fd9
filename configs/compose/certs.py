"""The one-shot service `certs` of docker-compose.yml: an authority, and a volume for each role.

    certs                 what is complete stays; the authority's list is brought to every volume
    certs --force         an authority and keys anew; servers read them by themselves
    certs renew ROLE      a new key and certificate for one role
    certs revoke ROLE     its certificate goes on the list, which servers and client read by themselves

Each key is made in its role's own volume; the authority sees the request (`ditto certs request`, `ditto certs sign`).
The authority's key lies in a volume that no other service mounts. A storage key is made once and stays.
"""

import os
import secrets
import shutil
import sys
from pathlib import Path

from ditto import files
from ditto.errors import CertificateError, DittoError
from ditto.names import ROLES, SERVERS
from ditto.net.certs import Authority, init_authority, load_certificate, make_request, read_request
from ditto.net.config import Tls
from ditto.net.identity import identity
from ditto.net.tls import load_tls

VOLUMES = Path(os.environ.get("CERTS", "/roles"))  # another directory in tests
AUTHORITY = VOLUMES / "authority"


def complete() -> bool:
    """One set, never half of two: every pair is its role's, of this authority, and valid."""
    try:
        Authority(AUTHORITY)
        for role in ROLES:
            home = VOLUMES / role
            load_tls(Tls(ca=AUTHORITY / "ca.pem", cert=home / f"{role}.pem", key=home / f"{role}.key"), role)
    except CertificateError:
        return False
    return (AUTHORITY / "crl.pem").exists()


def give_storage_key(role: str) -> None:
    """Without its key, what a server has stored is lost: never made anew."""
    path = VOLUMES / role / "storage.key"
    if not path.exists() or not path.read_text().strip():
        files.write(path, secrets.token_hex(32) + "\n", files.PRIVATE)


def certify(role: str, authority: Authority) -> None:
    """A new key in the role's volume, and its certificate. Until both are there, a server keeps the pair it has."""
    who, home = identity(role, "local" if role == "client" else ""), VOLUMES / role
    fresh = home / "fresh"
    request, _ = make_request(who, [], fresh, new_key=True)
    authority.sign(read_request(request), fresh / "signed.pem")
    for source, name in ((fresh / f"{who.file}.key", f"{role}.key"), (fresh / "signed.pem", f"{role}.pem")):
        source.replace(home / name)
    shutil.rmtree(fresh)


def publish() -> None:
    for role in ROLES:
        for name in ("ca.pem", "crl.pem"):
            files.write(VOLUMES / role / name, (AUTHORITY / name).read_bytes())


def main(words: list[str]) -> str:
    match words:
        case [] if complete():
            said = "certificates: kept"
        case [] | ["--force"]:
            authority = init_authority(AUTHORITY)
            for role in ROLES:
                certify(role, authority)
            said = "certificates: each key in its role's volume; the authority's key in a volume of its own"
        case ["renew", role] if role in ROLES:
            certify(role, Authority(AUTHORITY))
            said = f"{role}: a new key and certificate"
        case ["revoke", role] if role in ROLES:
            new = Authority(AUTHORITY).revoke(load_certificate(VOLUMES / role / f"{role}.pem"))
            said = f"{role}: {'revoked' if new else 'revoked before'}"
        case _:
            raise SystemExit(__doc__)
    for role in SERVERS:
        give_storage_key(role)
    publish()
    return said


if __name__ == "__main__":
    os.umask(0o077)
    try:
        sys.stdout.write(main(sys.argv[1:]) + "\n")
    except DittoError as error:
        sys.exit(str(error))
