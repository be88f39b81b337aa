"""docs/adding-a-task.md, walked from its first block to its last: rows, task file, run, store, request."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from mera_server.app import create_app
from mera_server.cli import main
from mera_server.settings import Settings

from merasteer import demo
from merasteer.demo.paths import MODEL
from merasteer.store import latest, load
from merasteer.tasks import builtin_names, fields_of, load_task
from merasteer.tasks.answer import ANSWER_KEYS
from merasteer.tasks.schema import PROMPT_KEYS, SPLIT_KEYS
from merasteer.tasks.source import SOURCE_KEYS


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "adding-a-task.md").read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The arguments of every `mera` command on the page, in order."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("mera ")]
    return [shlex.split(line.replace("$MODEL", str(demo.model_dir())))[1:] for line in lines]


def test_the_walk(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    monkeypatch.chdir(tmp_path)
    (rows,), (task,), (more,) = blocks(page, "json"), blocks(page, "toml"), blocks(page, "python")
    Path("inbox.jsonl").write_text(rows, encoding="utf-8")
    Path("inbox.toml").write_text(task, encoding="utf-8")
    exec(compile(more, "docs/adding-a-task.md", "exec"), {})
    assert len(task.splitlines()) <= 22
    show, check, run, serve = commands(page)

    assert main(show) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["keep", "junk"]

    assert main(check) == 0
    (shown,) = blocks(page, "text")
    for wanted, line in zip(shown.splitlines(), capsys.readouterr().out.splitlines(), strict=True):
        assert line.startswith(wanted.removesuffix("…")) if wanted.endswith("…") else line == wanted

    assert main(run) == 0
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["task"] == "inbox"
    assert report["n"] == {"train": 400, "calibration": 150, "test": 150}
    assert report["decision"] == "certified", report  # as the page says; abstaining would be an outcome, not this one
    assert report["accuracy"]["steered"] > report["accuracy"]["unsteered"]
    assert all(steered > 0.6 for _, steered in report["recall"].values()), report  # no constant answer
    assert report["accuracy"]["steered"] > report["accuracy"]["logit_bias"], report

    store = Path("my_store")
    digest = latest(store, MODEL, "inbox")
    assert digest is not None
    assert report["artifact"].startswith(digest)
    artifact = load(store / MODEL / "inbox" / digest[:12])
    assert (artifact.digest, artifact.certified) == (report["artifact"], True)
    assert artifact.task.labels == ("keep", "junk")

    assert serve[0] == "serve"
    options = dict(zip(serve[1::2], serve[2::2], strict=True))
    body = re.search(r"-d '(.*?)'", next(block for block in blocks(page, "sh") if "curl" in block), re.DOTALL)
    assert body is not None
    with TestClient(create_app(Settings(model=options["--model"], store=Path(options["--store"])))) as client:
        deadline = time.monotonic() + 30
        while client.get("/health/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = client.post("/generate", content=body[1], headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    mera = answer.json()["mera"]
    assert (mera["task"], mera["probe"], mera["guarantee"]["certified"]) == ("inbox", artifact.digest, True)
    assert mera["answer"]["label"] == "keep"


def test_the_tables_name_every_key_and_every_built_in_task(page: str) -> None:
    tables = [part.split("\n\n")[0] for part in page.split("| key |")[1:]]
    keys = [re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.MULTILINE) for table in tables]
    found = [sorted(re.findall(r"\w+", " ".join(names))) for names in keys]
    assert found == [sorted(names) for names in ((*PROMPT_KEYS, *ANSWER_KEYS), SPLIT_KEYS, SOURCE_KEYS)]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", page.split("| built-in task |")[1], re.MULTILINE)
    assert sorted(name for name, *_ in rows) == list(builtin_names())
    columns = hub = ""
    for name, labels, given, where in rows:
        task = load_task(name)
        columns = columns if given == "the same" else given
        hub = hub if where == "the same" else where
        assert tuple(labels.split(", ")) == task.labels
        assert all(f"`{field}`" in columns for field in fields_of(task.template))
        assert task.data is not None
        assert f"`{task.data.hub}`" in hub
        assert not task.data.config or f"{len(task.data.config)} configurations" in where
