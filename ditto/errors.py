"""Every error that a user can meet: one class, one code on the wire, one exit code."""

from __future__ import annotations

from typing import ClassVar


class DittoError(Exception):
    """Base class. `peer` names the process that an error is about, where there is one."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "INTERNAL"
    help: ClassVar[str] = "unexpected internal error"

    def __init__(self, message: str = "", peer: str | None = None) -> None:
        super().__init__(message or self.help)
        self.peer = peer


class UsageError(DittoError):
    exit_code, code, help = 2, "USAGE", "wrong command line"


class TextTooLong(DittoError):
    exit_code, code, help = 10, "TEXT_TOO_LONG", "text over the model's length limit"


class EmptyText(DittoError):
    exit_code, code, help = 11, "EMPTY_TEXT", "empty text"


class UnknownModel(DittoError):
    exit_code, code, help = 12, "UNKNOWN_MODEL", "no model of this name"


class BadCheckpoint(DittoError):
    exit_code, code, help = 13, "BAD_CHECKPOINT", "checkpoint with a missing or misshapen tensor"


class UnsupportedArchitecture(DittoError):
    exit_code, code, help = 14, "UNSUPPORTED_ARCHITECTURE", "checkpoint of an unsupported architecture"


class CertificateError(DittoError):
    exit_code, code, help = 15, "CERTIFICATE", "certificate missing, of another CA, or of a role that may not do this"


class PeerAbsent(DittoError):
    exit_code, code, help = 16, "PEER_ABSENT", "a process does not answer"


class VersionMismatch(DittoError):
    exit_code, code, help = 17, "VERSION", "a peer of another version"


class BadShare(DittoError):
    exit_code, code, help = 18, "BAD_SHARE", "a share of the wrong shape or ring"


class ReplayedJob(DittoError):
    exit_code, code, help = 19, "REPLAYED_JOB", "a job identifier was used before"


class MessageTooLarge(DittoError):
    exit_code, code, help = 20, "MESSAGE_TOO_LARGE", "a message over the size limit"


class PeerLost(DittoError):
    exit_code, code, help = 21, "PEER_LOST", "a process was lost during a job"


class ConfigError(DittoError):
    exit_code, code, help = 22, "CONFIG", "configuration missing or wrong"


class RangeError(DittoError):
    exit_code, code, help = 23, "RANGE", "a bound does not fit its ring"


class ClusterError(DittoError):
    exit_code, code, help = 24, "CLUSTER", "the cluster is not in a state for this"


class ReuseError(DittoError):
    exit_code, code, help = 25, "REUSE", "a correlation or a mask was about to be used twice"


class DamagedFile(DittoError):
    exit_code, code, help = 26, "DAMAGED_FILE", "a stored file is damaged or not what belongs there"


class StorageError(DittoError):
    exit_code, code, help = 27, "STORAGE", "a file cannot be read or written"


class BadDescription(DittoError):
    exit_code, code, help = 28, "DESCRIPTION", "a model's public description is malformed"


class NotAllowed(DittoError):
    exit_code, code, help = 31, "NOT_ALLOWED", "a model or a job of someone else"


class JobMismatch(DittoError):
    exit_code, code, help = 32, "JOB_MISMATCH", "a party runs another job than the one that was asked for"


class IntegrityError(DittoError):
    exit_code, code, help = 33, "INTEGRITY", "what arrived is not what was sent"


class LimitExceeded(DittoError):
    exit_code, code, help = 34, "LIMIT", "more than a server's configuration admits"


class Busy(DittoError):
    """The same request may succeed later: `retry_s` says when."""

    exit_code, code, help = 35, "BUSY", "a server has too much under way; the message says when to try again"

    def __init__(self, message: str = "", peer: str | None = None, retry_s: float = 5.0) -> None:
        super().__init__(message, peer)
        self.retry_s = retry_s


class OutOfRange(DittoError):
    exit_code, code, help = 36, "OUT_OF_RANGE", "values left their calibrated range (with --strict)"


class NoStock(DittoError):
    exit_code, code, help = 37, "NO_STOCK", "a party has no correlations in stock for this job"


class Interrupted(DittoError):
    exit_code, code, help = 130, "INTERRUPTED", "interrupted"


class RangeWarning(UserWarning):
    """Of the Python API: an answer may be wrong, since values left their calibrated range."""


class CalibrationWarning(UserWarning):
    """Of the Python API: the texts that a model was calibrated on are few, short or narrow."""


_ALL: tuple[type[DittoError], ...] = (DittoError, *DittoError.__subclasses__())
BY_CODE: dict[str, type[DittoError]] = {cls.code: cls for cls in _ALL}
EXIT_CODES: dict[int, str] = {0: "success", **{cls.exit_code: cls.help for cls in _ALL}}
