"""Ten times what the server can do: who is let in is served almost as usual, all others are told at once, and it is over when it is over.

A real `mera serve` with its default sizes. Its capacity is measured by a closed loop over as many connections as its batch has
places; then requests of the same kind come at ten times that rate, whatever becomes of them. Answers differ in length, as answers
do: the places of a batch of equals become free all at once, and who waits then waits for a whole answer.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import EngineConfig

Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]
WORDS = 2000
SHORTEST, LONGEST, LONE = 6, 18, 12  # tokens of an answer; of that to a request alone


def request_of(tokens: int, seed: int = 0) -> bytes:
    """A request as it goes over the wire: what is made beforehand costs nothing while it is measured."""
    prompt = " ".join(f"w{word}" for word in random.Random(seed).choices(range(WORDS), k=24))
    body = json.dumps({"inputs": prompt, "parameters": {"max_new_tokens": tokens}}).encode()
    return b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 M random weights that never end an answer: a place in the batch is worth much more than a refusal costs."""
    folder = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Answer:
    """status, headers in small letters, body; seconds from the request's first byte to the answer's last."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


class Load:
    """Requests over kept connections, each used in its turn. Little code between the clock and the socket."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        lengths = random.Random(0)
        self._next = itertools.cycle([request_of(lengths.randint(SHORTEST, LONGEST), seed) for seed in range(997)])

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    async def ask(self, raw: bytes | None = None) -> Answer:
        while self._idle and (self._idle[0][0].at_eof() or self._idle[0][1].is_closing()):
            self._idle.popleft()[1].close()
        start = time.perf_counter()
        reader, writer = self._idle.popleft() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(next(self._next) if raw is None else raw)
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        seconds = time.perf_counter() - start
        self._idle.append((reader, writer))
        return Answer(int(first.split()[1]), headers, body, seconds)

    async def closed(self, connections: int, seconds: float) -> tuple[list[Answer], float]:
        """The answers of callers who ask again as soon as they are answered; answers per second, without the first and last ones."""
        found: list[tuple[float, Answer]] = []
        end = time.perf_counter() + seconds

        async def caller() -> None:
            while time.perf_counter() < end:
                answer = await self.ask()
                found.append((time.perf_counter(), answer))

        await asyncio.gather(*(caller() for _ in range(connections)))
        times = [at for at, _ in found if end - 0.7 * seconds < at < end]
        return [answer for _, answer in found], (len(times) - 1) / (times[-1] - times[0])

    async def opened(self, rate: float, seconds: float) -> list[Answer]:
        """The answers to requests that come `rate` times a second."""
        start, asked = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            wait = start + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(self.ask()))
        self.flood_ended = time.perf_counter()
        assert self.flood_ended - start < 1.1 * seconds, "the callers were too slow to be a flood"
        return list(await asyncio.gather(*asked))

    async def metrics(self) -> dict[str, float]:
        text = (await self.ask(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).body.decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    async def until_ready(self) -> None:
        for _ in range(600):
            if (await self.ask(b"GET /health/ready HTTP/1.1\r\nHost: x\r\n\r\n")).status == 200:
                return
            await asyncio.sleep(0.05)
        raise TimeoutError("not ready")


def p95(answers: list[Answer]) -> float:
    ordered = sorted(answer.seconds for answer in answers)
    return ordered[int(0.95 * len(ordered))]


def counted(metrics: dict[str, float]) -> Counter[str]:
    """Answers by status, decisions and generated tokens: what load and server must agree on."""
    found: Counter[str] = Counter()
    for name, value in metrics.items():
        if name.startswith("mera_requests_total{"):
            found[name.split('status="')[1][:3]] += round(value)
        elif name.startswith("mera_decisions_total{"):
            found["decisions"] += round(value)
    found["generated"] = round(metrics['mera_tokens_total{kind="generated"}'])
    return found


def of(answers: list[Answer]) -> Counter[str]:
    found = Counter(str(answer.status) for answer in answers)
    served = [json.loads(answer.body) for answer in answers if answer.status == 200]
    found["decisions"] = len(served)
    found["generated"] = sum(body["details"]["generated_tokens"] for body in served)
    return found


@pytest.fixture
def port(model: Path, mera_serve: Serve, tmp_path: Path) -> Iterator[int]:
    options = ("--port", "0", "--model", str(model), "--store", str(tmp_path))
    with mera_serve(*options, OMP_NUM_THREADS="1") as (process, address):
        assert process.stderr is not None
        log = threading.Thread(
            target=process.stderr.read, daemon=True
        )  # a pipe that nobody reads would hold the server up
        log.start()
        yield int(address.rpartition(":")[2])
        process.kill()
        log.join(20)


async def recovered(load: Load, usual: float) -> float:
    """Seconds from the end of the flood until a request alone takes at most twice what it usually does, and nobody else is there."""
    while time.perf_counter() - load.flood_ended < 30:
        answer = await load.ask(request_of(LONE))
        now, found = time.perf_counter(), await load.metrics()
        left = found["mera_requests_running"] + found["mera_requests_waiting"]
        if answer.status == 200 and answer.seconds < 2 * usual and left == 0:
            return now - load.flood_ended
        await asyncio.sleep(0.05)
    raise TimeoutError("the server did not recover")


@pytest.mark.parametrize(
    ("seconds", "limit"),
    [
        pytest.param(2.5, 3.0, id="short"),  # beside other tests, on two cores
        pytest.param(12, 2.0, id="long", marks=pytest.mark.slow),
    ],
)
async def test_at_ten_times_its_capacity_the_server_keeps_its_latency_and_refuses_the_rest(
    port: int, seconds: float, limit: float, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Load(port) as load:
        await load.until_ready()
        usual = statistics.median([(await load.ask(request_of(LONE))).seconds for _ in range(8)])
        at_capacity, rate = await load.closed(EngineConfig.max_requests, seconds)
        before = counted(await load.metrics())
        answers = await load.opened(10 * rate, seconds)
        difference = counted(await load.metrics()) - before
        recovery = await recovered(load, usual)
    accepted = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    with capsys.disabled():
        sys.stdout.write(
            f"\ncapacity {rate:.1f}/s, p95 {p95(at_capacity):.3f} s; flood of {len(answers)}: {len(refused)} refused"
            f" (p95 {1000 * p95(refused):.0f} ms), {len(accepted)} accepted, p95 {p95(accepted):.3f} s,"
            f" ratio {p95(accepted) / p95(at_capacity):.2f}; recovered after {recovery:.2f} s; alone {usual:.3f} s\n"
        )
    assert {answer.status for answer in at_capacity} == {200}
    assert p95(accepted) <= limit * p95(at_capacity)
    assert len(accepted) >= 0.5 * rate * seconds  # it goes on serving
    assert {(one.status, json.loads(one.body)["error"]["code"]) for one in refused} == {(429, "overloaded")}
    assert all(1 <= int(one.headers["retry-after"]) <= 10 for one in refused)
    assert difference == of(answers)
    assert recovery < 5
