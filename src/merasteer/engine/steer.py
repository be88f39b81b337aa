"""Steering inside the packed batch: facts of one forward pass, the layer hooks, and what they leave behind.

One forward pass runs T tokens of R requests, packed. A pre-hook on the model maps tokens to requests and slots; a hook at every hook
point of every layer reads z = w·h + b for the token's own policy and moves h; the logits list finishes the step. Everything is
branch-free with static shapes, so it can sit inside a captured graph; `Switches` leaves parts out that no request of a batch needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from merasteer.engine.config import MAX_LABELS, EngineConfig
from merasteer.engine.layers import decoder_layers, family_of, site
from merasteer.engine.sampling import choose
from merasteer.engine.tables import SlotTable, VectorTable
from merasteer.method.steering import coefficient
from merasteer.types import HOOK_POINTS, HookPoint

__all__ = ["CLASSES", "COUNTS", "READS", "Steering", "Switches"]

# Columns of a step's report: counts in batch order, reads in the order of the requests that got a new token.
COUNTS = 5  # tokens, steered tokens, steered cells, sum of shifts, largest shift
READS = 4  # z before, z after, log-probability of the chosen token, 1 where the label bias changed it
CLASSES = slice(COUNTS + READS, COUNTS + READS + MAX_LABELS)  # logit of each class


@dataclass(frozen=True)
class Switches:
    """Which parts of a step some request of the batch needs. With captured graphs all are on: a graph cannot change."""

    hook_points: frozenset[HookPoint] = frozenset(HOOK_POINTS)
    sampling: bool = True
    classes: bool = True
    bias: bool = True
    logprobs: bool = True
    trace: bool = True


class Facts:
    """What one forward pass knows of its tokens. Shapes (T,) but for `last`, `slots` and `slots_new` (R,)."""

    def __init__(self, kwargs: dict[str, Any], table: SlotTable) -> None:
        rows = kwargs["logits_processor_args"]
        self.slots, self.slots_new = rows[-2].long(), rows[-1].long()
        self.last = kwargs["logits_indices"].long()  # the token whose logits choose, per request with a new token
        self.position = kwargs["position_ids"][0]
        ends = kwargs["cu_seq_lens_q"][1:].contiguous()
        tokens = torch.arange(self.position.shape[0], dtype=ends.dtype, device=ends.device)
        # Tokens at or beyond the last end are padding: they get request R, whose slot is 0.
        self.request = torch.searchsorted(ends, tokens, right=True)
        self.slot = torch.cat([self.slots, self.slots.new_zeros(1)])[self.request]
        inside = (self.position >= table.start[self.slot]) & (self.position < table.stop[self.slot])
        eligible = inside | table.listed[self.slot, self.position.long()]
        self.eligible = eligible.float()
        self.counted = (eligible & (self.position >= table.counted[self.slot])).float()  # a position counts once
        zeros = torch.zeros_like(self.eligible)
        self.cells, self.shift_sum, self.shift_max = zeros.clone(), zeros.clone(), zeros.clone()
        self.z_before, self.z_after = zeros.clone(), zeros.clone()


class Steering:
    """Tables, hooks and step reports of one model. Mutates activations in flight and the tables; owns no thread."""

    def __init__(self, model: Any, layers: int, width: int, config: EngineConfig) -> None:
        self.model, self.layers, self.config = model, layers, config
        device, slots = model.device, config.max_requests + 1
        self.slots = SlotTable(slots, device, model.config.get_text_config().max_position_embeddings)
        self.tables = {
            point: VectorTable(layers, width, config.max_policies, slots, device) for point in family_of(model).sites
        }
        self.switches = Switches()
        self.report = torch.zeros(config.max_requests, CLASSES.stop, device=device)
        self.trace = torch.zeros(config.max_requests, layers, 3, device=device)  # z before, z after, shift
        self.captured = {
            point: torch.zeros(config.max_requests, layers, width, device=device) for point in config.capture
        }
        self._facts: Facts | None = None
        self._policy: dict[HookPoint, torch.Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks sit in the model inside this context and are gone after it, whatever happens."""
        with ExitStack() as stack:
            stack.callback(setattr, self, "_facts", None)
            stack.callback(self.model.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            for point, table in self.tables.items():
                where = site(self.model, point)
                for index, block in enumerate(decoder_layers(self.model)):
                    module = block.get_submodule(where.module) if where.module else block
                    act = self._hook(point, table, index)
                    handle = (
                        module.register_forward_pre_hook(_on_input(act))
                        if where.side == "input"
                        else module.register_forward_hook(_on_output(act))
                    )
                    stack.callback(handle.remove)
            yield

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        self._facts = (
            Facts(kwargs, self.slots) if "logits_processor_args" in kwargs else None
        )  # None: not our engine's forward
        if self._facts is not None:
            if self.switches.trace:
                self.trace.zero_()
            self._policy = {
                point: self.tables[point].policy[self._facts.slot]
                for point in self.switches.hook_points
                if point in self.tables
            }

    def _hook(self, point: HookPoint, table: VectorTable, layer: int) -> Callable[[torch.Tensor], torch.Tensor | None]:
        def act(hidden: torch.Tensor) -> torch.Tensor | None:
            facts = self._facts
            if facts is None:
                return None
            if point in self.captured:
                self.captured[point][: facts.last.shape[0], layer] = hidden[0, facts.last].float()
            if point not in self._policy or layer not in table.active:
                return None
            return self._steer(hidden, facts, table, layer, self._policy[point])

        return act

    def _steer(
        self, hidden: torch.Tensor, facts: Facts, table: VectorTable, layer: int, policy: torch.Tensor
    ) -> torch.Tensor:
        """hidden (1, T, d), moved by each token's own policy. Two thin products with the P vectors in use, never a (T, d) gather."""
        used = table.weight.shape[1] if self.config.cuda_graphs else table.used
        weight, step = table.weight[layer, :used], table.step[layer, :used]
        index = policy[:, None]
        before = hidden[0].float()
        z = ((before @ weight.T) + table.bias[layer, :used]).gather(1, index)[:, 0]
        amount = (
            coefficient(z, table.logit_alpha[layer][facts.slot], table.strength[layer][facts.slot]) * facts.eligible
        )
        amounts = torch.zeros(z.shape[0], used, device=z.device).scatter_(1, index, amount[:, None])
        moved = (before + amounts @ step).to(hidden.dtype)

        shift = amount.abs() * table.norm[layer][policy] / before.norm(dim=-1).clamp_min(1e-30)
        facts.cells += (amount != 0).float()
        facts.shift_sum += shift
        facts.shift_max = torch.maximum(facts.shift_max, shift)
        if layer in table.reports or self.config.cuda_graphs:
            again = ((moved.float() @ weight.T) + table.bias[layer, :used]).gather(1, index)[:, 0]
            here = table.report[facts.slot] == layer
            facts.z_before = torch.where(here, z, facts.z_before)
            facts.z_after = torch.where(here, again, facts.z_after)
        if self.switches.trace:
            rows = facts.last
            mine = (table.report[facts.slot[rows]] >= 0)[:, None]  # other hook points' requests keep their own values
            after = z + amount * table.along[layer][policy]
            new = torch.stack([z[rows], after[rows], shift[rows]], dim=-1)
            block = self.trace[: rows.shape[0], layer]
            block.copy_(torch.where(mine, new, block))
        return moved[None]

    def finish(self, scores: torch.Tensor) -> torch.Tensor:
        """Ends a step behind the logits: writes the report, marks positions as counted, applies each request's sampling.

        scores (R, V) raw float32 logits, rows in the order of the requests that got a new token. Returns the processed scores.
        """
        facts = self._facts
        if facts is None:
            raise RuntimeError("a step was finished that never began: the model's pre-hook did not run")
        rows, slots = scores.shape[0], facts.slots_new
        report = self.report[:rows]
        report[:, :COUNTS] = self._counts(facts, rows)
        report[:, COUNTS], report[:, COUNTS + 1] = facts.z_before[facts.last], facts.z_after[facts.last]
        raw, unbiased = scores, None
        if self.switches.bias:
            unbiased, scores = scores, self._biased(scores, slots, facts.position[facts.last])
        if self.switches.classes:
            report[:, CLASSES] = _class_logits(scores, self.slots.variants[slots])
        if self.switches.sampling:
            position = facts.position[facts.last] + 1
            unbiased = None if unbiased is None else self._sampled(unbiased, slots, position)
            scores = self._sampled(scores, slots, position)
        if self.switches.logprobs or unbiased is not None:
            chosen = scores.argmax(-1, keepdim=True)
            report[:, COUNTS + 2] = (raw.gather(1, chosen) - raw.logsumexp(-1, keepdim=True))[:, 0]
            report[:, COUNTS + 3] = (
                0.0 if unbiased is None else (unbiased.argmax(-1, keepdim=True) != chosen)[:, 0].float()
            )
            if unbiased is not None:  # the answer is chosen: nothing is biased behind it
                answered = (self.slots.variants[slots] == chosen[:, :, None]).flatten(1).any(-1)
                self.slots.bias.index_put_((slots,), torch.where(answered[:, None], 0.0, self.slots.bias[slots]))
        return scores

    def _biased(self, scores: torch.Tensor, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Scores (R, V) with each request's bias added to its variants' logits, as far as its answer is still to be chosen."""
        variants = self.slots.variants[slots]  # (R, labels, spellings)
        bias = torch.where(position <= self.slots.bias_until[slots], 1.0, 0.0)[:, None] * self.slots.bias[slots]
        added = torch.where(variants >= 0, bias[:, :, None], 0.0).flatten(1)
        return scores.scatter_add(1, variants.clamp_min(0).flatten(1), added)

    def _sampled(self, scores: torch.Tensor, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Scores with each request's own sampling applied; position is that of the token being chosen."""
        table = self.slots
        return choose(
            scores, table.temperature[slots], table.top_k[slots], table.top_p[slots], table.seed[slots], position
        )

    def _counts(self, facts: Facts, rows: int) -> torch.Tensor:
        """(R, 5) counts in batch order, over positions not counted before; padding falls into a row that is dropped."""
        counted, cells = facts.counted, facts.cells
        per_token = torch.stack([counted, counted * (cells > 0), counted * cells, counted * facts.shift_sum], dim=-1)
        sums = torch.zeros(rows + 1, COUNTS, device=cells.device)
        sums[:, :4].index_add_(0, facts.request, per_token)
        sums[:, 4].scatter_reduce_(0, facts.request, counted * facts.shift_max, "amax")
        self.slots.counted.scatter_reduce_(
            0, facts.slot, (facts.position + 1).to(self.slots.counted.dtype) * facts.counted.int(), "amax"
        )
        return sums[:rows]


def _class_logits(scores: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
    """The largest logit over each class's token variants (docs/method.md, error target). scores (R, V), variants (R, C, M)."""
    picked = scores.gather(1, variants.clamp_min(0).flatten(1)).view(variants.shape)
    return picked.masked_fill(variants < 0, float("-inf")).amax(-1)


def _on_output(act: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            moved = act(output[0])
            return None if moved is None else (moved, *output[1:])
        return act(output)

    return hook


def _on_input(act: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[..., Any]:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> Any:
        moved = act(inputs[0])
        return None if moved is None else (moved, *inputs[1:])

    return hook
