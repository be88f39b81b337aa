"""What a browser may be made to send here by a page that is not ours: nothing.

Host            by an address, by `localhost`, by a name without a dot or of a private zone, by a name of --allowed-host. A public name
                that its owner points at this machine (DNS rebinding) is refused where nobody is asked for a key: what such a page sends
                would count as sent by our own page. With keys, and with --open, every name is answered unless --allowed-host is given.
Origin          of anything but GET and HEAD: this server's own, or one of --cors-origin. Requests outside browsers have none.
Content-Type    of what changes the server: JSON or none. The others are what a page may send without asking first.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mera_server.access import needed
from mera_server.settings import Settings
from merasteer.errors import Forbidden

__all__ = ["Guard", "is_foreign", "is_private"]

_SIMPLE = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})
_HOST = re.compile(r"(\[[^\[\]]+\]|[^:]*)(:[0-9]*)?")
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]+")
_PORTS = {"http": ":80", "https": ":443"}
_PRIVATE = (".localhost", ".local", ".svc", ".internal", ".home.arpa", ".lan", ".test", ".invalid")


class Guard:
    """Refuses with `Forbidden` what the table above refuses, before anything is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._origins = frozenset(settings.cors_origin)
        self._names = frozenset(settings.allowed_host)
        self._any_name = "*" in self._names or (not self._names and (settings.keys_file is not None or settings.open))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._check(scope["method"], scope["path"], Headers(scope=scope))
        await self.app(scope, receive, send)

    def _check(self, method: str, path: str, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._any_name and not is_private(host, self._names):
            raise Forbidden(
                "host: not a name of this server; ask it by its address, or start it with --allowed-host NAME"
            )
        if method in ("GET", "HEAD"):
            return
        origin = headers.get("origin")
        if origin is not None and "*" not in self._origins and is_foreign(origin, host, self._origins):
            raise Forbidden(
                "origin: a page of another site may not ask this server; start it with --cors-origin ORIGIN to let it"
            )
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in _SIMPLE and needed(method, path) == "admin":
            raise Forbidden(f"content-type: {kind} may not change this server; send application/json, or no content")


def is_private(host: str, names: Collection[str] = ()) -> bool:
    """Whether a Host header says nothing that the owner of a public name could make a browser say, or one of `names`.

    Addresses are never looked up; names without a dot and those of private zones are looked up where outsiders have no say.
    """
    match = _HOST.fullmatch(host.strip())
    if match is None:
        return False
    name = match[1].lower().removesuffix(".")
    if name == "localhost" or name in {known.removesuffix(".") for known in names} or _is_address(name.strip("[]")):
        return True
    return not names and ("." not in name or name.endswith(_PRIVATE))


def is_foreign(origin: str, host: str, allowed: Collection[str] = ()) -> bool:
    """Whether a browser says that a page of another site asks. What is no origin at all is of no browser."""
    if origin in allowed:
        return False
    if origin == "null":
        return True
    if not _ORIGIN.fullmatch(origin):
        return False
    scheme, _, place = origin.lower().partition("://")
    port = _PORTS.get(scheme, "")
    return place.removesuffix(port) != host.lower().removesuffix(port)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True
