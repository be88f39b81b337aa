"""What HTTP costs: the server against the same engine in a process of its own, and against llama.cpp's server with a control vector.

    python benchmarks/server.py [--size 56M|tiny] [--rounds 5] [--new 32] [--prompt 57] [--threads 1]

Every process computes on `--threads` threads, so that the callers have a core left. llama.cpp's server runs where the environment
variable LLAMA_SERVER names its binary and the package gguf is installed: the same weights in float32, its vector fixed at start.
Prints Markdown and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import torch
from engine import Bench, Load, config_for, opened
from measure import Ratio, Section, compare, interleave, medians, setup
from models import make_model, make_vectors, random_prompts

from merasteer.engine import LoadedModel

RATIOS = (
    Ratio("HTTP at 32 connections ÷ engine offline", "HTTP, 32 connections", "engine offline", 0.93),
    Ratio(
        "HTTP at 16 connections ÷ llama.cpp's server with a control vector",
        "HTTP, 16 connections",
        "llama.cpp, 16 connections",
        1,
    ),
    Ratio("HTTP, details trace ÷ summary", "HTTP, 32 connections, trace", "HTTP, 32 connections", 0.95),
    Ratio("HTTP, streamed ÷ plain", "HTTP, 32 connections, streamed", "HTTP, 32 connections"),
)
REQUESTS = 64
TASK = """name = "words"
labels = ["w1", "w2"]
[variants]
w1 = ["w1"]
w2 = ["w2"]
[prompt]
template = "{text}"
"""


def text_of(prompt: Sequence[int]) -> str:
    return " ".join(f"w{token}" for token in prompt)


# --------------------------------------------------------------------------------------------------- processes


@contextmanager
def process(command: Sequence[str], ready: str, threads: int, seconds: float = 120) -> Iterator[None]:
    """A server while it runs, once `ready` answers 200."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            end = time.monotonic() + seconds
            while not _answers(ready):
                if running.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            running.terminate()
            running.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def offline(size: str, load: Load, threads: int) -> Iterator[Callable[[], float]]:
    """The same engine without HTTP, in a process of its own; the value measures once."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_offline, args=(there, size, load, threads), daemon=True)
    child.start()
    try:
        here.recv()

        def measure() -> float:
            here.send(True)
            return float(here.recv())

        yield measure
    finally:
        here.send(False)
        child.join(30)


def _offline(pipe: Connection, size: str, load: Load, threads: int) -> None:
    torch.set_num_threads(threads)
    loaded = make_model(size)
    with opened(loaded, config_for(64 * (load.prompt + load.new), 32)) as bench:
        Bench.run(bench, Load(2, load.prompt, 2))
        pipe.send(True)
        while pipe.recv():
            pipe.send(bench.run(load))


# ----------------------------------------------------------------------------------------------------- callers


def rate(post: Callable[[httpx.AsyncClient, int], Any], connections: int, requests: int = REQUESTS) -> float:
    """Generated tokens per second of a closed loop: each connection sends its next request when it has its answer."""

    async def run() -> float:
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        async with httpx.AsyncClient(limits=limits, timeout=120) as client:
            numbers = iter(range(requests))
            start = time.perf_counter()

            async def caller() -> int:
                return sum([await post(client, number) for number in numbers])

            tokens = sum(await asyncio.gather(*(caller() for _ in range(connections))))
            return tokens / (time.perf_counter() - start)

    return asyncio.run(run())


def mera_call(
    url: str, prompts: Sequence[Sequence[int]], new: int, details: str = "summary", *, stream: bool = False
) -> Any:
    async def post(client: httpx.AsyncClient, number: int) -> int:
        body: dict[str, Any] = {
            "inputs": text_of(prompts[number % len(prompts)]),
            "parameters": {"max_new_tokens": new},
            "steering": {"task": "words", "method": "mera", "alpha": 0.5},
            "details": details,
        }
        if not stream:
            answer = await client.post(f"{url}/generate", json=body)
            answer.raise_for_status()
            return int(answer.json()["details"]["generated_tokens"])
        async with client.stream("POST", f"{url}/generate", json={**body, "stream": True}) as events:
            events.raise_for_status()
            return sum([1 async for line in events.aiter_lines() if line.startswith("data:")])

    return post


def llama_call(url: str, prompts: Sequence[Sequence[int]], new: int) -> Any:
    async def post(client: httpx.AsyncClient, number: int) -> int:
        body = {
            "prompt": list(prompts[number % len(prompts)]),
            "n_predict": new,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = await client.post(f"{url}/completion", json=body)
        answer.raise_for_status()
        return int(answer.json()["tokens_predicted"])

    return post


# ----------------------------------------------------------------------------------------------------- servers


@contextmanager
def mera_server(loaded: LoadedModel, folder: Path, threads: int) -> Iterator[str]:
    """Our server on these weights with a random artifact; the value is its address."""
    model, task = folder / "model", folder / "words.toml"
    loaded.model.save_pretrained(model)
    loaded.tokenizer.save_pretrained(model)
    task.write_text(TASK, encoding="utf-8")
    mera = [sys.executable, "-m", "mera_server"]
    store = ["--store", str(folder / "store")]
    subprocess.run(
        [*mera, "probes", "plant", "--model", str(model), "--task", str(task), *store], check=True, capture_output=True
    )
    port = free_port()
    command = [
        *mera,
        "serve",
        "--model",
        str(model),
        *store,
        "--port",
        str(port),
        "--log-level",
        "warning",
        "--share-prefixes",
        "false",
    ]
    url = f"http://127.0.0.1:{port}"
    with process(command, f"{url}/health/ready", threads):
        yield url


@contextmanager
def llama_server(loaded: LoadedModel, folder: Path, threads: int, context: int) -> Iterator[str | None]:
    """llama.cpp's server on the same weights, or None where it is not there."""
    binary = os.environ.get("LLAMA_SERVER")
    if not binary or importlib.util.find_spec("gguf") is None:
        yield None
        return
    model, vector = folder / "model.gguf", folder / "vector.gguf"
    write_gguf(loaded, model, vector)
    port = free_port()
    command = [
        binary, "-m", str(model), "--control-vector", str(vector), "-t", str(threads), "-tb", str(threads), "-np", "16",
        "-c", str(context), "--host", "127.0.0.1", "--port", str(port), "--no-warmup",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with process(command, f"{url}/health", threads):
        yield url


def write_gguf(loaded: LoadedModel, path: Path, vector: Path) -> None:
    """The weights as llama.cpp reads them, float32, and one direction per layer behind the first."""
    import gguf

    config, state = loaded.model.config, loaded.model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(loaded.width // config.num_attention_heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}" for i in range(loaded.vocab)])
    writer.add_token_scores([0.0] * loaded.vocab)
    writer.add_token_types([gguf.TokenType.NORMAL] * loaded.vocab)
    for name, tensor in state.items():
        writer.add_tensor(_gguf_name(name), _rotated(name, tensor, config).float().numpy())
    _finish(writer)
    steer = gguf.GGUFWriter(vector, "controlvector")
    steer.add_string("controlvector.model_hint", "llama")
    steer.add_uint32("controlvector.layer_count", config.num_hidden_layers)
    for layer, direction in enumerate(make_vectors(loaded, 0).weight):
        if layer:
            steer.add_tensor(f"direction.{layer}", direction.float().numpy())
    _finish(steer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    block = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    return (f"blk.{block[1]}.{_NAMES[block[2]]}" if block else _NAMES[stem]) + ".weight"


def _rotated(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """llama.cpp turns neighbouring pairs of a head where the library turns its halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows, width = tensor.shape
    return tensor.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width).contiguous()


# ------------------------------------------------------------------------------------------------------- bench


def server_section(size: str, prompt: int, new: int, rounds: int, threads: int) -> Section:
    """Every ratio of the server on one model."""
    loaded = make_model(size)
    prompts = random_prompts(loaded, REQUESTS, prompt)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        alone = stack.enter_context(offline(size, Load(REQUESTS, prompt, new), threads))
        ours = stack.enter_context(mera_server(loaded, folder, threads))
        theirs = stack.enter_context(llama_server(loaded, folder, threads, 16 * (prompt + new + 16)))
        plain = mera_call(ours, prompts, new)
        cases: dict[str, Callable[[], float]] = {
            "engine offline": alone,
            "HTTP, 32 connections": partial(rate, plain, 32),
            "HTTP, 32 connections, trace": partial(rate, mera_call(ours, prompts, new, "trace"), 32),
            "HTTP, 32 connections, streamed": partial(rate, mera_call(ours, prompts, new, stream=True), 32),
            "HTTP, 16 connections": partial(rate, plain, 16),
        }
        if theirs is not None:
            cases["llama.cpp, 16 connections"] = partial(rate, llama_call(theirs, prompts, new), 16)
        for case in cases.values():
            case()  # warm
        rates = interleave(cases, rounds)
    section = Section(
        f"Server, {loaded.id}, float32, {threads} thread(s) per process",
        rates=medians(rates),
        found=compare(rates, RATIOS),
    )
    section.notes.append(f"{REQUESTS} requests of {prompt} + {new} tokens, one policy, closed loop; {rounds} rounds")
    if theirs is None:
        section.notes.append("llama.cpp was not measured: set LLAMA_SERVER to its server's binary and install gguf")
    return section


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="56M")
    for name, default in (("rounds", 5), ("new", 32), ("prompt", 57), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    section = server_section(given.size, given.prompt, given.new, given.rounds, given.threads)
    print(section.markdown())
    print(json.dumps({"setup": setup(**vars(given)), **asdict(section)}))


if __name__ == "__main__":
    main()
