"""What a run of the pipeline costs: seconds, processor seconds and resident memory of each stage, and the disk that it leaves.

    python benchmarks/run_cost.py --model FOLDER|FILE.gguf --task sms_spam --data ROWS.jsonl [--train 600 --calibration 250 --test 250]
    python benchmarks/run_cost.py --width 2048 --depth 36 --train 1500          # random weights, few heads; rows of random words

Resident memory is sampled twenty times a second, the model's own weights included. Prints a Markdown table and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.pipeline import Bars, Job, Options, prepare, quiet, stages
from merasteer.pipeline.options import STAGES
from merasteer.tasks import load_task
from merasteer.types import Task

WORDS = 200
PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Seconds on the wall and of the processor, and the most memory that was resident, between entry and exit."""

    def __enter__(self) -> Watch:
        self.resident, self._over = resident(), threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        self.wall, self.processor = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.processor += time.process_time()
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(0.05):
            self.resident = max(self.resident, resident())


def resident() -> float:
    """GiB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE / 2**30


def random_model(folder: Path, width: int, depth: int) -> Path:
    """A Llama of random weights with two narrow heads, and numbered words."""
    torch.manual_seed(0)
    names = {f"w{i}": i for i in range(WORDS)}
    words = Tokenizer(models.WordLevel(names, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=64, num_hidden_layers=depth, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def random_task(folder: Path, rows: int) -> Path:
    """Rows of eight random words; the label is a word's that the text holds or not, so that there is something to read."""
    rng = random.Random(0)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for i in range(rows):
            text = [f"w{10 + rng.randrange(WORDS - 10)}" for _ in range(6)]
            text += [f"w{10 + i // 180 % 180}", f"w{10 + i % 180}"]  # no two rows alike
            label = "yes" if int(text[0][1:]) < WORDS // 2 else "no"
            file.write(json.dumps({"text": " ".join(text), "label": label}) + "\n")
    task = folder / "random.toml"
    task.write_text(
        'name = "random"\nlabels = ["yes", "no"]\n[variants]\nyes = ["w1"]\nno = ["w2"]\n[prompt]\ntemplate = "{text} w3"\n'
        '[data]\npath = "rows.jsonl"\n[splits]\ntrain = 40\ncalibration = 1\ntest = 1\n',
        encoding="utf-8",
    )
    return task


def measured(job: Job) -> list[dict[str, Any]]:
    """One row per stage."""
    rows = []
    for stage in STAGES[:-1]:
        with Watch() as watch:
            stages(job, stage, Bars(lines=True))
        rows.append(
            {
                "stage": stage,
                "seconds": round(watch.wall, 2),
                "processor_seconds": round(watch.processor, 2),
                "resident_gib": round(watch.resident, 2),
            }
        )
    return rows


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--task", default="sms_spam")
    parser.add_argument("--data", type=Path)
    for name, size in (("train", 600), ("calibration", 250), ("test", 250), ("ordering", 250)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=4)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    sizes = {name: getattr(given, name) for name in ("train", "calibration", "test")}
    with tempfile.TemporaryDirectory() as name, quiet():
        folder = Path(name)
        task: Task = load_task(
            given.task if given.model else random_task(folder, 2 * sum(sizes.values())), data=given.data
        )
        task = replace(task, splits=replace(task.splits, **sizes))
        model = given.model or random_model(folder / "model", given.width, given.depth)
        job = prepare(model, task, folder / "store", Options(ordering=given.ordering))
        loaded = resident()
        rows = measured(job)
        disk = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()) / 2**30
    print("| stage | seconds | processor seconds | resident GiB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    setup = {
        **sizes, "model": job.identity.id, "layers": job.loaded.layers, "width": job.loaded.width, "task": task.name,
        "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
        "transformers": transformers.__version__,
    }  # fmt: skip
    found = {"stages": rows, "loaded_gib": round(loaded, 2), "disk_gib": round(disk, 3), "setup": setup}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
