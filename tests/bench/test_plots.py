"""Figures: which there are, that they hold what was measured, and that equal cells give equal bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from merasteer.bench.plots import calibration, draw, spi
from merasteer.bench.plots.style import COLOURS, assign
from merasteer.errors import InvalidInput

pytest.importorskip("matplotlib", reason="needs the extra mera-server[pipeline]")
PNG = b"\x89PNG\r\n\x1a\n"
KINDS = ["spi", "probe_error", "probe_auroc", "calibration", "transitions", "recall", "percentiles"]


def texts(path: Path) -> list[str]:
    """What is written in an SVG, in the order in which it is drawn."""
    return [
        "".join(node.itertext()).strip() for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    ]


def names(paths: Iterable[Path]) -> list[str]:
    return [path.stem for path in paths if path.suffix == ".png"]


@pytest.fixture(scope="module")
def drawn(realistic: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return draw(realistic, [], tmp_path_factory.mktemp("plots"))


def test_every_kind_is_a_png_and_an_svg(drawn: list[Path]) -> None:
    assert names(drawn) == [f"{kind}-tiny-llama" for kind in KINDS]
    assert [path.suffix for path in drawn] == [".png", ".svg"] * len(KINDS)
    for path in drawn:
        assert path.read_bytes().startswith(PNG) if path.suffix == ".png" else texts(path)
    assert sorted(drawn[0].parent.iterdir()) == sorted(drawn)


def test_each_svg_says_what_it_shows(drawn: list[Path]) -> None:
    said = {path.stem.removesuffix("-tiny-llama"): set(texts(path)) for path in drawn if path.suffix == ".svg"}
    assert {"sms_spam", "yes_no_question"} <= said["spi"] & said["probe_error"] & said["transitions"] & said[
        "percentiles"
    ]
    assert {"none", "mera", "mera+bias", ".00", "tiny-llama: SPI on the test split"} <= said["spi"]
    assert {"error", "logistic", "residual", "mlp_input", "mean predictor"} <= said["probe_error"]
    assert {"AUROC", "chance", "layer"} <= said["probe_auroc"]
    assert {"euclidean", "covariance", "α (logit scale)", ".03", "calibration split, with bound"} <= said["calibration"]
    assert {"kept right", "repaired", "broken", "kept wrong", "580", "unsteered accuracy"} <= said["transitions"]
    assert {"majority", "label probe", "text classifier"} <= said["transitions"]
    assert {"ham", "spam", "hollow: unsteered", "recall"} <= said["recall"]
    assert "percentile of predicted error" in said["percentiles"]


def test_two_draws_are_byte_equal(grid: Any, tmp_path: Path) -> None:
    cells = grid(["tiny-llama"], ["sms_spam"], ["last"], ["none", *"abcd", "mera"])
    first, second = draw(cells, [], tmp_path / "a"), draw(cells, [], tmp_path / "b")
    assert names(first) == [f"{kind}-tiny-llama" for kind in KINDS]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_heat_map_tells_decisions_apart(record: Any, tmp_path: Path) -> None:
    cells = [
        record("mera"),
        record.abstained("sae"),
        record.applied("prompt", -0.3),
        record.failed("paper"),
        record.alone("own"),
    ]
    draw(cells, ["prompt", "mera", "own", "sae", "paper", "none"], tmp_path)
    said = texts(tmp_path / "spi-tiny-llama.svg")
    shown = ["−.30", ".75 ✓", ".75 (✓)", "–", "failed"]
    assert [text for text in said if text in shown] == shown
    assert ".68 to .81" in said
    assert "none" in said


def test_few_models_share_a_heat_map_and_many_have_one_each(
    grid: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = grid(["org/a", "b"], ["x", "y"], ["last"], ["none"])
    assert names(draw(few, [], tmp_path)) == ["spi", "transitions-org--a", "transitions-b", "recall-org--a", "recall-b"]
    assert {"org/a", "b", "x", "y"} <= set(texts(tmp_path / "spi.svg"))
    monkeypatch.setattr(spi, "SIDE_BY_SIDE", 3)
    assert names(draw(few, [], tmp_path))[:2] == ["spi-org--a", "spi-b"]


def test_models_of_one_slug_keep_their_figures_apart(record: Any, tmp_path: Path) -> None:
    cells = [record("mera", model="org/a"), record("mera", model="org--a")]
    twice = [f"{kind}-org--a{more}" for kind in ("transitions", "recall") for more in ("", "-1")]
    assert names(draw(cells, [], tmp_path)) == ["spi", *twice]


def test_many_calibrations_are_a_figure_per_method(
    record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "TOGETHER", 1)
    row = {
        "key": "logit_bias",
        "method": "logit_bias",
        "hook_point": None,
        "direction": None,
        "alpha": None,
        "gain": 0.1,
    }
    tested = {"key": "logit_bias", "gain": 0.1, "lower_bound": 0.0}
    cells = [record(m, curve=[row], tested=[tested]) for m in ("mera", "sae")]
    found = [name for name in names(draw(cells, [], tmp_path)) if name.startswith("calibration")]
    assert found == ["calibration-tiny-llama-mera", "calibration-tiny-llama-sae"]
    assert "logit bias alone" in texts(tmp_path / "calibration-tiny-llama-sae.svg")


def test_both_answer_positions_are_lines_of_one_panel_or_panels_where_there_are_many(
    record: Any, tmp_path: Path
) -> None:
    def row(readout: str, hook_point: str) -> dict[str, Any]:
        score = {"rmse": 0.8, "dummy_rmse": 1.0, "auroc": None}
        return {"hook_point": hook_point, "readout": readout, "layer": 0, **score}

    few, many = (
        [row("error", "residual")],
        [row(r, h) for r in ("error", "sae", "logistic") for h in ("residual", "reference")],
    )
    for probes, titles in ((few, {"sms_spam"}), (many, {"sms_spam (last)", "sms_spam (exact)"})):
        draw([record("mera", position=at, probes=probes) for at in ("last", "exact")], [], tmp_path)
        said = set(texts(tmp_path / "probe_error-tiny-llama.svg"))
        assert titles == {text for text in said if text.startswith("sms")}
        assert {"answer position last", "answer position exact"} <= said
    assert not (tmp_path / "probe_auroc-tiny-llama.png").exists()


def test_probes_that_differ_between_methods_are_lines_of_their_own(record: Any, tmp_path: Path) -> None:
    row = {"hook_point": "residual", "readout": "sae", "layer": 0, "rmse": 0.8, "dummy_rmse": 1.0, "auroc": None}
    cells = [record("a", probes=[row]), record("b", probes=[row]), record("c", probes=[{**row, "rmse": 0.7}])]
    draw(cells[:2], [], tmp_path)
    assert "sae" in texts(tmp_path / "probe_error-tiny-llama.svg")
    draw(cells, [], tmp_path)
    assert {"sae: a, b", "sae: c"} <= set(texts(tmp_path / "probe_error-tiny-llama.svg"))


def test_nothing_measured_draws_nothing_but_the_heat_map_of_failures(record: Any, tmp_path: Path) -> None:
    assert draw([], ["mera"], tmp_path) == []
    assert names(draw([record.failed("mera")], ["mera"], tmp_path)) == ["spi-tiny-llama"]


def test_a_missing_matplotlib_names_its_extra(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    with pytest.raises(InvalidInput, match=r"install mera-server\[pipeline\]"):
        draw([record("mera")], ["mera"], tmp_path)


def test_known_names_keep_their_style_and_the_others_share_the_rest() -> None:
    given = assign(["new", "error", "other", "new"], {"error": COLOURS[0]}, COLOURS)
    assert given == {"new": COLOURS[1], "error": COLOURS[0], "other": COLOURS[2]}
    assert assign("abc", {}, [1, 2]) == {"a": 1, "b": 2, "c": 1}
