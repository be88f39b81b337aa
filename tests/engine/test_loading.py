"""Loading: where a model goes and in which dtype, what a hub demands, and what is refused before weights are read."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file

from merasteer.engine import Engine, load_model
from merasteer.errors import InvalidInput, UnsupportedModel
from merasteer.types import GenerationRequest, Policy

COMMIT, TOKEN = "c" * 40, "hf_right"


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory) -> Path:
    """The tiny model and its tokenizer on disk."""
    path = tmp_path_factory.mktemp("saved") / "tiny"
    llama.model.save_pretrained(path)
    llama.tokenizer.save_pretrained(path)
    return path


# ------------------------------------------------------------------------------------------------- where, and in which dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_dtypes_answer_and_are_steered(folder, make_vectors, dtype):
    loaded = load_model(folder, dtype=dtype, device="cpu")
    assert (loaded.dtype, loaded.model.dtype) == (dtype, getattr(torch, dtype))
    prompt = tuple(range(5, 25))
    with torch.no_grad():
        expected = loaded.model(torch.tensor([prompt])).logits[0, -1]
    with Engine(loaded) as engine:
        engine.register("v", make_vectors(3, "residual"))
        plain = engine.submit(GenerationRequest(prompt, 2)).result(60)
        steered = engine.submit(GenerationRequest(prompt, 2, Policy("v", 0.2))).result(60)
    assert (
        expected[plain.tokens[0]] >= expected.max() - 0.05 * expected.std()
    )  # the same token, or one that rounding puts level
    assert steered.predicted_error.before > 0.2
    assert steered.predicted_error.after == pytest.approx(0.2, abs=0.01)
    assert steered.steering.steered_cells > 0


def test_auto_is_float32_on_a_cpu(folder, tmp_path, llama):
    llama.model.__class__(llama.model.config).to(torch.bfloat16).save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").dtype == "float32"
    assert load_model(tmp_path, device_map="cpu").dtype == "float32"
    assert load_model(tmp_path, device_map="cpu", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential", "cpu", {"": "cpu"}])
def test_a_map_that_keeps_the_model_whole_serves(folder, llama, monkeypatch, device_map):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda _: {"cpu": 2**34})
    loaded = load_model(folder, device_map=device_map)
    assert loaded.device == "cpu"
    with Engine(llama) as engine:
        expected = engine.submit(GenerationRequest((1, 2, 3), 2)).result(60).tokens
    with Engine(loaded) as engine:
        assert engine.submit(GenerationRequest((1, 2, 3), 2)).result(60).tokens == expected


def test_a_map_that_accelerate_must_offload_is_refused(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("transformers.integrations.accelerate.accelerate_max_memory", lambda _: {"cpu": 300_000})
    with pytest.raises(
        InvalidInput, match=r"'auto' puts the model on .*offloaded.*; use a larger GPU or a smaller dtype"
    ):
        load_model(folder, device_map="auto")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"device_map": {"model": "cpu", "lm_head": "disk"}}, ["on cpu and disk", "one device", "larger GPU"]),
        ({"device_map": {"model": 0, "lm_head": 1}}, ["on cuda:0 and cuda:1", "one device", "larger GPU"]),
        ({"device_map": {"": "disk"}}, ["on disk", "one device"]),
        ({"device_map": "auto", "device": "cpu"}, ["device_map: 'auto'", "beside device 'cpu'", "one of the two"]),
        ({"device_map": "both"}, ["device_map: 'both'", "auto, balanced"]),
        ({"device_map": "meta"}, ["device_map: 'meta'", "auto, balanced"]),
        ({"device_map": "cuda:99"}, ["device_map: 'cuda:99'", "CUDA devices"]),
        ({"device": "gpu"}, ["device: 'gpu'", "auto, cpu or cuda"]),
        ({"device": "cuda:99"}, ["device: 'cuda:99'", "CUDA devices"]),
        ({"dtype": "int8"}, ["dtype: 'int8'", "auto, float32"]),
    ],
)
def test_mistakes_are_told_before_anything_is_read(given, parts):
    with pytest.raises(InvalidInput) as caught:
        load_model("owner/never_asked_for", **given)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_a_model_that_is_too_large_is_told_what_to_do(folder, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(InvalidInput, match=r"does not fit into the memory of cpu; use a larger GPU or a smaller dtype"):
        load_model(folder, device="cpu")


# ------------------------------------------------------------------------------------------------------- what is not served


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (transformers.StableLmConfig(), "StableLmForCausalLM"),
        (transformers.BertConfig(), "BertLMHeadModel"),
        (transformers.T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration"),
        (transformers.Gemma3Config(), "Gemma3ForConditionalGeneration"),
    ],
    ids=["the library cannot batch it", "an encoder", "an encoder with a decoder", "images"],
)
def test_other_architectures_are_refused_before_weights_are_read(tmp_path, config, architecture):
    config.save_pretrained(tmp_path)  # alone: nothing else can have been read
    with pytest.raises(
        UnsupportedModel, match=rf"architecture {architecture} is not in the hook table; use one of GPT2"
    ):
        load_model(tmp_path)


def test_remote_code_is_never_run_nor_asked_about(tmp_path):
    config = {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.Theirs"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "theirs.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_model(tmp_path)


# ------------------------------------------------------------------------------------------------------------------- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """Enough of a hub: a repository that is open, one that is gated as the real hub does it, and some that fail."""

    files: dict[str, bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token == "hf_broken":
            return self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if "absent" in path:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"})
        if "acme/branchless" in path:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if "acme/down" in path:
            return self.answer(418)
        if "/resolve/" not in path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            about = {"id": "acme/x", "sha": COMMIT, "siblings": [], "tags": [], "private": False}
            return self.answer(
                200, body=json.dumps(tree if "/tree/" in path else about).encode(), kind="application/json"
            )
        if "acme/gated" in path and token != TOKEN:
            return self.answer(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        data = self.files[path.rsplit("/", 1)[1]]
        return self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data)

    def answer(
        self, status: int, more: dict[str, str] | None = None, body: bytes = b"", kind: str = "text/plain"
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def endpoint(folder) -> Iterator[str]:
    """The address of the hub."""
    serving = type("Serving", (Hub,), {"files": {path.name: path.read_bytes() for path in folder.iterdir()}})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serving) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.slow  # it imports everything again: the library reads HF_ENDPOINT and HF_HOME when it is imported
def test_the_token_of_the_environment_opens_a_gated_model(endpoint, tmp_path):
    code = """
import os, sys
from merasteer.engine import load_model
from merasteer.errors import InvalidInput
for token in (None, "hf_other", "hf_right"):
    os.environ.pop("HF_TOKEN", None) if token is None else os.environ.update(HF_TOKEN=token)
    try:
        loaded = load_model("acme/gated", device="cpu")
        print(loaded.id, loaded.architecture, sorted(path.name for path in loaded.source.glob("*.safetensors")))
    except InvalidInput as error:
        print(error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    without, other, right = ran.stdout.splitlines()
    licence = f"accept its licence at {endpoint}/acme/gated"
    assert without == (
        "model: 'acme/gated' cannot be loaded (it is gated and no token was sent); "
        f"{licence} and set HF_TOKEN to a token of that account"
    )
    assert other == (
        "model: 'acme/gated' cannot be loaded (it is gated and the token that was sent has no access); "
        f"{licence} or set HF_TOKEN to a token of that account"
    )
    assert right == "acme/gated LlamaForCausalLM ['model.safetensors']"


@pytest.fixture
def hub(endpoint, tmp_path, monkeypatch) -> str:
    """The library of this process, turned to the hub, with an empty cache and no token."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return endpoint


@pytest.mark.parametrize(
    ("name", "token", "why", "remedy"),
    [
        ("acme/gated", None, "no token was sent", "set HF_TOKEN"),
        ("acme/gated", "hf_other", "has no access", "accept its licence at"),
        ("acme/open", "hf_broken", "refused access, status 401", "set HF_TOKEN to a valid token"),
        ("acme/absent", None, "no such folder and no such repository", "check the name"),
        ("absent", None, "no such folder and no such repository", "check the name"),
        ("acme/branchless", None, "no revision 'main'", "give its folder"),
        ("acme/down", None, "status 418", "try again later"),
        ("acme/..bad", None, "no hub id", "owner/name"),
    ],
)
def test_what_a_hub_refuses_is_one_line_with_a_remedy(hub, monkeypatch, name, token, why, remedy):
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    message = refused(name)
    assert why in message.split("; ")[0], message
    assert remedy in message.split("; ", 1)[1], message


def test_without_a_network_the_cache_serves_and_its_lack_is_told(hub, monkeypatch):
    assert load_model("acme/open", device="cpu").id == "acme/open"
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert load_model("acme/open", device="cpu").id == "acme/open"
    assert "http://127.0.0.1:9 cannot be reached" in refused("acme/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set); unset HF_HUB_OFFLINE" in refused("acme/other")


def test_any_other_failure_is_one_line_too(monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device\nin the cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert "(No space left on device); " in refused("acme/open")


def refused(name: str) -> str:
    """The message of a model that cannot be had."""
    with pytest.raises(InvalidInput) as caught:
        load_model(name, device="cpu")
    message = str(caught.value)
    assert message.startswith(f"model: {name!r} cannot be loaded (")
    assert "\n" not in message
    return message


def test_weights_that_are_pickles_are_not_loaded(folder, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    weights = load_file(next(pickled.glob("*.safetensors")))
    for file in pickled.glob("*.safetensors*"):
        file.unlink()
    torch.save(weights, pickled / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="safetensors") as told:
        load_model(pickled)
    assert "weights_only" not in str(told.value)
