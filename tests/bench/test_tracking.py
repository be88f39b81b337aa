"""Trackers: what is logged when, offline unless there is an account, and what is said where the package is missing."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from merasteer.bench.tracking import metric, tracker
from merasteer.errors import InvalidInput

PNG = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Library:
    """Stands in for wandb and trackio; keeps what it is told."""

    def __init__(self, logged_in: bool = True, mode: str = "online") -> None:
        self.calls: list[tuple[str, Any]] = []
        self._logged_in, self._mode = logged_in, mode

    def init(self, **options: Any) -> None:
        self.calls.append(("init", options))

    def setup(self) -> Any:
        return SimpleNamespace(settings=SimpleNamespace(mode=self._mode))

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt, "it must never ask"
        return self._logged_in

    def log(self, metrics: dict[str, Any]) -> None:
        self.calls.append(("log", metrics))

    def finish(self) -> None:
        self.calls.append(("finish", None))

    def Image(self, path: str) -> tuple[str, str]:  # noqa: N802
        return ("image", path)

    def Table(self, columns: list[str], data: list[list[Any]]) -> tuple[str, Any]:  # noqa: N802
        return ("table", [dict(zip(columns, row, strict=True)) for row in data])


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a stand-in in place of a package."""
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def install(name: str, **options: Any) -> Library:
        made = Library(**options)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_one_run_with_a_metric_per_cell_then_table_and_figures(name: Any, library: Any, record: Any) -> None:
    kept = library(name)
    run = tracker(name, "bench", {"seed": 0})
    run.log(record("mera"))
    run.log(record.failed("prompt"))
    run.close([Path("plots/spi.png"), Path("plots/spi.svg")])
    assert kept.calls[:3] == [
        ("init", {"project": "bench", "config": {"seed": 0}}),
        ("log", {"spi/tiny-llama/sms_spam/mera": 0.75, "accuracy/tiny-llama/sms_spam/mera": 0.9}),
        ("log", {"failed/tiny-llama/sms_spam/prompt": 1}),
    ]
    assert [what for what, _ in kept.calls[3:]] == ["log", "finish"]
    last = kept.calls[3][1]
    assert last["figures/spi"] == ("image", "plots/spi.png")
    assert [(row["method"], row["status"], row["spi"]) for row in last["results"][1]] == [
        ("mera", "done", 0.75),
        ("prompt", "failed", None),
    ]
    assert set(last) == {"figures/spi", "results"}


def test_answer_positions_never_share_a_metric(record: Any) -> None:
    assert metric(record("mera")) == "tiny-llama/sms_spam/mera"
    assert metric(record("mera", position="exact")) == "tiny-llama/sms_spam@exact/mera"


@pytest.mark.parametrize(
    ("setting", "mode", "logged_in", "given"),
    [(None, "online", True, None), (None, "online", False, "offline"), (None, "disabled", False, None),
     ("online", "online", False, None), ("offline", "offline", False, None)],
)  # fmt: skip
def test_wandb_is_offline_without_an_account_and_a_chosen_mode_stands(
    setting: str | None, mode: str, logged_in: bool, given: str | None, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = library("wandb", logged_in=logged_in, mode=mode)
    if setting:
        monkeypatch.setenv("WANDB_MODE", setting)
    tracker("wandb", "bench", {})
    assert kept.calls[0][1].get("mode") == given


def test_no_tracker_does_nothing(record: Any) -> None:
    run = tracker(None, "bench", {})
    run.log(record("mera"))
    run.close([])


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_package_names_its_extra(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInput, match=rf"install mera-server\[{name}\]"):
        tracker(name, "bench", {})


def test_unknown_names_and_refusals_are_one_line(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="'mlflow' is not known; give wandb or trackio"):
        tracker("mlflow", "bench", {})

    def refuse(**options: Any) -> None:
        raise RuntimeError("no\nspace")

    monkeypatch.setattr(library("trackio"), "init", refuse)
    with pytest.raises(InvalidInput, match=r"trackio cannot start \(RuntimeError: no space\)"):
        tracker("trackio", "bench", {})


def cells_logged(name: Any, record: Any, tmp_path: Path) -> None:
    """A short run with the real package."""
    figure = tmp_path / "spi.png"
    figure.write_bytes(PNG)
    run = tracker(name, "bench", {"seed": 0})
    for cell in (record("mera"), record.applied("none", 0.0), record.failed("prompt"), record.abstained("sae")):
        run.log(cell)
    run.close([figure])


def soon(true: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether it becomes true: wandb's own process may write a moment behind ours."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.05)
    return bool(true())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs
def test_wandb_itself_writes_offline(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra mera-server[wandb]")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    cells_logged("wandb", record, tmp_path)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert soon(lambda: list((folder / "files" / "media" / "images" / "figures").glob("spi_*.png")))
    assert soon(lambda: list((folder / "files" / "media" / "table").glob("results_*.table.json")))
    (written,) = folder.glob("run-*.wandb")
    assert soon(lambda: b"spi/tiny-llama/sms_spam/mera" in written.read_bytes())


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs
def test_trackio_itself_writes_locally(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="needs the extra mera-server[trackio]")
    cells_logged("trackio", record, tmp_path)
    files = [path for path in (tmp_path / "trackio").rglob("*") if path.is_file()]
    assert any(path.suffix == ".png" for path in files)
    assert any(b"spi/tiny-llama/sms_spam/mera" in path.read_bytes() for path in files)
