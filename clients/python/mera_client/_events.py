"""Server-sent events: bytes as they come -> `TokenEvent`s."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx

from mera_client._decode import decode
from mera_client._errors import BadResponse, MeraError, error_in, error_of
from mera_client._types import TokenEvent

MEDIA_TYPE = "text/event-stream"


class EventReader:
    """The events of one answer. Raises the error of an answer that is none, or of the event that holds one."""

    def __init__(self, response: httpx.Response) -> None:
        if not response.is_success:
            raise error_of(response)
        if not response.headers.get("content-type", "").startswith(MEDIA_TYPE):
            raise BadResponse(f"{response.request.url} answered something that is not {MEDIA_TYPE}; check base_url")
        self._request_id = response.headers.get("x-request-id")
        self._rest, self._data, self._ended = b"", list[bytes](), False

    def feed(self, chunk: bytes) -> Iterator[TokenEvent]:
        """The events that are complete now."""
        # Lines end in \n or \r\n alone: str.splitlines, and so httpx's iter_lines, would cut a token's U+2028 or U+0085.
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in (line.removesuffix(b"\r") for line in lines):
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                data, self._data = b"\n".join(self._data), []
                yield self._event(data)

    def finish(self) -> None:
        """To be called at the end of the answer; raises BadResponse where the last event is missing."""
        if not self._ended:
            raise BadResponse("the stream ended before its last event; ask again", request_id=self._request_id)

    def _event(self, data: bytes) -> TokenEvent:
        try:
            value = decode(dict, json.loads(data), "event")
        except ValueError as error:
            raise BadResponse("the stream holds an event that is not JSON", request_id=self._request_id) from error
        if "error" in value:
            raise self._error(value)
        event = decode(TokenEvent, value, "event")
        self._ended = event.last
        return event

    def _error(self, value: dict[str, Any]) -> MeraError:
        try:
            return error_in(value, self._request_id)
        except (KeyError, TypeError, IndexError):
            return BadResponse("the stream holds an error without code and message", request_id=self._request_id)
