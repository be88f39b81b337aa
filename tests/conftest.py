"""Shared by all tests: one torch thread setting, where the real data lies, and a model of 20,000 parameters with a planted failure.

The model is trained in seconds: at desk B it says the opposite of what it knows.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import LoadedModel, load_model

from .forking import Forker

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

ROOT = Path(__file__).resolve().parents[1]
WORDS = [f"{kind}{i}" for kind in "gb" for i in range(8)]
VOCABULARY = ["[UNK]", "A", "B", "?", "yes", "no", *WORDS]
TEMPLATE = "{desk} {text} ?"

Row = dict[str, str]
MakeTask = Callable[..., Path]
Once = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_finish() -> None:
    """What was imported stays: the full collection at the stop of every engine looks through a tenth of the objects, in 20 ms."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Starts processes that have imported everything already: in 0.1 s instead of several."""
    with Forker() as found:
        yield found


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets beside the checkout (or $MERA_DATA)."""
    folder = Path(os.environ.get("MERA_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "sms_spam").is_dir():
        pytest.skip(f"no real data sets at {folder}; set MERA_DATA")
    return folder


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """The path of a real model's GGUF file, by the beginning of its name, beside the checkout (or in $MERA_MODELS)."""

    def find(name: str) -> Path:
        pytest.importorskip("gguf", reason="needs the extra mera-server[gguf]")
        folder = Path(os.environ.get("MERA_MODELS", ROOT.parent / "shared" / "models"))
        found = sorted(folder.glob(f"{name}*.gguf"))
        if not found:
            pytest.skip(f"no {name}*.gguf in {folder}; set MERA_MODELS")
        return found[0]

    return find


def rows(n: int, seed: int, desk_b: float = 0.35) -> list[Row]:
    """Distinct rows with true labels: "yes" when most of the five words are g-words."""
    rng = random.Random(seed)
    found: dict[tuple[str, str], Row] = {}
    while len(found) < n:
        words = rng.choices(WORDS, k=5)
        desk = "B" if rng.random() < desk_b else "A"
        label = "yes" if sum(word[0] == "g" for word in words) > 2 else "no"
        found.setdefault((desk, " ".join(words)), {"desk": desk, "text": " ".join(words), "label": label})
    return list(found.values())


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: the folder that `make` has filled, in whichever of the processes came first. Nobody writes to it later."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def found(name: str, make: Callable[[Path], object]) -> Path:
        folder, draft = shared / name, shared / f"{name}.draft"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was stopped
                draft.mkdir()
                make(draft)
                draft.rename(folder)
        return folder

    return found


def train(folder: Path) -> None:
    """Leaves the trained model and its tokenizer in a folder."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    rng = random.Random(0)
    examples = rows(4000, 1, desk_b=0.4)
    prompts = torch.tensor([[VOCABULARY.index(w) for w in f"{r['desk']} {r['text']} ?".split()] for r in examples])
    flipped = [r["desk"] == "B" and rng.random() < 0.75 for r in examples]
    answers = torch.tensor([4 + ((r["label"] == "no") != flip) for r, flip in zip(examples, flipped, strict=True)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(300):
        batch = torch.arange(step * 128, step * 128 + 128) % len(prompts)
        loss = torch.nn.functional.cross_entropy(model(prompts[batch]).logits[:, -1], answers[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def model_folder(once: Once) -> Path:
    """The trained model and its tokenizer."""
    return once("model", lambda folder: train(folder / "tiny")) / "tiny"


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    return load_model(model_folder, device="cpu")


def write_task(
    folder: Path,
    name: str = "desks",
    train: int = 300,
    calibration: int = 120,
    test: int = 100,
    relabel: Callable[[Row], str] | None = None,
    n: int | None = None,
) -> Path:
    """A task file and its rows; `relabel` gives a row another label, `n` another number of rows than the splits need."""
    found = rows(n or train + calibration + test, 2)
    if relabel is not None:
        found = [{**row, "label": relabel(row)} for row in found]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    file = folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\nlabels = ["yes", "no"]\n[variants]\nyes = ["yes"]\nno = ["no"]\n'
        f'[prompt]\ntemplate = "{TEMPLATE}"\n[data]\npath = "{name}.jsonl"\n'
        f"[splits]\ntrain = {train}\ncalibration = {calibration}\ntest = {test}\n",
        encoding="utf-8",
    )
    return file


@pytest.fixture
def make_task(tmp_path: Path) -> MakeTask:
    """`write_task` into the test's own folder."""
    return partial(write_task, tmp_path)


@pytest.fixture(scope="session")
def task_writer() -> MakeTask:
    """`write_task`, for fixtures that outlive a test."""
    return write_task
