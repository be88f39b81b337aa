"""The page: whole, self-contained, the summary's content with its figures, and nothing in it that was not escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from merasteer.pipeline import write_page
from merasteer.pipeline.page import page
from merasteer.pipeline.telling import notes, trial, verdict

from .told import made, uncertified

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "img", "link", "hr", "input"}


class Reader(HTMLParser):
    """Keeps the text, the tags with their attributes, and whether every tag is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def figures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


@pytest.mark.parametrize("report", [made(serve="mera serve --store s"), uncertified(), uncertified(certificate=None)])
def test_it_says_what_the_summary_says(report: dict) -> None:
    said = " ".join("".join(read(page(report)).text).split())
    for sentence in (verdict(report), *trial(report), *notes(report), report.get("serve") or ""):
        assert " ".join(sentence.split()) in said


def test_it_loads_nothing_and_runs_nothing() -> None:
    found = read(page(made()))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    links = {"src", "href", "xlink:href", "action", "data"}
    assert not any(
        links & attributes.keys() or any(name.startswith("on") for name in attributes) for _, attributes in found.tags
    )
    text = page(made()).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|url\(|@import", text)
    policy = next(attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in text


def test_the_bars_are_as_long_as_the_accuracies_and_the_majority_is_a_line() -> None:
    bars = figures(page(made()))[0]
    widths = [float(bar.attrib["width"]) for bar in bars.iter(f"{SVG}rect")]
    names = [text.text for text in bars.iter(f"{SVG}text") if text.attrib.get("text-anchor") == "end"]
    accuracy = made()["accuracy"]
    assert names == ["unsteered", "steered", "logit bias", "label probe", "text classifier"]
    shown = [accuracy[name.replace(" ", "_")] for name in names if name]
    assert [width / widths[0] for width in widths] == pytest.approx([share / shown[0] for share in shown], abs=1e-3)
    [line] = bars.iter(f"{SVG}line")
    left = float(next(bars.iter(f"{SVG}rect")).attrib["x"])
    assert (float(line.attrib["x1"]) - left) / widths[0] == pytest.approx(0.75 / 0.8, abs=1e-3)
    assert "majority .750" in {text.text for text in bars.iter(f"{SVG}text")}


def test_every_candidate_is_drawn_higher_where_it_gains_more_and_the_tested_one_is_ringed() -> None:
    report = made()
    plot = figures(page(report))[1]
    marks = {}
    for mark in plot.iter():
        title = mark.find(f"{SVG}title")
        if title is not None and title.text is not None:
            y = mark.attrib.get("cy") or mark.attrib.get("y1") or str(float(mark.attrib["y"]) + 4)
            marks[title.text.split()[0]] = float(y)
    gains = {row["key"]: row["gain"] for row in report["candidates"]}
    assert marks.keys() == gains.keys()
    assert sorted(marks, key=lambda key: marks[key]) == sorted(gains, key=lambda key: -gains[key])
    [ring] = [mark for mark in plot.iter(f"{SVG}circle") if mark.attrib["class"] == "ring"]
    assert float(ring.attrib["cy"]) == pytest.approx(marks[report["certificate"]["candidate"]], abs=0.2)
    bounds = [float(part) for part in plot.attrib["viewBox"].split()]
    assert all(0 < y < bounds[3] for y in marks.values())


def test_the_matrices_hold_every_count_and_a_column_for_what_is_missing() -> None:
    free = {name: [[*row, 3] for row in rows] for name, rows in made()["confusion"].items()}
    for report, columns in ((made(), 2), (made(confusion=free), 3)):
        found = re.findall(r"<table><caption>(\w+):.*?</table>", page(report), re.DOTALL)
        assert found == ["unsteered", "steered"]
        cells = [int(count) for count in re.findall(r"%\">(\d+)</td>", page(report))]
        counts = [count for rows in report["confusion"].values() for row in rows for count in row]
        assert cells == counts
        assert ("<em>none</em>" in page(report)) == (columns == 3)


def test_names_cannot_become_markup() -> None:
    evil = '<script>alert("1")</script>'
    recall = {evil: [0.5, 0.6], "b": [0.5, 0.5]}
    rows = [{**row, "key": f"{evil}{i}", "direction": evil} for i, row in enumerate(made()["candidates"])]
    text = page(made(model=evil, task=evil, recall=recall, candidates=rows, serve=evil, decision="certified"))
    assert "<script" not in text
    assert "alert(" in "".join(read(text).text)


def test_many_labels_and_one_candidate_alone_are_drawn(tmp_path: Path) -> None:
    labels = [f"label {i}" for i in range(12)]
    counts = [[int(i == j) for j in range(12)] for i in range(12)]
    bias = [row for row in made()["candidates"] if row["alpha"] is None]
    report = made(
        recall={label: [0.5, 0.5] for label in labels},
        confusion={"unsteered": counts, "steered": counts},
        candidates=bias,
    )
    write_page(tmp_path / "page.html", report)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "lowest recall" in "".join(read(text).text)
    assert len(figures(text)) == 2
