"""Names that try to climb out of the store: 500 of them as task, as model, as digest, in `latest` and in a hub's listing."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from merasteer.errors import BadArtifact, InvalidInput, UnknownProbe
from merasteer.store import default_entry, latest, model_slug, resolve_prefix, scan
from merasteer.store.identity import SLUG
from merasteer.store.manifest import TASK_NAME
from merasteer.store.repository import FILE

UPS = [
    "..",
    "../",
    "..\\",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%2f",
    "..%5c",
    "%252e%252e%252f",
    "....//",
    "..;/",
    "．．/",
    "..／",
    "..\0/",
]
UPS += [
    ".\u200b./",
    "\u2025/",
    "%c0%ae%c0%ae/",
    "..%00/",
    "~/",
    "~root/",
    "/",
    "//",
    "\\\\host\\",
    "C:\\",
    "file:///",
    "./",
    ".//../",
]
ENDS = [
    "etc/passwd",
    "outside",
    "owner--name/spam",
    "latest",
    ".ssh/id",
    "x\n",
    "x\r\ny",
    "x\0y",
    "",
    " ",
    "con",
    "*",
    "$(id)",
    "`id`",
    "\ud800",
]
HOSTILE_TASKS = [
    ".",
    "..",
    ".hidden",
    "-rf",
    "a/b",
    "a\\b",
    "a b",
    "a\nb",
    "ä",
    "a" * 101,
    "",
    "spam/",
    "/spam",
    "spam\0",
    "spam\n",
]


def _strings() -> list[str]:
    """500 different ones, the same every time."""
    draw, found = random.Random(0), dict.fromkeys(HOSTILE_TASKS)
    while len(found) < 500:
        name = draw.choice(["", "", "spam", "a"]) + draw.choice(UPS) * draw.randint(1, 9) + draw.choice(ENDS)
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):  # dots inside a name climb nowhere
            found[name] = None
    return list(found)


STRINGS = _strings()


@pytest.fixture
def store(make: Any, tmp_path: Path) -> Path:
    """A store with one artifact, and bait around it: `latest` files that a path climbing out would find."""
    name = make().publish(tmp_path / "deep" / "store").name
    for bait in (tmp_path, tmp_path / "deep", tmp_path / "outside", tmp_path / "deep" / "store"):
        bait.mkdir(exist_ok=True)
        (bait / "latest").write_text(name)
    return tmp_path / "deep" / "store"


def _files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_as_the_name_of_a_task_none_is_published_or_looked_up(make: Any, store: Path, tmp_path: Path) -> None:
    before = _files(tmp_path)
    parts = make()
    for name in STRINGS:
        assert not TASK_NAME.fullmatch(name), name
        parts.manifest["task"]["name"] = name
        with pytest.raises(BadArtifact) as caught:
            parts.publish(store)
        assert str(caught.value).isprintable()
        assert latest(store, "owner--name", name) is None
        assert latest(store, name, "spam") is None
        assert default_entry(scan([store]), [store], "owner--name", name) is None
    assert _files(tmp_path) == before


def test_as_the_name_of_a_model_each_gives_one_folder_of_the_store_or_none(
    make: Any, store: Path, tmp_path: Path
) -> None:
    before = _files(tmp_path)
    named = 0
    for name in STRINGS:
        try:
            slug = model_slug(name)
        except InvalidInput:
            continue
        named += 1
        assert SLUG.fullmatch(slug), name
        assert (store / slug).resolve().parent == store.resolve()
    assert named > 300
    for name in STRINGS[::10]:
        parts = make()
        parts.manifest["model"]["id"] = name
        try:
            folder = parts.publish(store)
        except (BadArtifact, InvalidInput):
            continue
        assert folder.parents[2] == store
    assert all(path.is_relative_to(store) for path in _files(tmp_path) - before)


def test_as_a_digest_none_names_an_artifact_and_none_comes_back(store: Path) -> None:
    entries = scan([store])
    for name in STRINGS:
        with pytest.raises(UnknownProbe) as caught:
            resolve_prefix(entries, name)
        assert len(name) < 4 or name not in str(caught.value)


def test_in_latest_none_names_an_artifact(store: Path) -> None:
    for name in STRINGS:
        (store / "owner--name" / "spam" / "latest").write_bytes(name.encode("utf-8", "surrogatepass"))
        assert latest(store, "owner--name", "spam") is None


def test_in_the_listing_of_a_hub_each_is_passed_over(store: Path) -> None:
    [entry] = scan([store])
    digest = entry.path.name
    for name in STRINGS:
        paths = [name, f"owner--name/{name}/latest", f"owner--name/spam/{name}/manifest.json"]
        for path in [*paths, *([] if SLUG.fullmatch(name) else [f"{name}/spam/latest"])]:
            assert not FILE.fullmatch(path), path
        assert not FILE.fullmatch(f"owner--name/spam/{digest}/{name}")
    assert FILE.fullmatch(f"owner--name/spam/{digest}/manifest.json")
