"""The client against the real server over a socket: the examples of the docstrings, streams, classify, and leaving early."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import mera_client
import pytest
from mera_client import AsyncClient, Client, InvalidInput, Steering, cli, load

PROMPT = {"desk": "B", "text": "Win a holiday for two. Enter your code 2220 online."}
MODULES = ("_client", "_async_client", "_retries", "load.report")


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(address, name):
    module = importlib.import_module(f"mera_client.{name}")
    with Client(address) as client:
        names = {**vars(mera_client), **vars(module), "client": client, "asyncio": asyncio}
        ran = 0
        for test in doctest.DocTestFinder().find(module, globs=names):
            for example in test.examples:
                example.source = example.source.replace("http://127.0.0.1:8000", address)
            result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
            assert result.failed == 0, test.name
            ran += result.attempted
    assert ran > 0


def test_every_module_with_examples_is_among_them():
    root = Path(mera_client.__file__).parent
    found = {path for path in root.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")}
    assert found == {root / f"{name.replace('.', '/')}.py" for name in MODULES}


@pytest.mark.parametrize("details", ["none", "summary", "trace"])
@pytest.mark.parametrize("steering", [None, Steering(task="demo_spam"), Steering(task="demo_spam", method="none")])
def test_a_stream_is_the_plain_answer_in_pieces(address, details, steering):
    asked = {"max_new_tokens": 12, "steering": steering, "mera_details": details}
    inputs = PROMPT if steering else "Once upon a time"
    with Client(address) as client:
        plain = client.generate(inputs, details=True, **asked)
        events = list(client.generate_stream(inputs, **asked))
    assert "".join(event.token.text for event in events) == events[-1].generated_text == plain.generated_text
    assert [event.token.id for event in events] == [token.id for token in plain.details.tokens]
    assert [event.token.logprob for event in events] == pytest.approx([t.logprob for t in plain.details.tokens])
    assert events[-1].mera == plain.mera
    assert events[-1].details == replace(plain.details, prefill=None, tokens=None)
    assert all((event.step is None) == (details == "none") for event in events)


def test_classify_is_generate_for_each_row(address):
    rows = [{"desk": desk, "text": text} for desk in "AB" for text in ("See you at noon.", "Claim your prize now.")]
    with Client(address) as client:
        answer = client.classify("demo_spam", rows)
        for row, result in zip(rows, answer.results, strict=True):
            mera = client.generate(row, max_new_tokens=1, steering={"task": "demo_spam"}).mera
            assert result.label == mera.answer.label
            assert result.probabilities == pytest.approx(mera.answer.probabilities, abs=1e-4)
            assert (result.decision, result.certified) == (mera.decision, mera.guarantee.certified)
            assert result.predicted_error.before == pytest.approx(mera.predicted_error.before, abs=1e-4)
        with pytest.raises(InvalidInput, match=r"inputs\[1\]"):
            client.classify("demo_spam", [rows[0], "a string where there are two fields"])


def running(address: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("mera_requests_running ")))


def freed(address: str) -> bool:
    deadline = time.monotonic() + 5
    while running(address) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running(address) == 0


def test_closing_the_iterator_frees_the_request(address):
    with Client(address) as client:
        with closing(client.generate_stream("Once upon a time", max_new_tokens=200)) as events:
            assert next(events).index == 1
            assert running(address) == 1
        assert freed(address)
        for event in client.generate_stream("Once upon a time", max_new_tokens=200):
            assert event.index == 1
            break
        assert freed(address)
        assert client.generate("hello", max_new_tokens=1).details.generated_tokens == 1


async def test_a_cancelled_task_frees_the_request(address):
    async with AsyncClient(address) as client:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in client.generate_stream("Once upon a time", max_new_tokens=200):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(freed, address)
        assert len([event async for event in client.generate_stream("hello", max_new_tokens=3)]) == 3


def test_a_file_through_the_command_line(address, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MERA_URL", address)
    rows = [{**PROMPT, "label": "spam"}, {"desk": "A", "text": "See you at noon.", "label": "ham"}] * 5
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["classify", str(tmp_path / "rows.jsonl"), "--task", "demo_spam", "-o", str(tmp_path / "out.jsonl")]
    assert cli.main([*arguments, "--chunk", "3"]) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{**row, "mera_label": row["label"]} for row in rows] == [
        {name: row[name] for name in ("desk", "text", "label", "mera_label")} for row in found
    ]
    assert all(row["certified"] and abs(row["p_ham"] + row["p_spam"] - 1) < 1e-5 for row in found)
    assert "10 certified" in capsys.readouterr().err


def test_load_against_the_real_server(address, tmp_path, capsys):
    (tmp_path / "mix.toml").write_text(
        '[[mix]]\nname = "steered"\nkind = "stream"\nprompts = [{desk = "B", text = "Win a prize"}]\ntask = "demo_spam"\n'
        '[[mix]]\nname = "batch"\nkind = "classify"\nbatch = 4\nprompts = [{desk = "A", text = "hello"}]\ntask = "demo_spam"\n'
        '[[mix]]\nname = "plain"\nprompts = ["Once upon a time"]\nmax_new_tokens = 4\n'
    )
    command = ["--url", address, "--mix", str(tmp_path / "mix.toml"), "--count", "30", "--concurrency", "6"]
    assert load.main(command) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["requests"], found["answered"], found["errors"]) == (30, 30, {})
    assert sum(part["requests"] for part in found["mix"].values()) == 30
    assert set(found["mix"]["steered"]["decisions"]) <= {"steered", "not_needed"}
    assert found["mix"]["plain"]["decisions"] == {"off": {"count": found["mix"]["plain"]["answered"], "rate": 1.0}}
    assert found["mix"]["steered"]["first_token"]["p50"] > 0
    assert found["mix"]["plain"]["first_token"] is None
    batch = found["mix"]["batch"]
    assert sum(part["count"] for part in batch["decisions"].values()) == 4 * batch["answered"]
