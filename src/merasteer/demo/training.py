"""Training a small language model from scratch, the same way each time.

Two runs of one recipe and one seed on one machine give the same bytes: every draw comes from one seed, and the number of
threads is fixed to `THREADS` while training, because sums over another number of threads are rounded differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

__all__ = ["THREADS", "Architecture", "Recipe", "train"]

THREADS = 2
WINDOW = 16  # batches that are sorted by length together, so that little is padding

Architecture = Literal["llama", "qwen2"]
CLASSES: dict[Architecture, tuple[Any, Any]] = {  # that take the same sizes by the same names
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
}

Pair = tuple[str, str]  # prompt, answer
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a demo model is made. The defaults are the built-in model: 0.87 M parameters, about two minutes on two cores."""

    architecture: Architecture = "llama"
    vocabulary: int = 700
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 336
    context: int = 1024
    examples: int = 40_000
    steps: int = 700
    batch: int = 64
    learning_rate: float = 3e-3
    final_rate: float = 0.1  # of the learning rate, at the end of the cosine
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip: float = 1.0
    prompt_weight: float = 0.1  # of the loss on a prompt token; an answer token counts 1

    def rate(self, step: int) -> float:
        """The learning rate of a 0-based step: linear warm-up, then a cosine down to `final_rate`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2)


def train(
    pairs: Sequence[Pair], tokenizer: Any, out: Path, recipe: Recipe, seed: int = 0, progress: bool = True
) -> Path:
    """`out`, filled with the model and its tokenizer, trained to continue a prompt with its answer and then to stop."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with _reproducible(seed), Progress(*columns, TimeRemainingColumn(), disable=not progress) as bar:
        config, model_class = _config(recipe, tokenizer), CLASSES[recipe.architecture][1]
        model = model_class(config).train()
        task = bar.add_task("training", total=recipe.steps, loss=math.nan)
        for loss in _learn(model, _batches(pairs, tokenizer, recipe, torch.Generator().manual_seed(seed)), recipe):
            bar.update(task, advance=1, loss=loss)
    _save(model, tokenizer, out)
    return out


def _learn(model: Any, batches: Iterator[Batch], recipe: Recipe) -> Iterator[float]:
    """Changes the parameters of `model`; the loss of each step."""
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate(step)
        loss = _loss(model, batch)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        yield loss.item()


def _save(model: Any, tokenizer: Any, out: Path) -> None:
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    logging.disable_progress_bar()  # of the library, beside ours
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, but packaged for all


def _config(recipe: Recipe, tokenizer: Any) -> Any:
    return CLASSES[recipe.architecture][0](
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seeds torch and fixes its threads; both are put back."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            torch.set_num_threads(THREADS)
            yield
        finally:
            torch.set_num_threads(threads)


def _batches(pairs: Sequence[Pair], tokenizer: Any, recipe: Recipe, generator: torch.Generator) -> Iterator[Batch]:
    """`recipe.steps` batches (tokens, weights), each (batch, length): shuffled epochs, neighbours of about equal length."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    total, window = recipe.steps * recipe.batch, recipe.batch * WINDOW
    order: list[int] = []
    while len(order) < total:
        order += torch.randperm(len(pairs), generator=generator).tolist()
    for start in range(0, total, window):
        part = sorted(order[start : min(start + window, total)], key=lambda i: len(prompts[i]) + len(answers[i]))
        groups = [part[i : i + recipe.batch] for i in range(0, len(part), recipe.batch)]
        for group in torch.randperm(len(groups), generator=generator).tolist():
            items = [(prompts[i], [*answers[i], tokenizer.eos_token_id]) for i in groups[group]]
            yield _pad(items, recipe.prompt_weight)


def _pad(items: list[tuple[list[int], list[int]]], prompt_weight: float) -> Batch:
    """Tokens and loss weights, padded on the right: behind a causal mask what follows is never seen, and it weighs 0."""
    length = max(len(prompt) + len(answer) for prompt, answer in items)
    tokens, weights = torch.zeros(len(items), length, dtype=torch.long), torch.zeros(len(items), length)
    for row, (prompt, answer) in enumerate(items):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        weights[row, : len(prompt)] = prompt_weight
        weights[row, len(prompt) : len(prompt) + len(answer)] = 1.0
    return tokens, weights


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    """The weighted mean of the next-token loss."""
    tokens, weights = batch
    logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()
