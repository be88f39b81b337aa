"""What moves an answer: the gradient of −log q of the true label with respect to the activations at the answer position.

An answer that is chosen at the end of the prompt depends on the last token's activations, and on those of the tokens before it through
their keys and values alone. So the prompt but for its last token is computed once without a graph, and the graph holds one token (and,
where labels begin alike, the few behind it): the gradients of all layers cost little more than the pass over the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from merasteer.engine.layers import decoder_layers, site
from merasteer.engine.loading import LoadedModel
from merasteer.errors import NonFinite
from merasteer.method.trie import branches
from merasteer.types import HookPoint, LabelChoice, Tokens

__all__ = ["answer_gradients", "label_scores"]


def answer_gradients(
    loaded: LoadedModel,
    choice: LabelChoice,
    prompts: Sequence[Tokens],
    labels: Sequence[int],
    points: Sequence[HookPoint],
) -> dict[HookPoint, torch.Tensor]:
    """∇ of −log q_y by hook point, (n, L, d) float32 on the CPU: of each prompt under its label, at its last token, at every layer.

    choice: the labels' spellings; all branching points count. Prompts of equal length are one batch. No engine may run on the model, whose
    parameters stay frozen. Raises NonFinite at the first prompt that has no finite gradient.
    """
    found = {point: torch.zeros(len(prompts), loaded.layers, loaded.width) for point in points}
    lengths: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(i)
    for rows in lengths.values():
        tokens = torch.tensor([prompts[i] for i in rows], device=loaded.model.device)
        wanted = torch.tensor([labels[i] for i in rows], device=loaded.model.device)
        for point, gradients in _gradients(loaded, choice, tokens, wanted, points).items():
            broken = [
                i for i, finite in zip(rows, gradients.isfinite().flatten(1).all(1).tolist(), strict=True) if not finite
            ]
            if broken:
                raise NonFinite(f"prompt {broken[0] + 1}: its gradient is not finite; load the model in float32")
            found[point][rows] = gradients
    return found


def label_scores(logits: Mapping[Tokens, torch.Tensor], choice: LabelChoice) -> torch.Tensor:
    """The labels' scores (n, C), whose softmax is q (docs/method.md, choosing a label). logits: branching point -> (n, V).

    Of each label the best spelling's: the sum, over the branching points on its way, of the log-probability of its token there.
    """
    nodes = branches((tokens for spellings in choice.variants for tokens in spellings), choice.end)
    options = {
        path: dict(zip(permitted, _exact(logits[path][:, list(permitted)]).log_softmax(-1).unbind(-1), strict=True))
        for path, permitted in nodes.items()
    }

    def score(tokens: Tokens) -> torch.Tensor:
        way = [tokens[:i] for i in range(len(tokens) + 1) if tokens[:i] in nodes]
        return torch.stack([options[path][(*tokens, choice.end)[len(path)]] for path in way]).sum(0)  # type: ignore[index]

    return torch.stack(
        [torch.stack([score(tokens) for tokens in spellings]).amax(0) for spellings in choice.variants], dim=-1
    )


def _gradients(
    loaded: LoadedModel, choice: LabelChoice, prompts: torch.Tensor, labels: torch.Tensor, points: Sequence[HookPoint]
) -> dict[HookPoint, torch.Tensor]:
    """Of prompts (n, T) of one length."""
    paths = sorted(branches((tokens for spellings in choice.variants for tokens in spellings), choice.end), key=len)
    n, longest = len(prompts), max(len(path) for path in paths)
    behind = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths], device=prompts.device).long()
    tails = torch.cat(
        [prompts[:, None, -1:].expand(n, len(paths), 1), behind.expand(n, len(paths), longest)], dim=-1
    ).flatten(0, 1)
    model = loaded.model
    cache = None
    if prompts.shape[1] > 1:
        with torch.no_grad():
            cache = model(input_ids=prompts[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        if len(paths) > 1:
            cache.batch_repeat_interleave(len(paths))
    with torch.enable_grad(), _recorded(model, points) as seen:
        logits = model(input_ids=tails, past_key_values=cache, use_cache=cache is not None).logits
        logits = logits.view(n, len(paths), longest + 1, -1)
        at = {path: logits[:, i, len(path)] for i, path in enumerate(paths)}
        scores = label_scores(at, choice).log_softmax(-1)
        loss = -scores.gather(1, labels[:, None]).sum()
        found = torch.autograd.grad(loss, [hidden for hiddens in seen.values() for hidden in hiddens])
    layers = loaded.layers
    # The last prompt token occurs once for each branching point: its activations are the same, and moving them moves all of these.
    return {
        point: torch.stack(
            [one.view(n, len(paths), longest + 1, -1)[:, :, 0].sum(1) for one in found[i * layers : (i + 1) * layers]],
            1,
        )
        .float()
        .cpu()
        for i, point in enumerate(seen)
    }


@contextmanager
def _recorded(model: nn.Module, points: Sequence[HookPoint]) -> Iterator[dict[HookPoint, list[torch.Tensor]]]:
    """Inside, a pass leaves the activations of every layer at each hook point, each part of the graph."""
    seen: dict[HookPoint, list[torch.Tensor]] = {point: [] for point in points}
    with ExitStack() as stack:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        stack.callback(embeddings.register_forward_hook(_rooted).remove)
        for point in points:
            where = site(model, point)
            for block in decoder_layers(model):
                module = block.get_submodule(where.module) if where.module else block
                hook = partial(_on_input if where.side == "input" else _on_output, seen[point])
                attach = module.register_forward_pre_hook if where.side == "input" else module.register_forward_hook
                stack.callback(attach(hook).remove)
        yield seen


def _on_input(seen: list[torch.Tensor], _module: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What enters a module, by itself: some blocks give the same tensor to others too, which are not moved with it."""
    seen.append(inputs[0].clone())
    return (seen[-1], *inputs[1:])


def _on_output(seen: list[torch.Tensor], _module: nn.Module, _inputs: Any, output: Any) -> None:
    seen.append(output[0] if isinstance(output, tuple) else output)


def _exact(values: torch.Tensor) -> torch.Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _rooted(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """The graph begins at the embeddings: no parameter needs a gradient."""
    return output.detach().requires_grad_()
