"""API keys from a file that may change while the server runs."""

import hashlib
import hmac
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from m3_runtime.errors import InputError

_log = logging.getLogger("m3_runtime.server")

_SHORTEST = 16
_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class _Key:
    """A key's name and digest; the key itself is not kept."""

    name: str
    digest: bytes


class ApiKeys:
    """The keys of a file, read again when it changes.

    A line is a key, or a name, a blank and a key; empty lines and those that begin with # are passed over. Names tell
    clients apart, for fairness and in logs. A file that has become unreadable changes nothing: the keys that were read
    last stay, and the log says so.
    """

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: the file cannot be read, holds no key, or one that is too short.
        """
        self._path = path
        self._keys = _read(path)
        self._seen = _stamp(path)
        self._looked_s = time.monotonic()

    def name_of(self, shown: str) -> str | None:
        """The name of a key, or None if there is no such key. Takes the same time for every wrong key."""
        self._look_again()
        digest = _digest(shown)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.name
        return found

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = _read(self._path)
            _log.info("keys_read", extra={"keys": len(self._keys)})
        except InputError as error:
            _log.error("keys_unreadable", extra={"reason": f"{error}; the keys that were read before still hold"})


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does: its time, size and inode."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: Path) -> tuple[_Key, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key file {str(path)!r} cannot be read: {error}") from error
    keys = tuple(_key(line, number, path) for number, line in enumerate(lines, 1) if _is_key(line))
    if not keys:
        raise InputError(f"the key file {str(path)!r} holds no key; write one on each line")
    return keys


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _key(line: str, number: int, path: Path) -> _Key:
    words = line.split()
    if len(words) > 2 or len(words[-1]) < _SHORTEST:
        raise InputError(
            f"line {number} of the key file {str(path)!r} must be a key of at least {_SHORTEST} characters, or a name, "
            "a blank and a key"
        )
    name = words[0] if len(words) == 2 else f"key {number}"
    return _Key(name, _digest(words[-1]))


def _digest(key: str) -> bytes:
    # compared as digests, so that neither a key's length nor its characters show in the time
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
