"""How what a server keeps is protected on its disk: encrypted and authenticated; or, by option, only digested.

A file is a mark, 16 random bytes, and records, each with a tag. A record is bound to its place, to whether it is the
last one, and to a context, which says whose the file is and what the record holds.

Encrypted:

1. The file's own key: K_f = HKDF-SHA256(K, salt = the random bytes).
2. Record i of n: AES-256-GCM under K_f, nonce = i (11 bytes) | [i = n - 1], the context as associated data.

This is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015) with a fresh key for each file in the place of a nonce
prefix: no (key, nonce) comes twice, however many files there are.

Plaintext files have the same shape, with SHA-256(salt | nonce | context | record) as the tag: that finds accidents;
who can write here can also write a digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ditto import files
from ditto.errors import ConfigError
from ditto.net.config import ServerConfig

VARIABLE = "DITTO_STORAGE_KEY"
START = 24  # bytes: the mark, 8, and the salt
TAG = 32  # bytes, at most
_ENCRYPTED, _PLAIN = b"ditto-1e", b"ditto-1p"
WITNESS = "storage"  # a file in data_dir that tells the key it was written under
CHANGING = "storage.changing"  # the same, of the key that its files are being brought under
_SAYS = b"ditto"


class Altered(Exception):
    """A record is not the one that was written at this place, or the file was written under another key."""


class Storage:
    """Under this key of 32 bytes; None stands for plaintext. What was sealed under a `previous` key opens, too."""

    def __init__(self, key: bytes | None, previous: bytes | None = None) -> None:
        self._key, self._previous = key, previous
        self._mark = _PLAIN if key is None else _ENCRYPTED
        self.tag = 32 if key is None else 16  # bytes

    @property
    def plaintext(self) -> bool:
        return self._key is None

    @staticmethod
    def sealed(path: Path) -> bool:
        """Does a file look like an encrypted one? Under which key, it does not tell."""
        with path.open("rb") as file:
            return file.read(len(_ENCRYPTED)) == _ENCRYPTED

    def begin(self, records: int) -> tuple[bytes, Records]:
        """The start of a new file, and what seals its records; 0 if it is not known yet how many there will be."""
        salt = secrets.token_bytes(START - len(self._mark))
        return self._mark + salt, self._records(salt, records)

    def resume(self, start: bytes, records: int) -> Records:
        """What opens the records of a file that starts like this. Raises Altered."""
        if len(start) != START or not start.startswith(self._mark):
            raise Altered
        return self._records(start[len(self._mark) :], records)

    def _records(self, salt: bytes, records: int) -> Records:
        # 1
        keys = [key for key in (self._key, self._previous) if key is not None]
        derived = (HKDF(algorithm=SHA256(), length=32, salt=salt, info=b"ditto storage").derive(key) for key in keys)
        return Records(records, salt, [AESGCM(key) for key in derived])

    def seal(self, data: bytes, context: bytes) -> bytes:
        """A whole file of one record."""
        start, records = self.begin(1)
        return start + records.seal(data, context)

    def unseal(self, data: bytes, context: bytes) -> bytes:
        """The record of a file that `seal` made. Raises Altered."""
        return bytes(self.resume(data[:START], 1).unseal(data[START:], context))


class Records:
    """The records of one file, in their order: sealed under the first key, or opened again. The first record tells
    under which key; without any, they are plaintext."""

    def __init__(self, records: int, salt: bytes, aeads: list[AESGCM]) -> None:
        self._at, self._records, self._salt, self._aeads = 0, records, salt, aeads

    def end(self) -> None:
        """The next record is the last one: for a file whose number of records was not known."""
        self._records = self._at + 1

    def _nonce(self) -> bytes:
        self._at += 1
        return (self._at - 1).to_bytes(11, "big") + bytes([self._at == self._records])

    def seal(self, data: bytes | memoryview, context: bytes) -> bytes:
        nonce = self._nonce()
        # 2
        if self._aeads:
            return self._aeads[0].encrypt(nonce, data, context)
        return bytes(data) + self._digest(nonce, data, context)

    def unseal(self, record: bytes, context: bytes) -> bytes | memoryview:
        """Raises Altered."""
        nonce = self._nonce()
        # 2
        if self._aeads:
            return self._decrypt(nonce, record, context)
        data = memoryview(record)[:-32]
        if len(record) < 32 or record[-32:] != self._digest(nonce, data, context):
            raise Altered
        return data

    def _decrypt(self, nonce: bytes, record: bytes, context: bytes) -> bytes:
        for aead in self._aeads:
            with contextlib.suppress(InvalidTag, ValueError):
                data = aead.decrypt(nonce, record, context)
                self._aeads = [aead]
                return data
        raise Altered

    def _digest(self, nonce: bytes, data: bytes | memoryview, context: bytes) -> bytes:
        found = hashlib.sha256(self._salt + nonce + len(context).to_bytes(8, "big") + context)
        found.update(data)
        return found.digest()


# A server's own ----------------------------------------------------------------------------------


def storage_of(config: ServerConfig) -> Storage:
    """What a server's configuration asks for, checked against what its directory was written with.

    Raises ConfigError without a key, with a malformed one, or with another one than the files there have: a wrong key
    must not make every file look damaged. Also while a change of the key (`rekey.py`) is not finished.
    """
    storage = Storage(None if config.storage == "plaintext" else key_of(config.storage_key))
    if (config.data_dir / CHANGING).exists():
        raise ConfigError(f"a change of the key of {config.data_dir} was begun: finish it with `ditto keys rotate`")
    check_witness(storage, config.data_dir, config.role)
    return storage


def check_witness(storage: Storage, data_dir: Path, role: str, name: str = WITNESS) -> None:
    """Raises ConfigError if a directory was written under another key; one that says nothing is written on."""
    if not witnessed(storage, data_dir, role, name):
        files.make_directory(data_dir, 0o700)
        bear_witness(storage, data_dir, role, name)


def witnessed(storage: Storage, data_dir: Path, role: str, name: str = WITNESS) -> bool:
    """The same, writing nothing: False for a directory that says nothing."""
    witness = data_dir / name
    try:
        found = witness.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{witness}: cannot be read: {error.strerror or error}") from None
    try:
        storage.unseal(found, role.encode())
    except Altered:
        encrypted = "encrypted" if storage.plaintext else "under another key"
        how = "as plaintext" if found.startswith(_PLAIN) else encrypted
        raise ConfigError(f"the files in {data_dir} are stored {how}, or {witness} is damaged") from None
    return True


def bear_witness(storage: Storage, data_dir: Path, role: str, name: str = WITNESS) -> None:
    files.write(data_dir / name, storage.seal(_SAYS, role.encode()), files.PRIVATE)


def key_of(path: Path | None) -> bytes:
    """From the file; without one, from the environment."""
    try:
        text = os.environ.get(VARIABLE) if path is None else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the storage key {path} cannot be read: {getattr(error, 'strerror', 'no text')}") from None
    if text is None:
        raise ConfigError(f"no storage key: name a file as storage_key or set {VARIABLE}; or set storage: plaintext")
    if not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", text):
        raise ConfigError(f"{path or VARIABLE}: no storage key: 64 hexadecimal digits, as of `openssl rand -hex 32`")
    return bytes.fromhex(text.strip())
