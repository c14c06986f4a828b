"""API keys: one of the settings, and those of a file that may change while the server runs."""

import hashlib
import hmac
import logging
import time
from pathlib import Path

from m3_runtime.errors import InputError
from m3_runtime.io.opened import FileState

_log = logging.getLogger("m3_runtime.server")

_MIN_KEY_CHARS = 16
A_KEY = f"a key of at least {_MIN_KEY_CHARS} characters of ASCII without blanks"
_CHECK_EVERY_S = 1.0


_Keys = dict[bytes, str]
"""The names of keys by their digests; the keys themselves are not kept."""


class ApiKeys:
    """The keys of a file, read again when it changes.

    A line is a key, or a name, a blank and a key; empty lines and those that begin with # are ignored. Names tell
    clients apart, for fairness and in logs; a key without a name is called by the first digits of its SHA-256, whatever
    its line. A file that has become unreadable changes nothing: the keys that were read last stay, and the log says so.
    """

    def __init__(self, path: Path | None, key: str | None = None) -> None:
        """Read the file, if there is one; `key` lets in too.

        Raises:
            InputError: the file cannot be read, holds no key, or one that is too short.
        """
        self._path = path
        self._own_keys: _Keys = {} if key is None else dict([_named(None, key)])
        self._keys: _Keys = {} if path is None else _read(path)
        self._seen = None if path is None else _state(path)
        self._checked_s = time.monotonic()

    def name_of(self, shown: str) -> str | None:
        """The name of a key, or None if there is no such key. Takes the same time for every wrong key."""
        self._reload_if_changed()
        digest, found = _digest(shown), None
        for known, name in (*self._own_keys.items(), *self._keys.items()):
            if hmac.compare_digest(known, digest):
                found = name
        return found

    def _reload_if_changed(self) -> None:
        now_s = time.monotonic()
        if self._path is None or now_s - self._checked_s < _CHECK_EVERY_S:
            return
        self._checked_s = now_s
        if (state := _state(self._path)) == self._seen:
            return
        self._seen = state
        try:
            self._keys = _read(self._path)
            _log.info("keys_read", extra={"keys": len(self._keys)})
        except InputError as error:
            _log.error("keys_unreadable", extra={"reason": f"{error}; the keys that were read before still hold"})


def is_key(text: str) -> bool:
    """Whether it is long enough, and clients can send it: most refuse to put anything but ASCII into a header."""
    return len(text) >= _MIN_KEY_CHARS and text.isascii() and text.isprintable() and " " not in text


def _state(path: Path) -> FileState | None:
    try:
        return FileState.of(str(path))
    except OSError:
        return None


def _read(path: Path) -> _Keys:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the key file {str(path)!r} cannot be read: {error}") from error
    keys: _Keys = {}
    for number, words in enumerate(map(str.split, lines), 1):
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2 or not is_key(words[-1]):
            raise InputError(
                f"line {number} of the key file {str(path)!r} must be {A_KEY}, or a name, a blank and a key"
            )
        keys |= [_named(words[0] if len(words) == 2 else None, words[-1])]
    if not keys:
        raise InputError(f"the key file {str(path)!r} holds no key; write one on each line")
    return keys


def _named(name: str | None, key: str) -> tuple[bytes, str]:
    digest = _digest(key)
    return digest, name or f"key {digest.hex()[:8]}"


def _digest(key: str) -> bytes:
    # compared as digests, so that neither a key's length nor its characters show in the time
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
