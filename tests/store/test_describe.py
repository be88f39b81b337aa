import json
from pathlib import Path
from typing import Any

from merasteer.store import ModelIdentity, scan, summary


def test_a_summary_is_flat_json_without_a_path(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    make(1).publish(tmp_path)
    (make(2).publish(tmp_path) / "manifest.json").unlink()
    loaded, rejected = sorted(
        (summary(entry) for entry in scan([tmp_path], identity)), key=lambda facts: facts["status"]
    )
    assert list(loaded) == list(rejected)
    assert str(tmp_path) not in json.dumps([loaded, rejected])
    assert (loaded["model"], loaded["task"], loaded["certified"], loaded["alpha"]) == ("owner/name", "spam", True, 0.3)
    assert (loaded["test"], loaded["gain"], loaded["lower_bound"], loaded["n"]) == ("mcnemar", 0.12, 0.05, 250)
    assert (loaded["layers"], loaded["candidates"], loaded["reason"]) == ([0, 2], 2, None)
    assert loaded["method"] == "mera"
    assert "is missing" in rejected["reason"]
    assert rejected["digest"] is None
