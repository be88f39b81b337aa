"""`mera` on the command line: exit codes, one line for every mistake, options from everywhere."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mera_server.cli import app, main
from mera_server.commands import stages
from mera_server.commands.bench import spread

from merasteer import demo, pipeline
from merasteer.pipeline import write_report
from merasteer.pipeline.workspace import Output
from merasteer.types import METHODS

REPORT: dict[str, Any] = {
    "task": "t", "model": "m", "decision": "abstained", "reason": "no_probe", "artifact": "ab" * 32, "method": None,
    "n": {"train": 60, "calibration": 30, "test": 20}, "accuracy": {"unsteered": 0.5, "steered": 0.5, "majority": 0.5, "logit_bias": 0.6},
    "recall": {"yes": [1.0, 1.0], "no": [0.0, 0.0]}, "certificate": None, "spi": 0.0, "spi_interval": [0.0, 0.0], "level": 0.95,
}  # fmt: skip


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("mera: ")
    assert found.err.count("\n") == 1
    return found.err


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the pipeline, which are recorded in place of being run."""
    calls: list[dict[str, Any]] = []

    def prepare(model: str, task: str, store: Path, options: pipeline.Options, **more: Any) -> dict[str, Any]:
        calls.append({"model": model, "task": task, "store": store, "options": options, **more})
        return calls[-1]

    def run_job(job: dict[str, Any], until: str, bars: Any = None) -> dict[str, Any] | None:
        job["until"] = until
        return dict(REPORT) if until in ("evaluate", "publish") else None

    def until_fit(job: dict[str, Any], until: str, bars: Any = None) -> dict[str, Output]:
        job["until"] = until
        score = {"hook_point": "residual", "readout": "error", "layer": 3, "rmse": 1.25, "dummy_rmse": 2.5}
        return {"fit": Output({"probes": [{**score, "auroc": 0.75, "standard_error": 0.1, "idle": False}]})}

    monkeypatch.setattr(pipeline, "prepare", prepare)
    monkeypatch.setattr(pipeline, "run_job", run_job)
    monkeypatch.setattr(pipeline, "stages", until_fit)
    monkeypatch.setattr(pipeline, "write_report", lambda path, report: calls[-1].update(report=path))
    for name in ("MERA_STORE", "MERA_OUT", "MERA_SEED", "MERA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Missing command"),
        (["nope"], "nope"),
        (["run"], "--model"),
        (["run", "--model", "m"], "--task"),
        (["run", "--model", "m", "--task", "t", "--seed", "x"], "--seed"),
        (["serve", "--bogus"], "--bogus"),
        (["serve", "--port", "x"], "--port: 'x'"),
        (["serve", "--config", "/absent.toml"], "/absent.toml"),
        (["serve", "--host", "256.1.1.1"], "--host"),
        (["run", "--model", "m", "--task", "absent_task"], "absent_task"),
        (["run", "--model", "m", "--task", "t", "--delta", "2"], "delta"),
        (["run", "--model", "m", "--task", "t", "--positions", "some"], "positions"),
        (["tasks", "show", "absent_task"], "absent_task"),
        (["probes", "show", "abc"], "probe"),
        (["probes", "list", "--store", "/absent"], "store: no such folder '/absent'"),
        (["probes", "verify", "abc"], "'abc'"),
        (["probes", "plant", "--model", "m", "--task", "sms_spam", "--hook-point", "here"], "'here'"),
    ],
)
def test_bad_usage_is_two_and_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], part: str) -> None:
    assert main(arguments) == 2
    assert part in one_line(capsys)


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in one_line(capsys)


def test_interrupted_is_130(
    ran: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_job", interrupted)
    assert main(["run", "--model", "m", "--task", "t"]) == 130


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["run", "--help"], ["probes", "--help"]])
def test_help_is_zero(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    assert "Usage: mera" in capsys.readouterr().out


def test_help_needs_no_torch() -> None:
    code = "import sys, mera_server.cli; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["mera_server.cli", "mera_server.app", "mera_server.loading"])
@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_openmp_waits_without_spinning_from_before_torch_is_loaded(
    module: str, given: str | None, expected: str
) -> None:
    code = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))
            sys.exit(0)
sys.meta_path.insert(0, Watch())
import {module}
import torch
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (found.returncode, found.stdout.strip()) == (0, expected)


def test_methods_are_the_servers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    header, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[:2] == ["method", "request"]
    assert {line[1] for line in lines} - {"-"} == set(METHODS)  # every method of a request, none besides
    assert len({line[0] for line in lines}) == len(lines)


def test_run_passes_its_options_on(
    ran: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--seed",
        "3",
        "--second-chances",
        "2",
        "--hook-points",
        "residual,mlp_input",
        "--directions",
        "covariance",
    ]
    files = ["--out", str(tmp_path), "--data", "rows.jsonl", "--report", "r.json"]
    assert main(["run", "--model", "m", "--task", "t", *options, *files]) == 0
    call = ran[0]
    found = call["options"]
    assert (found.seed, found.chances, found.hook_points, found.directions) == (
        3,
        2,
        ("residual", "mlp_input"),
        ("covariance",),
    )
    assert (call["model"], call["task"], call["store"], call["until"]) == ("m", "t", tmp_path, "publish")
    assert (call["data"], call["report"]) == (Path("rows.jsonl"), Path("r.json"))
    said = capsys.readouterr().out
    assert said.startswith(
        "m, t: 60 training, 30 calibration, 20 test rows\n\nAbstained: m answers t unsteered, at accuracy .500"
    )
    assert said.endswith(f"\nServe it:  mera serve --model m --store {tmp_path}\n")
    assert main(["run", "--model", "m", "--task", "t", "--json", "--out", "a folder"]) == 0
    served = {"serve": "mera serve --model m --store 'a folder'"}
    assert json.loads(capsys.readouterr().out) == REPORT | served


def test_a_report_is_written_as_it_is_printed_and_said_again(
    ran: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "write_report", write_report)
    file, page = tmp_path / "r.json", tmp_path / "r.html"
    assert main(["run", "--model", "m", "--task", "t", "--report", str(file)]) == 0
    said = capsys.readouterr().out
    assert main(["report", str(file)]) == 0
    assert capsys.readouterr().out == said
    assert main(["report", str(file), "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"written to {page}\n"
    assert "mera serve --model m" in page.read_text(encoding="utf-8")
    assert main(["evaluate", "--model", "m", "--task", "t", "--json"]) == 0
    assert "serve" not in json.loads(capsys.readouterr().out)  # nothing was published


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("{", "not JSON"), ("[]", "lacks 'task'"), ('{"task": 1}', "lacks 'model'")],
)
def test_what_is_no_report_is_two_and_one_line(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert main(["report", str(file)]) == 2
    assert said in one_line(capsys)


def test_demo_is_the_built_in_model(ran: list[dict[str, Any]]) -> None:
    assert main(["run", "--model", "demo", "--task", "t"]) == 0
    assert main(["run", "--model", "./demo", "--task", "t"]) == 0
    assert [call["model"] for call in ran] == [str(demo.model_dir()), "./demo"]


@pytest.mark.parametrize("stage", ["collect", "fit", "calibrate", "evaluate"])
def test_stages_stop_where_they_are_named(
    ran: list[dict[str, Any]], stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stage, "--model", "m", "--task", "t"]) == 0
    assert ran[0]["until"] == stage
    assert ran[0]["store"] == Path("probes_store")
    assert ran[0]["options"] == pipeline.Options()
    if stage == "fit":
        header, row = capsys.readouterr().out.splitlines()
        assert dict(zip(header.split(), row.split(), strict=True))["auroc"] == "0.75"


@pytest.mark.parametrize(
    ("flag", "given", "expected"),
    [
        ("layers", "all", "all"), ("layers", "median", "median"), ("layers", "worst", "worst"), ("layers", "0,2,3", (0, 2, 3)),
        ("layers", "5", (5,)), ("positions", "last", "last"), ("positions", "0,4", (0, 4)), ("candidates", "mera", ("mera",)),
    ],
)  # fmt: skip
def test_names_and_lists_reach_the_options(ran: list[dict[str, Any]], flag: str, given: str, expected: object) -> None:
    assert main(["run", "--model", "m", "--task", "t", f"--{flag}", given]) == 0
    assert getattr(ran[0]["options"], flag) == expected


@pytest.mark.parametrize("flag", ["layers", "positions"])
@pytest.mark.parametrize("bad", ["some", "0,x", "-1", "1,1", "0,median", ""])
def test_a_list_that_is_none_is_refused(flag: str, bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "m", "--task", "t", f"--{flag}={bad}"]) == 2
    assert flag in one_line(capsys)


def test_an_autoencoder_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("3=/absent", "three=.", "3"):
        assert main(["fit", "--model", "m", "--task", "t", "--sae", bad]) == 2
        assert "sae" in one_line(capsys)


def test_how_the_model_is_loaded_reaches_the_run(ran: list[dict[str, Any]]) -> None:
    assert main(["run", "--model", "m", "--task", "t", "--dtype", "bfloat16", "--device-map", "auto"]) == 0
    assert ran[0]["loading"] == pipeline.Loading("bfloat16", "auto", "auto")


def test_options_of_several_values_take_blanks() -> None:
    given = ["bench", "--models", "a", "b", "--tasks", "t", "--methods", "none", "mera", "--out", "o", "--seed", "1"]
    assert spread(given) == [
        "bench", "--models", "a", "--models", "b", "--tasks", "t", "--methods", "none", "--methods", "mera",
        "--out", "o", "--seed", "1",
    ]  # fmt: skip
    assert spread(["serve", "--models", "a", "b"]) == ["serve", "--models", "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tasks", "t", "--out", "o"], "--models"),
        (["--models", "m", "--tasks", "absent_task", "--out", "o"], "absent_task"),
        (["--models", "m", "--tasks", "sms_spam", "--methods", "prayer", "--out", "o"], "methods: 'prayer'"),
        (["--models", "m", "m", "--tasks", "sms_spam", "--out", "o"], "models: 'm'"),
        (["--models", "m", "--tasks", "sms_spam", "--compat", "original", "--out", "o"], "compat: 'original'"),
        (["--models", "m", "--tasks", "sms_spam", "--answer-positions", "first", "--out", "o"], "'first'"),
        (["--models", "m", "--tasks", "sms_spam", "--track", "paper", "--out", "o"], "paper"),
    ],
)
def test_bad_usage_of_bench_is_two_and_one_line(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    assert part in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_precedence_of_run(
    ran: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mera.toml"
    file.write_text('model = "top"\nseed = 1\n[run]\ntask = "t"\nseed = 2\nport = 9\n', encoding="utf-8")
    config = ["--config", str(file)]
    assert main(["run", *config]) == 0
    monkeypatch.setenv("MERA_SEED", "3")
    monkeypatch.setenv("MERA_STORE", "there")
    assert main(["run", *config]) == 0
    assert main(["run", "--seed", "4", *config]) == 0
    assert [call["options"].seed for call in ran] == [2, 3, 4]
    assert [call["store"] for call in ran] == [Path("probes_store"), Path("there"), Path("there")]
    assert (ran[0]["model"], ran[0]["task"]) == ("top", "t")


def test_every_stage_has_a_command() -> None:
    assert set(stages.UNTIL) == {"run", *pipeline.STAGES} - {"publish"}
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} >= set(stages.UNTIL)


def test_tasks_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list"]) == 0
    assert "sms_spam" in capsys.readouterr().out
    assert main(["tasks", "show", "sms_spam"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["ham", "spam"]


def test_an_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "verify"):
        assert main(["probes", command, "--store", str(tmp_path)]) == 0


def test_a_rejected_artifact_fails_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model" / "task" / "0123456789ab"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    assert main(["probes", "verify", "--store", str(tmp_path)]) == 2
    found = capsys.readouterr()
    assert found.out.startswith("0123456789ab  task  ")
    assert "mera: store: 1 of 1 artifacts are rejected" in found.err
