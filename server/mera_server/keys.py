"""API keys: a file of names, scopes and salted hashes; a key itself is shown once, when it is made, and stored nowhere.

A key is 256 random bits, so that one round of SHA-256 over salt and key tells an attacker who has the file nothing. Scopes are a ladder:
each takes in those before it.

    read        what the server knows and measures: tasks, artifacts, models, configuration, metrics
    generate    every inference route
    admin       what changes the server: POST /probes/reload
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from merasteer.errors import InvalidInput

__all__ = ["SCOPES", "Key", "KeyRing", "Scope", "change", "find", "generate", "read"]

Scope = Literal["read", "generate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
PREFIX = "mera_"  # what scanners for leaked secrets look for
LONGEST = 256  # bytes of a key that is looked at
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEX = r"^[0-9a-f]+$"
log = logging.getLogger("mera.keys")


class Key(BaseModel):
    """What is kept of a key. salt and hash are hexadecimal; hash = SHA-256(salt, key)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=rf"^{NAME.pattern}$")]
    scope: Scope
    created: str
    salt: Annotated[str, Field(pattern=_HEX, min_length=32, max_length=32)]
    hash: Annotated[str, Field(pattern=_HEX, min_length=64, max_length=64)]

    def permits(self, scope: Scope) -> bool:
        """Whether it may do what `scope` is needed for."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[Key]


def generate(name: str, scope: str) -> tuple[str, Key]:
    """A new key, and what is to be kept of it. Raises InvalidInput."""
    if not NAME.fullmatch(name):
        raise InvalidInput(f"name: {name!r} is not a name; give letters, digits, dots, dashes, at most 64")
    if scope not in SCOPES:
        raise InvalidInput(f"scope: {scope!r} is unknown; give one of {', '.join(SCOPES)}")
    token, salt = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(16)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return token, Key(name=name, scope=scope, created=created, salt=salt, hash=_digest(salt, token.encode()))


def find(keys: Iterable[Key], token: bytes) -> Key | None:
    """The key that `token` is. Every key is hashed and compared, each in constant time: how long it takes tells nothing of any."""
    found = None
    for key in keys:
        if hmac.compare_digest(_digest(key.salt, token[:LONGEST]), key.hash) and len(token) <= LONGEST:
            found = key
    return found


def _digest(salt: str, token: bytes) -> str:
    return hashlib.sha256(bytes.fromhex(salt) + token).hexdigest()


def read(path: Path) -> list[Key]:
    """The keys of a file. Raises InvalidInput in one line."""
    try:
        keys = _File.model_validate_json(path.read_bytes()).keys
    except OSError as error:
        raise InvalidInput(f"keys-file: {path} cannot be read ({error.strerror}); make it with mera keys add") from None
    except ValidationError:  # its message would show parts of the file
        raise InvalidInput(f"keys-file: {path} is not a file of keys; make it with mera keys add") from None
    if len({key.name for key in keys}) < len(keys):
        raise InvalidInput(f"keys-file: {path} holds two keys of one name; remove one with mera keys remove")
    return keys


def change(path: Path, edit: Callable[[Sequence[Key]], list[Key]]) -> None:
    """Replaces the file's keys by `edit` of them, in one step; several processes may do so at once. Raises InvalidInput."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _folder(path.parent) as folder:
            keys = edit(read(path) if path.exists() else [])
            _replace(path, json.dumps({"keys": [key.model_dump() for key in keys]}, indent=1).encode() + b"\n")
            os.fsync(folder)
    except OSError as error:
        raise InvalidInput(f"keys-file: {path} cannot be written ({error.strerror}); nothing was changed") from None


@contextmanager
def _folder(path: Path) -> Iterator[int]:
    """The open folder, nobody else's until it is closed."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _replace(path: Path, content: bytes) -> None:
    """Owner and mode stay those of the file that was there; a new one is its owner's alone."""
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            if path.exists():
                before = path.stat()
                with suppress(PermissionError):
                    os.fchown(handle, before.st_uid, before.st_gid)
                os.fchmod(handle, before.st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(handle)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


class KeyRing:
    """The keys of one file, read again when it changes. A file that cannot be read leaves the keys as they were."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._mark()
        self._keys = tuple(read(path))
        if not self._keys:
            raise InvalidInput(f"keys-file: {path} holds no key, so nobody could ask anything; run mera keys add")

    def find(self, token: bytes) -> Key | None:
        """The key that `token` is, None for none."""
        return find(self._keys, token)

    def refresh(self) -> None:
        """Reads the file again if it has changed since."""
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            self._keys = tuple(read(self._path))
            log.info("%d keys are in force", len(self._keys))
        except InvalidInput as error:
            log.error("%s; the keys stay as they were", error)

    def _mark(self) -> tuple[int, ...] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
