"""Proxies of the environment where httpx cannot read them: of IPv6 its NO_PROXY knows bare addresses, no brackets and no networks."""

from __future__ import annotations

import ipaddress
import re
from typing import Any
from urllib.request import getproxies

import httpx

_PORT = re.compile(r":[0-9]+")


def environment(base_url: str) -> dict[str, Any]:
    """How httpx's client is to be made: nothing, it reads the environment itself, unless NO_PROXY has an entry that it would not take.

    Then the proxy is that of `base_url`, to which every request goes. Raises httpx.InvalidURL where that is none.
    """
    proxies = getproxies()
    entries = [entry.strip().lower() for entry in proxies.get("no", "").split(",") if entry.strip()]
    if all(map(_known_to_httpx, entries)):
        return {}
    url = httpx.URL(base_url)
    found = proxies.get(url.scheme) or proxies.get("all")
    proxy = None if found is None or any(spares(entry, url.host) for entry in entries) else found
    return {
        "trust_env": False,
        "verify": httpx.create_ssl_context(),
        "proxy": proxy if proxy is None or "://" in proxy else f"http://{proxy}",
    }


def spares(entry: str, host: str) -> bool:
    """Whether an entry of NO_PROXY, in lower case, says that `host` is asked without a proxy."""
    if entry == "*":
        return True
    name = entry
    if entry.startswith("["):
        name = entry[1:].replace("]", "", 1) if "]/" in entry else entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        name = _PORT.sub("", entry)
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]) in ipaddress.ip_network(name, strict=False)
    except ValueError:  # one of them is a name
        name = name.lstrip("*.")
        return bool(name) and (host.lower() == name or host.lower().endswith(f".{name}"))


def _known_to_httpx(entry: str) -> bool:
    if ":" not in entry or "://" in entry or re.fullmatch(r"[^:\[\]]+:[0-9]+", entry):
        return True
    try:
        return ipaddress.ip_address(entry).version == 6
    except ValueError:
        return False
