"""`--compat reference`: the arithmetic of the released research code, its mistakes included, to show what they do. Comparison only.

What it does otherwise than docs/method.md, on purpose (section 7 there has the consequences):

- The error target, the activations and even the *prediction* are read one position late, at the answer token itself. Under
  `exact` an answer without a variant has q_y = 1, error 0, and its activations are those of the last token. Under `last` the
  released code matches nothing: the first generated token is taken for an answer whatever it is.
- The error readout is the Lasso (or least squares, which stands in the same grid) of least RMSE among five random 70:30 splits,
  on raw activations, without an intercept, of logit(clip(E, 1e-8, 1 − 1e-8)). The contrastive one is
  mean(h | low error) − mean(h | high error), as it is: no scale, no sign, no intercept.
- At every layer and every token h moves by ((logit α − σ(w·h)) / ‖w‖² + 1e-8) · w wherever σ(w·h) > logit α. Two scales are mixed:
  α ≤ ½ moves every token, α > σ(1) ≈ .73 none.
- Ten α, evenly spaced from .001 to .99, are tried on the calibration split; the last of those with the best accuracy (of that
  late prediction) is kept if it is at least the unsteered one. None is: no steering. No margin; nothing is certified.

Simplest readings, where that code goes another way for no reason of the method: a layer without any weight is left alone (there, the
weights of later layers move up by one); both readouts use the task's own answer position (there, the contrastive one always
`last`); the ends of the contrast never overlap; activations are read in the scoring pass instead of a third one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from merasteer.engine import LoadedModel
from merasteer.engine.layers import decoder_layers, family_of, site
from merasteer.errors import InvalidInput
from merasteer.pipeline.batch import Prompts
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.probes.fitting import LASSO_GRID, layer_of, one_thread
from merasteer.probes.targets import class_probabilities, class_scores, error_target
from merasteer.types import Example, HookPoint, ServedTask

__all__ = ["GRID", "LayerScore", "Outcome", "Readout", "Scored", "reference"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Readout = Literal["error", "contrastive"]
GRID: tuple[float, ...] = tuple(np.linspace(1e-3, 0.99, 10).tolist())
CLIP = 1e-8
SPLITS = 5  # random ones, 70:30


@dataclass(frozen=True)
class LayerScore:
    """Held-out RMSE of a layer's error readout and of the mean predictor, on the split on which the readout was chosen."""

    layer: int
    rmse: float
    dummy_rmse: float


@dataclass(frozen=True, eq=False)
class Scored:
    """Of n items, one prompt at a time.

    label (n,): class of the answer token, −1 where missing, as the rest of the benchmark scores answers. late (n,): what the
    released code takes for the answer, −1 where unmatched. error (n,): its target, 0 where unmatched.
    """

    label: Labels
    late: Labels
    error: Floats


@dataclass(frozen=True, eq=False)
class Outcome:
    """What calibration kept, and both answers to the test split.

    alpha: None where every α was worse than not steering. curve: (α, accuracy of the late prediction on the calibration split),
    beside `unsteered_calibration`. layers: those that steer. probes: one per layer with an error readout; none if contrastive.
    """

    readout: Readout
    hook_point: HookPoint
    alpha: float | None
    curve: tuple[tuple[float, float], ...]
    unsteered_calibration: float
    layers: tuple[int, ...]
    probes: tuple[LayerScore, ...]
    unsteered: Scored
    steered: Scored


def reference(
    job: Job, readout: Readout, bars: Bars, *, train_items: int | None = None, calibration_items: int | None = None
) -> Outcome:
    """The released procedure from start to end. `train_items`, `calibration_items`: use so many, drawn at random; None is all."""
    point: HookPoint = "reference" if "reference" in family_of(job.loaded.model).sites else "mlp_input"
    train = _some(job, job.splits.train, train_items)
    calibration, test = _some(job, job.splits.calibration, calibration_items), job.splits.test

    def scored(title: str, items: Sequence[Example], alpha: float | None) -> Scored:
        with steering(job.loaded, point, weight, alpha), bars.bar(f"reference: {title}", len(items)) as bar:
            return _ask(job, items, bar.advance)

    def accuracy(title: str, alpha: float | None) -> float:
        labels = np.array([example.label for example in calibration])
        return float((scored(title, calibration, alpha).late == labels).mean())

    with bars.bar("reference: collect", len(train)) as bar:
        error, activations = _collect(job, point, train, bar.advance)
    weight, probes = _readouts(job, readout, activations, error, bars)
    before = accuracy("unsteered", None)
    curve = tuple((alpha, accuracy(f"α = {alpha:.2f}", alpha)) for alpha in GRID)
    alpha = kept(curve, before)
    return Outcome(
        readout=readout,
        hook_point=point,
        alpha=alpha,
        curve=curve,
        unsteered_calibration=before,
        layers=tuple(torch.nonzero(weight.abs().sum(-1) > 0).flatten().tolist()),
        probes=probes,
        unsteered=scored("test, unsteered", test, None),
        steered=scored("test, steered", test, alpha),
    )


# ------------------------------------------------------------------------------------------ the arithmetic


def mixed_step(hidden: torch.Tensor, weight: torch.Tensor, alpha: float) -> torch.Tensor:
    """h moved where σ(w·h) > logit α, by the difference of the two. hidden (..., d), weight (d,): (..., d)."""
    h, limit = hidden.float(), math.log(alpha / (1.0 - alpha))
    s = torch.sigmoid(h @ weight)
    amount = torch.where(s > limit, (limit - s) / weight.norm() ** 2 + 1e-8, 0.0)
    return (h + amount.unsqueeze(-1) * weight).to(hidden.dtype)


def late_position(task: ServedTask, prompt: int, generated: Sequence[int]) -> int | None:
    """Where the released code reads: the index of the first generated token, or of the first variant under `exact`.

    None where no variant was generated. prompt: its length.
    """
    if task.position == "last":
        return prompt
    return next((prompt + i for i, token in enumerate(generated) if label_of(task, token) >= 0), None)


def late_score(logits: torch.Tensor, at: int | None, task: ServedTask, label: int) -> tuple[int, float]:
    """The class that is taken for the answer and the error 1 − q_y; (−1, 0) where unmatched. logits (T, V) of the whole text."""
    if at is None:
        return -1, 0.0
    q = class_probabilities(class_scores(logits[at], first_tokens(task)))
    return int(q.argmax()), 1.0 - float(q[label])


@lru_cache(maxsize=16)
def first_tokens(task: ServedTask) -> tuple[tuple[int, ...], ...]:
    """The tokens by which the released code knows each label. Raises InvalidInput where two labels begin alike."""
    found = tuple(tuple(dict.fromkeys(tokens[0] for tokens in spellings)) for spellings in task.variants)
    known = [token for tokens in found for token in tokens]
    if len(set(known)) < len(known):
        raise InvalidInput(
            f"task {task.name!r}: two labels share a first token; the released code cannot tell them apart"
        )
    return found


def label_of(task: ServedTask, token: int) -> int:
    """The class of an answer token, −1 where it is no variant."""
    return next((label for label, ids in enumerate(first_tokens(task)) if token in ids), -1)


def kept(curve: Sequence[tuple[float, float]], unsteered: float) -> float | None:
    """The last α of the best accuracy that is at least the unsteered one: a tie replaces what was there."""
    best, found = unsteered, None
    for alpha, accuracy in curve:
        if accuracy >= best:
            best, found = accuracy, alpha
    return found


def fit_error(x: Floats, y: Floats, seed: int) -> tuple[Floats, float, float]:
    """w (d,), its held-out RMSE and the mean predictor's; zeros where no penalty left a weight. x (N, d), y (N,) logit errors."""
    from sklearn.model_selection import train_test_split

    nothing = np.zeros(x.shape[1]), math.inf, math.inf
    fits = [nothing]
    for split in range(SPLITS):
        here, there, y_here, y_there = train_test_split(x, y, test_size=0.3, random_state=(seed + split) % 2**32)
        dummy = float(np.sqrt(np.mean((y_there - y_here.mean()) ** 2)))
        for penalty in (*LASSO_GRID, 0.0):
            w = _lasso(here, y_here, penalty)
            if np.abs(w).max() > 1e-10:
                fits.append((w, float(np.sqrt(np.mean((y_there - there @ w) ** 2))), dummy))
    return min(fits, key=lambda fit: fit[1])


def wrong_way(x: Floats, error: Floats, top_k: int) -> Floats:
    """mean(h | low error) − mean(h | high error), (d,): the closed form takes it for a readout of error. x (N, d), error (N,)."""
    k, order = min(top_k, len(error) // 2), np.argsort(error, kind="stable")
    return np.asarray(x[order[:k]].mean(0) - x[order[-k:]].mean(0))


def _lasso(x: Floats, y: Floats, penalty: float) -> Floats:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import Lasso

    if penalty == 0.0:
        return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(Lasso(alpha=penalty, fit_intercept=False, max_iter=2000).fit(x, y).coef_, dtype=np.float64)


def _readouts(
    job: Job, readout: Readout, activations: torch.Tensor, error: Floats, bars: Bars
) -> tuple[torch.Tensor, tuple[LayerScore, ...]]:
    """weight (L, d) float32, zero where a layer has none, and the scores of error readouts. activations (N, L, d), error (N,)."""
    target, layers = error_target(error, CLIP), activations.shape[1]
    weight, scores = np.zeros(activations.shape[1:]), []
    with one_thread(), bars.bar("reference: fit", layers) as bar:
        for layer in range(layers):
            x = layer_of(activations, layer)
            if readout == "contrastive":
                weight[layer] = wrong_way(x, error, job.options.top_k)
            else:
                weight[layer], rmse, dummy = fit_error(x, target, job.options.seed)
                if rmse < math.inf:
                    scores.append(LayerScore(layer, rmse, dummy))
            bar.advance()
    return torch.from_numpy(weight).float(), tuple(scores)


# ------------------------------------------------------------------------------- one prompt at a time, with hooks


@contextmanager
def hooked(loaded: LoadedModel, point: HookPoint, act: Callable[[int, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Every layer's activation at the hook point is replaced by act(layer, activation) until the end."""
    where, handles = site(loaded.model, point), list[RemovableHandle]()

    def attach(layer: int, module: nn.Module) -> RemovableHandle:
        if where.side == "input":
            return module.register_forward_pre_hook(lambda _module, args: (act(layer, args[0]), *args[1:]))
        return module.register_forward_hook(lambda _module, _args, output: act(layer, output))

    try:
        for layer, block in enumerate(decoder_layers(loaded.model)):
            handles.append(attach(layer, block.get_submodule(where.module)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def steering(loaded: LoadedModel, point: HookPoint, weight: torch.Tensor, alpha: float | None) -> Iterator[None]:
    """Moves all positions at all layers with a weight. weight (L, d); alpha None moves nothing."""
    if alpha is None:
        yield
        return
    rows = list(weight.to(loaded.model.device))
    steered = [bool(row.any()) for row in rows]
    with hooked(loaded, point, lambda layer, h: mixed_step(h, rows[layer], alpha) if steered[layer] else h):
        yield


@torch.inference_mode()
def generate_and_score(loaded: LoadedModel, prompt: Sequence[int], new_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The generated tokens, and the logits (T, V) of prompt and tokens from a second pass over all of them."""
    model: Any = loaded.model
    ids = torch.tensor([list(prompt)], device=model.device)
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=loaded.tokenizer.eos_token_id or 0,
    )
    return whole[0, len(prompt) :].tolist(), model(whole, use_cache=False).logits[0]


def _ask(job: Job, items: Sequence[Example], advance: Callable[[], None]) -> Scored:
    """Every item's answer under the hooks that are there."""
    prompts = job.prompts(items)
    rows = []
    for tokens, example in zip(prompts.tokens, items, strict=True):
        generated, logits = generate_and_score(job.loaded, tokens, prompts.new_tokens)
        at = late_position(job.served, len(tokens), generated)
        rows.append((_answer(prompts, generated), *late_score(logits, at, job.served, example.label)))
        advance()
    label, late, error = zip(*rows, strict=True)
    return Scored(np.array(label, dtype=np.int64), np.array(late, dtype=np.int64), np.array(error, dtype=np.float64))


def _answer(prompts: Prompts, generated: Sequence[int]) -> int:
    """The class of the answer token as everywhere else: the first token under `last`, the first variant under `exact`."""
    labels = [label_of(prompts.task, token) for token in generated]
    return labels[0] if prompts.task.position == "last" else next((label for label in labels if label >= 0), -1)


def _collect(
    job: Job, point: HookPoint, items: Sequence[Example], advance: Callable[[], None]
) -> tuple[Floats, torch.Tensor]:
    """The released error (N,) and the activations (N, L, d) at the same late position; the last token's where unmatched."""
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        seen[layer] = hidden[0]  # the scoring pass comes last, so all positions are here when they are read
        return hidden

    prompts, layers = job.prompts(items), range(job.loaded.layers)
    error = np.zeros(len(items))
    activations = torch.empty(len(items), job.loaded.layers, job.loaded.width)
    with hooked(job.loaded, point, keep):
        for i, (tokens, example) in enumerate(zip(prompts.tokens, items, strict=True)):
            generated, logits = generate_and_score(job.loaded, tokens, prompts.new_tokens)
            at = late_position(job.served, len(tokens), generated)
            error[i] = late_score(logits, at, job.served, example.label)[1]
            activations[i] = torch.stack([seen[layer][-1 if at is None else at] for layer in layers]).float().cpu()
            advance()
    return error, activations


def _some(job: Job, items: Sequence[Example], count: int | None) -> list[Example]:
    """So many of the items in their order, drawn with the seed; all where `count` is None or larger."""
    drawn = np.random.default_rng(job.options.seed).permutation(len(items))[:count]
    return [items[i] for i in np.sort(drawn)]
