"""The document as it is served: self-contained, under a policy without exceptions, in the wheel, legible in both palettes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import tomllib
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from mera_server.access import needed
from mera_server.app import create_app
from mera_server.routes.page import SCRIPTS, assemble
from mera_server.settings import Settings

from merasteer import demo
from merasteer.tasks import builtin_names, fields_of, load_task, make_splits, render


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "server" / "mera_server" / "page"


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """An application that never loads its model."""
    transport = httpx.ASGITransport(create_app(Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as found:
        yield found


class Parts(HTMLParser):
    """What stands in <style> and <script>, every attribute, every id."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.inlined: dict[str, list[str]] = {"style": [], "script": []}
        self.attributes: list[tuple[str, str]] = []
        self._inside: str | None = None
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag if tag in self.inlined else None
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.inlined[self._inside].append(data)


async def test_the_page_is_there_before_the_model_is(client: httpx.AsyncClient) -> None:
    found = await client.get("/")
    assert (found.status_code, found.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["referrer-policy"] == "no-referrer"
    assert found.content == assemble()[0]
    assert (await client.get("/tasks/forms")).json()["error"]["code"] == "not_ready"
    assert (await client.post("/", json={"inputs": "x"})).status_code == 503
    metrics = (await client.get("/metrics")).text
    assert 'mera_requests_total{route="/",status="503"} 1.0' in metrics
    assert 'route="/",status="200"' not in metrics


def test_where_keys_are_asked_for_only_the_page_itself_is_open() -> None:
    assert needed("GET", "/") is None
    assert needed("GET", "/tasks/forms") == "read"


async def test_the_policy_knows_exactly_what_is_inlined(client: httpx.AsyncClient) -> None:
    found = await client.get("/")
    policy = dict(part.strip().split(" ", 1) for part in found.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in str(policy)
    assert policy["require-trusted-types-for"] == "'script'"
    for tag, inlined in Parts(found.text).inlined.items():
        (text,) = inlined
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"


def test_nothing_is_asked_of_anybody_else() -> None:
    document = assemble()[0].decode()
    assert not re.search(r"https?://|@import|url\(|//cdn|import\(|\bimport ", document)
    parts = Parts(document)
    assert all(
        value.startswith("#") or value == "data:," for name, value in parts.attributes if name in ("href", "src")
    )
    assert not [name for name, _ in parts.attributes if name == "style" or name.startswith("on")]
    ids = [value for name, value in parts.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_script_has_no_way_to_make_markup_of_text(folder: Path) -> None:
    for name in SCRIPTS:
        text = (folder / f"{name}.js").read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|DOMParser", text
        )


def test_every_file_of_the_folder_is_used_and_goes_into_the_wheel(folder: Path, root: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {f"{name}.js" for name in SCRIPTS} | {"index.html", "style.css", "examples.json"}
    target = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert (
        "server/mera_server" in target["wheel"]["packages"]
    )  # a package's folder goes in whole, but for what git ignores
    assert not set(target["wheel"]) & {"exclude", "only-include", "include"}
    ignored = subprocess.run(["git", "check-ignore", *map(str, folder.iterdir())], cwd=root, capture_output=True)
    assert ignored.stdout == b""


def test_the_wheel_lists_the_page(folder: Path, root: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="no hatchling; pip install hatchling")
    listed = {file.distribution_path for file in wheel.WheelBuilder(str(root)).recurse_included_files()}
    assert {f"mera_server/page/{path.name}" for path in folder.iterdir()} <= listed


def test_the_examples_fit_their_templates(folder: Path) -> None:
    examples = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    assert set(examples) == set(builtin_names([demo.tasks_dir()]))
    for name, found in examples.items():
        task = load_task(name, search=[demo.tasks_dir()])
        for example in found:
            assert set(example["fields"]) == set(fields_of(task.template))
            assert render(task.template, example["fields"])
            assert example["label"] in task.labels


@pytest.mark.parametrize("name", ["demo_spam", "demo_desk_a"])
def test_the_demo_examples_are_the_first_test_rows_and_not_chosen(folder: Path, name: str) -> None:
    examples = json.loads((folder / "examples.json").read_text(encoding="utf-8"))[name]
    task = load_task(name, search=[demo.tasks_dir()])
    first = [(dict(row.fields), task.labels[row.label]) for row in make_splits(task).test[: len(examples)]]
    shown = [(example["fields"], example["label"]) for example in examples]
    assert sorted(map(str, shown)) == sorted(map(str, first))


# ------------------------------------------------------------------------------------------------ the palettes


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(params=["light", "dark"])
def palette(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    style = (folder / "style.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[request.param == "dark"]))


def test_both_palettes_have_the_same_colours(folder: Path) -> None:
    light, dark = re.findall(r":root \{(.*?)\}", (folder / "style.css").read_text(encoding="utf-8"), re.DOTALL)
    assert re.findall(r"--[\w-]+:", light) == re.findall(r"--[\w-]+:", dark)


def test_text_stands_out(palette: dict[str, str]) -> None:
    pairs = [(ink, ground) for ink in ("ink", "quiet", "accent") for ground in ("ground", "panel")]
    pairs += [("on-accent", "accent"), ("problem-ink", "problem"), ("problem-ink", "panel"), ("right-ink", "panel")]
    pairs += [(name, name.removesuffix("-ink")) for name in palette if name.endswith("-ink") and name != "right-ink"]
    for ink, ground in pairs:
        assert contrast(palette[ink], palette[ground]) >= 4.5, (ink, ground)
    for ground in ("ground", "panel"):
        assert contrast(palette["edge"], palette[ground]) >= 3  # the borders of controls


def test_the_scales_are_told_apart_by_lightness_alone(palette: dict[str, str]) -> None:
    for scale in (["e" + str(i) for i in range(10)], ["s" + str(i) for i in range(7)]):
        lights = [luminance(palette[name]) for name in scale]
        steps = [contrast(palette[one], palette[two]) for one, two in pairwise(scale)]
        assert lights in (sorted(lights), sorted(lights, reverse=True))
        assert min(steps) > 1.05
