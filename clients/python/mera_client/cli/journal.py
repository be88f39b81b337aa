"""What is answered already, in a file beside the output: a run that was cut off goes on behind the last whole chunk.

The first line says what the answers are for, each further one holds the answers to one chunk. A line that was cut off is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from mera_client._decode import decode
from mera_client._errors import BadResponse, InvalidInput
from mera_client._types import Classification, Classified


class Journal:
    """Open it with `with`; `results` grows with every `add`. about: what a run must share with the one that it continues."""

    def __init__(self, path: Path, about: Mapping[str, Any], *, fresh: bool) -> None:
        self.path, self.results, self._probe = path, list[Classified](), list[str | None]()
        self._about = dict(about)
        self._fresh = fresh
        self._file: TextIO

    def __enter__(self) -> Journal:
        whole = b"" if self._fresh or not self.path.exists() else self.path.read_bytes()
        whole = whole[: whole.rfind(b"\n") + 1]
        if whole:
            self._resume(whole)
        self._file = self.path.open("r+" if self.path.exists() else "x", encoding="utf-8", newline="\n")
        self._file.seek(len(whole))
        self._file.truncate()
        if not whole:
            self._line(self._about)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answer: Classification) -> None:
        """The answers to the next chunk. Raises InvalidInput where another artifact gave them than those before."""
        self._same_probe(answer.probe)
        self._line({"probe": answer.probe, "results": [asdict(result) for result in answer.results]})
        self.results += answer.results

    def discard(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)

    def _resume(self, whole: bytes) -> None:
        try:
            about, *chunks = (json.loads(line) for line in whole.splitlines())
            if about != self._about:
                text = "is of another input, task, model or steering; give --fresh to begin again, or another -o"
                raise InvalidInput(f"{self.path}: {text}")
            for chunk in chunks:
                self._same_probe(chunk["probe"])
                self.results += decode(tuple[Classified, ...], chunk["results"])
        except (ValueError, KeyError, TypeError, BadResponse):
            raise InvalidInput(f"{self.path}: is damaged; give --fresh to begin again") from None

    def _same_probe(self, probe: str | None) -> None:
        if self._probe and self._probe != [probe]:
            text = "the server answers with another artifact than before; give --fresh to begin again"
            raise InvalidInput(f"{self.path}: {text}")
        self._probe = [probe]

    def _line(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value) + "\n")
        self._file.flush()
