"""The load generator: the same draws for the same seed, loops that keep their bounds, figures that are true, and an end in any case."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from mera_client import AsyncClient, InvalidInput, load
from mera_client.load.drive import NOT_SENT, UNFINISHED, Load, Run, Sample, drive
from mera_client.load.mix import Entry, asks, read_mix
from mera_client.load.report import figures, in_words, percentile

from .conftest import GENERATION, sse, stream_of

Handler = Callable[[httpx.Request], Awaitable[httpx.Response]]
PLAIN = Entry("plain", ("a", "b", "c"))


@dataclass
class Counting:
    """Answers after `delay` seconds; knows how many requests were open at once, and their bodies."""

    delay: float = 0.0
    open: int = 0
    most: int = 0
    bodies: list[Any] = field(default_factory=list)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await asyncio.sleep(self.delay)
        finally:
            self.open -= 1
        if "task" in self.bodies[-1]:
            return httpx.Response(200, json=self.classified(len(self.bodies[-1]["inputs"])))
        if self.bodies[-1].get("stream"):
            events = sse(stream_of(GENERATION, ["a", "b", "c"]))
            return httpx.Response(200, content=events, headers={"content-type": "text/event-stream"})
        return httpx.Response(200, json=GENERATION)

    def classified(self, n: int) -> dict[str, Any]:
        decision = {"decision": "abstained", "reason": "no_probe", "predicted_error": None, "certified": False}
        results = [{"label": None, "probabilities": {}, **decision}] * n
        return {
            "task": "t", "probe": None, "results": results, "usage": {"prompt_tokens": n, "generated_tokens": n},
        }  # fmt: skip


async def driven(handler: Handler, bounds: Load, *mix: Entry) -> Run:
    async with AsyncClient("http://mera.test", transport=httpx.MockTransport(handler), retries=None) as client:
        return await drive(client, mix or (PLAIN,), bounds)


def test_draws_depend_on_the_seed_alone():
    mix = (PLAIN, Entry("heavy", ("d",), weight=3), Entry("batch", ("e", "f"), kind="classify", steering={"task": "t"}))
    first, again, other = (list(islice(asks(mix, seed), 4000)) for seed in (1, 1, 2))
    assert first == again != other
    shares = Counter(ask.entry.name for ask in first)
    assert [shares[name] / 4000 for name in ("plain", "heavy", "batch")] == pytest.approx([0.2, 0.6, 0.2], abs=0.03)
    assert {len(ask.inputs) for ask in first if ask.entry.name == "batch"} == {8}
    assert len({ask.seed for ask in first}) > 3990


async def test_a_closed_loop_keeps_its_concurrency_and_its_count():
    handler = Counting(delay=0.005)
    run = await driven(handler, Load(concurrency=4, count=30))
    assert (handler.most, handler.open, len(handler.bodies), len(run.samples)) == (4, 0, 30, 30)
    assert all(sample.error is None and 0.005 <= sample.seconds < 2 for sample in run.samples)
    assert 30 / 4 * 0.005 < run.seconds < 5


async def test_the_same_seed_asks_the_same_whatever_the_concurrency():
    found = []
    for concurrency in (1, 7):
        handler = Counting()
        await driven(handler, Load(concurrency=concurrency, count=20, seed=3))
        found.append(sorted(json.dumps(body) for body in handler.bodies))
    assert found[0] == found[1]


async def test_an_open_loop_arrives_at_its_rate_and_does_not_wait_for_answers():
    handler = Counting(delay=0.2)
    run = await driven(handler, Load(rate=400.0, count=100))
    assert handler.most > 40  # 400 a second, each open for .2 s
    assert len(handler.bodies) == 100
    assert 0.2 < run.seconds < 3


async def test_an_open_loop_leaves_out_what_exceeds_its_limit():
    handler = Counting(delay=0.02)
    run = await driven(handler, Load(rate=1000.0, count=100, in_flight=5))
    assert handler.most == 5
    errors = Counter(sample.error for sample in run.samples)
    assert errors[None] == len(handler.bodies)
    assert errors[None] + errors[NOT_SENT] == 100
    assert errors[None] > 5
    assert errors[NOT_SENT] > 30


async def test_an_open_loops_latency_counts_from_the_planned_arrival():
    """The event loop stands still for .2 s behind the first arrival: the requests that were due meanwhile have waited."""
    stalled = False

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal stalled
        if not stalled:
            stalled = True
            threading.Event().wait(0.2)
        return httpx.Response(200, json=GENERATION)

    run = await driven(handler, Load(rate=500.0, count=50))
    assert sum(sample.seconds > 0.1 for sample in run.samples) > 20


@pytest.mark.parametrize("bounds", [{"concurrency": 3}, {"rate": 300.0}], ids=str)
async def test_the_duration_ends_a_run(bounds):
    handler = Counting(delay=0.01)
    run = await driven(handler, Load(**bounds, count=10**6, duration=0.15))
    assert 0.1 < run.seconds < 2
    assert 5 < len(run.samples) < 200
    assert all(sample.error is None for sample in run.samples)


@pytest.mark.parametrize("bounds", [{"concurrency": 3}, {"rate": 50.0}], ids=str)
async def test_a_server_that_never_answers_does_not_hold_a_run(bounds):
    handler = Counting(delay=3600)
    run = await driven(handler, Load(**bounds, count=3, duration=0.1, grace=0.1))
    assert 0.15 < run.seconds < 2
    assert {sample.error for sample in run.samples} <= {UNFINISHED}
    assert handler.open == 0


async def test_cancelling_ends_a_run_and_keeps_what_was_measured():
    handler = Counting(delay=0.01)
    task = asyncio.create_task(driven(handler, Load(concurrency=2, count=10**6)))
    await asyncio.sleep(0.15)
    task.cancel()
    run = await task
    assert (run.interrupted, task.cancelling()) == (True, 0)
    answered = sum(sample.error is None for sample in run.samples)
    assert 2 < answered < 40
    assert len(run.samples) - answered <= 2


async def test_errors_are_counted_by_their_code():
    answers = [
        httpx.Response(429, json={"error": {"code": "overloaded", "message": "full"}}),
        httpx.ConnectError("refused"),
        httpx.Response(200, json=GENERATION),
    ]

    async def handler(request: httpx.Request) -> httpx.Response:
        answer = answers[len(json.loads(request.content)["inputs"]) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = await driven(handler, Load(concurrency=1, count=90), Entry("mixed", ("1", "12", "123")))
    found = figures(run, Load(concurrency=1))
    assert set(found["errors"]) == {"overloaded", "connection_failed"}
    assert sum(found["errors"].values()) + found["answered"] == 90
    assert found["messages"]["overloaded"] == "full"
    assert "overloaded, the first: full" in in_words(found)


async def test_every_kind_is_sent_and_measured():
    handler = Counting()
    prompts = ({"text": "a"},)
    options = {"max_new_tokens": 3, "temperature": 0.5}
    mix = (
        Entry("plain", prompts, options=options, steering={"task": "t", "alpha": 0.2}),
        Entry("stream", prompts, kind="stream"),
        Entry("batch", prompts, kind="classify", batch=5, steering={"task": "t", "method": "mera"}),
    )
    run = await driven(handler, Load(concurrency=1, count=40), *mix)
    bodies = {(body.get("stream", False), "task" in body): body for body in handler.bodies}
    plain, stream, batch = (bodies[key] for key in ((False, False), (True, False), (False, True)))
    assert {**plain["parameters"], "seed": 0} == {**options, "seed": 0}
    assert (plain["steering"], "steering" in stream) == ({"task": "t", "alpha": 0.2}, False)
    assert batch == {"task": "t", "inputs": [*prompts] * 5, "steering": {"method": "mera"}}
    found = figures(run, Load(concurrency=1))
    parts = found["mix"]
    n = {name: part["answered"] for name, part in parts.items()}
    assert (sum(n.values()), found["errors"]) == (40, {})
    assert found["decisions"]["abstained"]["count"] == 5 * n["batch"]
    assert found["decisions"]["steered"]["count"] == n["plain"] + n["stream"]
    assert sum(part["rate"] for part in found["decisions"].values()) == pytest.approx(1)
    tokens = n["plain"] + 3 * n["stream"] + 5 * n["batch"]
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(tokens)
    assert found["inputs_per_second"] * found["seconds"] == pytest.approx(n["plain"] + n["stream"] + 5 * n["batch"])
    assert (parts["plain"]["first_token"], parts["batch"]["first_token"]) == (None, None)
    assert 0 < parts["stream"]["first_token"]["p50"] <= parts["stream"]["latency"]["p50"]


def test_percentiles_are_those_of_the_empirical_distribution():
    draw = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 99, 100, 101, 1000):
        values = draw.exponential(size=n)
        for point in (1, 50, 90, 99, 100):
            assert percentile(list(values), point) == np.percentile(values, point, method="inverted_cdf")


def test_figures_of_a_known_run():
    samples = [Sample("a", float(i + 1), tokens=2, decisions=("steered" if i < 3 else "off",)) for i in range(10)]
    failed = [Sample("b", 99.0, error="timed_out"), Sample("b", 0.0, error=NOT_SENT)]
    found = figures(Run((*samples, *failed), 4.0, False), Load(concurrency=1))
    assert (found["requests"], found["answered"], found["not_sent"], found["errors"]) == (12, 10, 1, {"timed_out": 1})
    assert (found["requests_per_second"], found["tokens_per_second"]) == (2.5, 5.0)
    assert found["latency"] == {"p50": 5.0, "p90": 9.0, "p99": 10.0, "mean": 5.5, "max": 10.0}
    assert found["decisions"] == {"off": {"count": 7, "rate": 0.7}, "steered": {"count": 3, "rate": 0.3}}
    assert (found["mix"]["b"]["latency"], found["mix"]["b"]["decisions"]) == (None, {})
    words = in_words(found)
    for part in ("12 requests in 4.00 s", "2.5 requests/s", "p90 9000.0", "off 70.0 %, steered 30.0 %", "1 timed_out"):
        assert part in words


MIX = """
[[mix]]
name = "steered"
weight = 3
kind = "stream"
prompts = ["a", {text = "b"}]
task = "t"
layers = [1, 2]
max_new_tokens = 4
[[mix]]
file = "rows.csv"
columns = ["text=body"]
"""


def test_a_mix_is_read(tmp_path):
    (tmp_path / "mix.toml").write_text(MIX)
    (tmp_path / "rows.csv").write_text("body,label\nx,1\ny,2\n")
    first, second = read_mix(tmp_path / "mix.toml")
    assert first == Entry(
        "steered", ("a", {"text": "b"}), 3, "stream",
        options={"max_new_tokens": 4}, steering={"task": "t", "layers": [1, 2]},
    )  # fmt: skip
    assert second == Entry("entry 2", ({"text": "x"}, {"text": "y"}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"no \[\[mix\]\]"),
        ("mix = 3", r"no \[\[mix\]\]"),
        ("[[mix]", "mix.toml"),
        ('[[mix]]\nname = "a"', r"mix\.a\.prompts"),
        ("[[mix]]\nprompts = [1]", r"mix\.entry 1\.prompts"),
        ('[[mix]]\nprompts = ["a"]\nweigth = 1', r"mix\.entry 1\.weigth: unknown key"),
        ('[[mix]]\nprompts = ["a"]\nweight = 0', r"mix\.entry 1\.weight"),
        ('[[mix]]\nprompts = ["a"]\nweight = "1"', r"mix\.entry 1\.weight"),
        ('[[mix]]\nprompts = ["a"]\nkind = "chat"', r"mix\.entry 1\.kind"),
        ('[[mix]]\nprompts = ["a"]\nkind = "classify"', r"mix\.entry 1\.kind: classify needs a task"),
        ('[[mix]]\nprompts = ["a"]\ncolumns = ["b"]', r"mix\.entry 1\.columns"),
        ('[[mix]]\nfile = "missing.csv"', "missing.csv"),
    ],
)
def test_a_mix_that_is_wrong_is_named(tmp_path, text, words):
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(InvalidInput, match=words):
        read_mix(tmp_path / "mix.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--prompt", "a", "--concurrency", "0"),
        ("--prompt", "a", "--rate", "0"),
        ("--prompt", "a", "--rate", "nan"),
        ("--prompt", "a", "--rate", "5", "--concurrency", "2"),
        ("--prompt", "a", "--count", "0"),
        ("--prompt", "a", "--duration", "inf"),
        ("--prompt", "a", "--kind", "classify"),
        ("--prompt", "a", "--kind", "chat"),
        ("--prompt", "a", "--mix", "mix.toml"),
        ("--prompt", "a", "--url", "http://mera.test:port"),
        ("--mix", "missing.toml"),
        (),
    ],
    ids=" ".join,
)
def test_bad_usage_is_two_and_one_line(arguments, capsys):
    assert load.main(arguments, httpx.MockTransport(Counting())) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_last_line_is_json_and_methods_are_mixed(capsys):
    handler = Counting()
    arguments = ["--prompt", "a", "--task", "t", "--method", "none", "--method", "mera", "--count", "40"]
    assert load.main(arguments, httpx.MockTransport(handler)) == 0
    *words, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert words[0].startswith("40 requests in ")
    assert found["load"]["concurrency"] == 8
    assert set(found["mix"]) == {"none", "mera"}
    assert {body["steering"]["method"] for body in handler.bodies} == {"none", "mera"}
    assert {body["steering"]["task"] for body in handler.bodies} == {"t"}


def test_nothing_answered_is_one(capsys):
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    assert load.main(["--prompt", "a", "--count", "3"], httpx.MockTransport(refuse)) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["errors"] == {"connection_failed": 3}


def test_an_interrupt_prints_what_was_measured(capsys):
    handler = Counting(delay=0.01)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert load.main(["--prompt", "a", "--count", "1000000"], httpx.MockTransport(handler)) == 130
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["interrupted"]
    assert found["answered"] > 10
    assert found["seconds"] < 2


def test_the_example_mixes_are_read(root):
    mixes = sorted(Path(root / "clients/load").glob("*.toml"))
    assert mixes
    for path in mixes:
        assert read_mix(path)
