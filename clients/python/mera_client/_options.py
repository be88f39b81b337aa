"""What both clients are made with: defaults and headers."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

Timeout = float | httpx.Timeout | None

BASE_URL = "http://127.0.0.1:8000"
# A queued request waits before its first byte; a server that is not there need not be waited for.
TIMEOUT = httpx.Timeout(60.0, connect=5.0)


def request_headers(api_key: str | None, given: Mapping[str, str] | None) -> dict[str, str]:
    """The headers of every request."""
    return {**(given or {}), **({"authorization": f"Bearer {api_key}"} if api_key else {})}
