"""`mera-client`: what is printed, exit codes, and a classification that is cut off anywhere and goes on."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from mera_client import cli
from mera_client.cli.progress import Progress

from .conftest import GENERATION, Chunks, sse, stream_of

TASK = {"name": "t", "labels": ["ham", "spam"], "probe": "3fa9", "certified": True, "alpha": 0.3}
MANIFEST = {"task": {"template": 'Message: "{text}" {{x}} desk {desk}, {text}'}}


@dataclass
class FakeMera:
    """A server whose task says spam where a text holds an x. fail: raised or answered by the n-th /classify (from 0)."""

    fail: dict[int, Any] = field(default_factory=dict)
    probe: str | None = "3fa9"
    seen: list[list[Any]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/classify":
            return self.classify(json.loads(request.content))
        if path == "/generate":
            self.bodies.append(json.loads(request.content))
            if self.bodies[-1].get("stream"):
                return Chunks(sse(stream_of(GENERATION, [" s", "pam"])))(request)
        answers: dict[str, Any] = {
            "/generate": GENERATION,
            "/tasks": {"tasks": [TASK, {**TASK, "name": "bare", "probe": None}]},
            "/probes/3fa9": {"digest": "3fa9", "manifest": MANIFEST},
            "/probes": {
                "probes": [{"digest": "3fa9", "task": "t", "status": "loaded", "certified": True, "alpha": 0.3}]
            },
            "/info": {"model": {"id": "demo"}},
            "/health/live": {},
            "/health/ready": {},
        }
        return httpx.Response(200, json=answers[path])

    def classify(self, body: dict[str, Any]) -> httpx.Response:
        number = len(self.seen)
        self.seen.append(body["inputs"])
        self.bodies.append(body)
        failure = self.fail.pop(number, None)
        if isinstance(failure, BaseException):
            raise failure
        if failure is not None:
            return failure
        usage = {"prompt_tokens": 1, "generated_tokens": 1}
        results = [self.result(value) for value in body["inputs"]]
        return httpx.Response(200, json={"task": body["task"], "probe": self.probe, "results": results, "usage": usage})

    def result(self, value: Any) -> dict[str, Any]:
        text = value if isinstance(value, str) else value["text"]
        spam = 0.75 if "x" in text else 0.25
        return {
            "label": None if text == "?" else "spam" if spam > 0.5 else "ham",
            "probabilities": {"ham": 1 - spam, "spam": spam},
            "decision": "steered" if spam > 0.5 else "not_needed",
            "reason": None,
            "predicted_error": None
            if text == "?"
            else {"before": 0.5, "after": 0.25, "layer": 1, "position": "answer"},
            "certified": spam > 0.5,
        }


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def mera() -> FakeMera:
    return FakeMera()


@pytest.fixture
def command(
    mera: FakeMera, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    monkeypatch.chdir(tmp_path)
    for name in ("MERA_URL", "MERA_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = cli.main(arguments, httpx.MockTransport(mera))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


ROWS = [{"id": i, "desk": "AB"[i % 2], "text": f't{"x" * (i % 3)}, "{i}"\né', "label": "ham"} for i in range(10)]
RUN = ("classify", "--task", "t", "in.csv", "-o", "out.csv", "--chunk", "3", "--attempts", "1")


def write_csv(path: str, rows: Sequence[dict[str, Any]], encoding: str = "utf-8") -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    Path(path).write_bytes(file.getvalue().encode(encoding))


def read_csv(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_file_gets_its_answers_beside_its_columns(command, mera):
    write_csv("in.csv", ROWS)
    said = command(*RUN)
    assert (said.code, said.out.splitlines()) == (
        0,
        [
            "accuracy 0.4000: 4 of 10 rows are right",
            "true \\ said  ham  spam",
            "ham            4     6",
            "spam           0     0",
        ],
    )
    assert said.err == "mera-client: 10 rows in out.csv: 6 steered, 4 not_needed; 6 certified\n"
    assert [len(chunk) for chunk in mera.seen] == [3, 3, 3, 1]
    assert [value for chunk in mera.seen for value in chunk] == [
        {"text": row["text"], "desk": row["desk"]} for row in ROWS
    ]
    found = read_csv("out.csv")
    assert [{name: row[name] for name in ROWS[0]} for row in found] == [{**row, "id": str(row["id"])} for row in ROWS]
    assert list(found[0])[4:] == [
        "mera_label", "p_ham", "p_spam", "predicted_error_before", "predicted_error_after", "decision", "certified",
    ]  # fmt: skip
    assert list(found[1].values())[4:] == ["spam", "0.25", "0.75", "0.5", "0.25", "steered", "true"]
    assert list(found[0].values())[4:] == ["ham", "0.75", "0.25", "0.5", "0.25", "not_needed", "false"]
    assert not Path("out.csv.part").exists()
    assert {name: value for name, value in mera.bodies[0].items() if name != "inputs"} == {"task": "t"}


def test_accuracy_and_confusion_where_the_file_has_the_true_label(command):
    """Answers without a label have a column of their own, rows without a label of the task are counted apart."""
    rows = [("a", "ham"), ("x", "ham"), ("x", "spam"), ("?", "spam"), ("x", "eggs"), ("a", "")]
    write_csv("in.csv", [{"text": text, "desk": "A", "truth": truth} for text, truth in rows])
    said = command(*RUN, "--label", "truth")
    assert said.out.splitlines() == [
        "accuracy 0.5000: 2 of 4 rows are right; 2 more hold none of the task's labels",
        "true \\ said  ham  spam  (none)",
        "ham            1     1       0",
        "spam           0     1       1",
    ]
    assert command(*RUN).out == ""  # no column `label`, and none was named
    write_csv("in.csv", [{"text": text, "desk": "A", "truth": str(i)} for text, i in (("a", 0), ("x", 0), ("x", 1))])
    assert command(*RUN, "--label", "truth").out.splitlines()[0] == "accuracy 0.6667: 2 of 3 rows are right"
    said = command(*RUN, "--label", "desk")
    assert (said.code, said.out) == (0, "")
    assert "--label desk: holds none of the task's labels (ham, spam)" in said.err
    said = command(*RUN, "--label", "absent")
    assert (said.code, said.out) == (2, "")
    assert "--label absent: in.csv has no such column; there are text, desk, truth" in said.err


def test_options_of_every_command_may_stand_in_front_of_it_or_behind(monkeypatch):
    monkeypatch.delenv("MERA_URL", raising=False)

    def options(*arguments: str) -> tuple[str, float, int]:
        found = cli.parser().parse_args(arguments)
        return found.url, found.timeout, found.attempts

    assert options("health") == ("http://127.0.0.1:8000", 60.0, 4)
    assert options("--url", "http://a", "health") == options("health", "--url", "http://a") == ("http://a", 60.0, 4)
    assert options("--url", "http://a", "--attempts", "1", "health", "--timeout", "3") == ("http://a", 3.0, 1)
    assert options("--url", "http://a", "health", "--url", "http://b")[0] == "http://b"


def test_jsonl_keeps_what_json_holds(command, mera):
    rows = [{"text": "x\u2028y", "desk": "A", "n": 1, "more": [1, {"a": None}]}, {"text": "?", "desk": "B"}]
    Path("in.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows), encoding="utf-8")
    assert command("classify", "--task", "t", "in.jsonl", "-o", "out.jsonl").code == 0
    found = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    answers = {"p_ham": 0.25, "p_spam": 0.75, "predicted_error_before": 0.5, "predicted_error_after": 0.25}
    assert found[0] == {**rows[0], "label": "spam", **answers, "decision": "steered", "certified": True}
    assert (found[1]["label"], found[1]["predicted_error_before"], "n" in found[1]) == (None, None, False)
    assert command("classify", "--task", "t", "in.jsonl", "-o", "out.csv").code == 0
    first, second = read_csv("out.csv")
    assert (first["more"], first["n"], first["text"]) == ('[1, {"a": null}]', "1", "x\u2028y")
    assert (second["more"], second["label"], second["p_ham"]) == ("", "", "0.75")


def test_a_byte_order_mark_is_no_part_of_a_name(command):
    write_csv("in.csv", ROWS, "utf-8-sig")
    assert command(*RUN).code == 0
    assert next(iter(read_csv("out.csv")[0])) == "id"


@pytest.mark.parametrize(
    ("task", "columns", "expected"),
    [
        ("t", ["body"], "x"),
        ("t", ["body", "id"], {"body": "x", "id": "1"}),
        ("t", ["text=body"], {"text": "x"}),
        ("t", ["text=body", "desk=id"], {"text": "x", "desk": "1"}),
        ("bare", [], {"id": "1", "body": "x"}),  # no artifact tells the template's fields
    ],
)
def test_columns(command, mera, task, columns, expected):
    write_csv("in.csv", [{"id": 1, "body": "x"}])
    mera.result = lambda _: FakeMera.result(mera, "x")
    options = [word for column in columns for word in ("--column", column)]
    assert command("classify", "--task", task, "in.csv", "-o", "out.csv", *options).code == 0
    assert mera.seen == [[expected]]


def test_steering_goes_with_every_chunk(command, mera):
    write_csv("in.csv", ROWS)
    assert command(*RUN, "--method", "mera", "--alpha", "0.2", "--probe", "3fa9").code == 0
    assert [body["steering"] for body in mera.bodies] == [{"probe": "3fa9", "method": "mera", "alpha": 0.2}] * 4


def error(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": code, "message": f"because of {code}"}})


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (error(422, "invalid_input"), 2, "because of invalid_input; in rows 7 to 9"),
        (error(413, "too_large"), 2, "because of too_large"),
        (error(503, "engine_failed"), 1, "because of engine_failed"),
        (error(429, "overloaded"), 1, "because of overloaded"),
        (httpx.Response(502, text="<html>"), 1, "check base_url"),
        (httpx.ReadError("reset"), 1, "reset"),
        (httpx.ReadTimeout("slow"), 1, "longer timeout"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=str,
)
def test_what_was_answered_is_kept_and_never_asked_again(command, mera, failure, code, words):
    write_csv("in.csv", ROWS)
    assert command(*RUN).code == 0
    whole = Path("out.csv").read_bytes()
    Path("out.csv").unlink()
    mera.seen.clear()
    mera.fail[2] = failure
    said = command(*RUN)
    assert (said.code, said.out, said.err.count("\n")) == (code, "", 1)
    assert words in said.err
    assert "6 of 10 rows are kept in out.csv.part; the same command goes on behind them" in said.err
    assert not Path("out.csv").exists()
    mera.seen.clear()
    said = command(*RUN)
    assert (said.code, [len(chunk) for chunk in mera.seen]) == (0, [3, 1])
    assert said.err.startswith("mera-client: 6 of 10 rows are answered in out.csv.part; going on")
    assert Path("out.csv").read_bytes() == whole
    assert not Path("out.csv.part").exists()


def test_a_journal_cut_at_any_byte_loses_one_chunk_at_most(command, mera):
    write_csv("in.csv", ROWS)
    assert command(*RUN).code == 0
    whole = Path("out.csv").read_bytes()
    mera.seen.clear()
    mera.fail[3] = KeyboardInterrupt()
    assert command(*RUN).code == 130
    part = Path("out.csv.part").read_bytes()
    lines = [i for i, byte in enumerate(part) if byte == ord("\n")]
    assert len(lines) == 4
    for cut in {*range(0, len(part), 97), *lines, *(i + 1 for i in lines)}:
        Path("out.csv.part").write_bytes(part[:cut])
        mera.seen.clear()
        assert command(*RUN).code == 0
        done = max(0, part[:cut].count(b"\n") - 1)
        assert sum(map(len, mera.seen)) == 10 - 3 * done
        assert Path("out.csv").read_bytes() == whole


def test_what_was_cut_off_is_gone_from_the_journal(command, mera):
    write_csv("in.csv", ROWS)
    mera.fail[1] = KeyboardInterrupt()
    assert command(*RUN).code == 130
    part = Path("out.csv.part")
    part.write_bytes(part.read_bytes() + b"{" * 9999)
    mera.fail[len(mera.seen) + 1] = KeyboardInterrupt()
    assert command(*RUN).code == 130
    assert [len(json.loads(line).get("results", ())) for line in part.read_bytes().splitlines()] == [0, 3, 3]
    assert command(*RUN).code == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda mera: write_csv("in.csv", ROWS[::-1]),
        lambda mera: ("--method", "none"),
        lambda mera: ("--column", "text"),
        lambda mera: setattr(mera, "probe", "77"),
        lambda mera: Path("out.csv.part").write_text("{}\n"),
        lambda mera: Path("out.csv.part").write_bytes(Path("out.csv.part").read_bytes().replace(b'"label"', b'"lab"')),
        lambda mera: Path("out.csv.part").write_bytes(Path("out.csv.part").read_bytes() + b"\xff\n"),
    ],
    ids=["input", "steering", "column", "artifact", "another file", "missing field", "bytes"],
)
def test_answers_to_something_else_are_not_mixed_in(command, mera, change):
    write_csv("in.csv", ROWS)
    mera.fail[1] = KeyboardInterrupt()
    assert command(*RUN).code == 130
    more = change(mera) or ()
    more = more if isinstance(more, tuple) else ()
    said = command(*RUN, *more)
    assert (said.code, said.err.count("\n")) == (2, 2 if "artifact" in said.err else 1)
    assert "--fresh" in said.err
    assert not Path("out.csv").exists()
    assert command(*RUN, *more, "--fresh").code == 0
    assert len(read_csv("out.csv")) == 10


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.csv", b"", "line 1"),
        ("in.csv", b"text,desk\n", "no rows"),
        ("in.csv", b"text,text\na,b\n", "line 1"),
        ("in.csv", b"text,desk\na,b\nc\n", "line 3: 1 cells under 2 columns"),
        ("in.csv", b"text,desk\na,b\nc,d,e\n", "line 3: 3 cells under 2 columns"),
        ("in.csv", b'text,desk\n"a"b,c\n', "line 2"),
        ("in.csv", b"text,desk\n\xff,b\n", "not UTF-8"),
        ("in.csv", b"text\na\n", "no column desk; there are text; give --column"),
        ("in.jsonl", b'{"text": "a", "desk": "b"}\n[1]\n', "line 2: not a JSON object"),
        ("in.jsonl", b'{"text": "a", "desk": "b"}\n{"text"\n', "line 2: not a JSON object"),
        ("in.jsonl", b"", "no rows"),
        ("in.txt", b"hello", "neither .csv nor .jsonl"),
        ("in.csv", b"text,desk,label,mera_label\na,b,c,d\n", "mera_label is needed"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(command, mera, name, content, words):
    Path(name).write_bytes(content)
    said = command("classify", "--task", "t", name, "-o", "out.csv")
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert words in said.err
    assert (mera.seen, Path("out.csv").exists()) == ([], False)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("generate",),
        ("generate", "hello", "--field", "a=b"),
        ("generate", "--field", "a"),
        ("generate", "hello", "--max-new-tokens", "many"),
        ("generate", "hello", "--unknown"),
        ("generate", "hello", "--method", "magic"),
        ("generate", "hello", "--timeout", "0"),
        ("generate", "hello", "--url", "http://mera.test:port"),
        ("classify", "in.csv", "--task", "t"),
        ("classify", "in.csv", "-o", "out.csv"),
        ("classify", "missing.csv", "--task", "t", "-o", "out.csv"),
        ("classify", "in.csv", "--task", "other", "-o", "out.csv"),
        ("classify", "in.csv", "--task", "t", "-o", "out.xlsx"),
        ("classify", "in.csv", "--task", "t", "-o", "in.csv"),
        ("classify", "in.csv", "--task", "t", "-o", "no/such/folder/out.csv"),
        ("classify", "in.csv", "--task", "t", "-o", "out.csv", "--chunk", "0"),
        ("classify", "in.csv", "--task", "t", "-o", "out.csv", "--chunk", "257"),
        ("classify", "in.csv", "--task", "t", "-o", "out.csv", "--column", "nope"),
        ("classify", "in.csv", "--task", "t", "-o", "out.csv", "--column", "text=nope", "--column", "desk"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_two_and_one_line(command, arguments):
    write_csv("in.csv", ROWS)
    said = command(*arguments)
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith("mera-client: ")
    assert "Traceback" not in said.err


def test_generate_prints_the_text_and_says_what_was_done(command, mera):
    options = ("--max-new-tokens", "4", "--temperature", "0.5", "--top-p", "0.9", "--top-k", "3", "--seed", "1")
    said = command("generate", "hello", "--task", "t", "--alpha", "0.2", "--stop", "a", "--stop", "b", *options)
    assert (said.code, said.out) == (0, " spam\n")
    assert said.err == "mera-client: steered, predicted error 0.710 → 0.310, certified\n"
    parameters = {"max_new_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 1, "stop": ["a", "b"]}
    steering = {"task": "t", "alpha": 0.2}
    assert mera.bodies == [{"inputs": "hello", "parameters": parameters, "details": "summary", "steering": steering}]


def test_generate_takes_fields_or_standard_input(command, mera, monkeypatch):
    assert command("generate", "--field", "text=a=b", "--field", "desk=").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    assert command("generate", "-").code == 0
    assert [body["inputs"] for body in mera.bodies] == [{"text": "a=b", "desk": ""}, "from a pipe\n"]


def test_a_stream_is_printed_as_it_comes(command):
    said = command("generate", "hello", "--stream")
    assert (said.code, said.out) == (0, " spam\n")
    assert "steered" in said.err
    events = [json.loads(line) for line in command("generate", "hello", "--stream", "--json").out.splitlines()]
    assert [event["token"]["text"] for event in events] == [" s", "pam"]
    assert events[-1]["mera"]["decision"] == "steered"


def test_json_is_the_whole_answer_and_nothing_else(command):
    said = command("generate", "hello", "--json")
    assert (json.loads(said.out)["mera"]["alpha"], said.err) == (0.31, "")
    assert json.loads(command("probes", "--json").out)[0]["digest"] == "3fa9"
    assert json.loads(command("health", "--json").out) == {"live": True, "ready": True}


def test_probes_and_health(command):
    assert command("probes").out == "3fa9  t  loaded  certified  -  alpha 0.3\n"
    assert (command("health").code, command("health").out) == (0, "ready\n")


@pytest.mark.parametrize(
    ("live", "text"), [(httpx.Response(200, json={}), "live, not ready\n"), (httpx.ConnectError("x"), "no answer\n")]
)
def test_health_of_a_server_that_is_not_ready_is_one(capsys, live, text):
    def server(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health/ready":
            return error(503, "not_ready")
        if isinstance(live, Exception):
            raise live
        return live

    assert cli.main(["health"], httpx.MockTransport(server)) == 1
    assert capsys.readouterr().out == text


def test_address_and_key_come_from_the_environment(command, mera, monkeypatch):
    monkeypatch.setenv("MERA_URL", "http://elsewhere.test:9")
    monkeypatch.setenv("MERA_API_KEY", "sesame")
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(401, json={"error": {"code": "unauthorized", "message": "no"}})

    assert cli.main(["probes"], httpx.MockTransport(server)) == 2
    assert (seen[0].url, seen[0].headers["authorization"]) == ("http://elsewhere.test:9/probes", "Bearer sesame")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_share_rate_and_what_is_left():
    now = [100.0]
    terminal = Terminal()
    with Progress(200, 100, to=terminal, clock=lambda: now[0]) as show:
        now[0] += 5
        show(150)
    first, second = terminal.getvalue().split("\r")[1:]
    assert first.startswith("███████████████░░░░░░░░░░░░░░░  50% 100/200 …")
    assert second.rstrip() == "██████████████████████░░░░░░░░  75% 150/200 10.0 rows/s, 5 s left\x1b[K"


def test_the_bar_is_silent_where_nobody_watches():
    stream = io.StringIO()
    with Progress(2, to=stream) as show:
        show(2)
    assert stream.getvalue() == ""


def test_the_script_is_declared_and_runs(root):
    declared = tomllib.loads((root / "clients/python/pyproject.toml").read_text())["project"]
    assert declared["scripts"] == {"mera-client": "mera_client.cli:main"}
    assert [name.partition(">")[0] for name in declared["dependencies"]] == ["httpx"]
    said = subprocess.run(
        [sys.executable, "-m", "mera_client.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("mera-client ")


def test_the_client_needs_httpx_alone():
    """In a process of its own: nothing of ours, and no third-party module that httpx does not bring."""
    code = (
        "import sys, httpx, idna, certifi, anyio._backends._asyncio; before = {n.partition('.')[0] for n in sys.modules}\n"
        "import mera_client, mera_client.cli, mera_client.load\n"
        "new = {n.partition('.')[0] for n in sys.modules} - before - set(sys.stdlib_module_names)\n"
        "print(sorted(new))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "['mera_client']\n"
