"""Steering inside the packed batch: facts of one forward pass, the layer hooks, and what they leave behind.

One forward pass runs T tokens of R requests, packed. A pre-hook on the model maps tokens to requests and slots; a hook at every layer
that a resident policy acts on reads z = w·h + b for all P rows of vectors in use and moves h along the token's own; the logits list
finishes the step. It is branch-free with static shapes, so it can sit inside a captured graph. What the host knows beforehand leaves
parts out: `Switches` says what the requests of a batch need, and a layer that no resident policy reads has no hook at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, reduce
from typing import Any

import torch
from torch import nn

from merasteer.engine.config import EngineConfig
from merasteer.engine.head import Head
from merasteer.engine.layers import decoder_layers, family_of, site
from merasteer.engine.rope import Rope, context_of
from merasteer.engine.switches import CLASSES, COUNTS, Switches
from merasteer.engine.tables import Rows, SlotTable, VectorTable
from merasteer.method.steering import pull_
from merasteer.types import HookPoint

__all__ = ["Steering"]


class Facts:
    """What one forward pass knows of its tokens. Shapes (T,) but for `last` and `slots_new` (R,). Made where they are first needed."""

    def __init__(self, kwargs: dict[str, Any], table: SlotTable) -> None:
        self._kwargs, self._table = kwargs, table
        self.steady = False  # each token is its request's last: nothing is to be picked out
        self.broken: torch.Tensor | None = (
            None  # 0.0, or NaN where the model's last hidden state of the token is not finite
        )
        self.moves: dict[HookPoint, Moves] = {}

    def advance(self, kwargs: dict[str, Any]) -> None:
        """The next pass over the same requests, each with its next token: all stays as it is but for the positions."""
        self._kwargs, self.steady = kwargs, True
        self.__dict__.pop("position", None)

    @cached_property
    def last(self) -> torch.Tensor:
        """The token whose logits choose, per request with a new token."""
        return self._kwargs["logits_indices"].long()  # type: ignore[no-any-return]

    @cached_property
    def slots_new(self) -> torch.Tensor:
        """The slots of the requests with a new token."""
        return self._kwargs["logits_processor_args"][-1].long()  # type: ignore[no-any-return]

    @cached_property
    def position(self) -> torch.Tensor:
        return self._kwargs["position_ids"][0].long()  # type: ignore[no-any-return]

    @cached_property
    def request(self) -> torch.Tensor:
        """The token's request in batch order; tokens at or beyond the last end are padding and get request R."""
        ends = self._kwargs["cu_seq_lens_q"][1:].contiguous()
        tokens = torch.arange(self.position.shape[0], dtype=ends.dtype, device=ends.device)
        return torch.searchsorted(ends, tokens, right=True)

    @cached_property
    def slot(self) -> torch.Tensor:
        """The slot of the token's request; 0 for padding."""
        return torch.nn.functional.pad(self._kwargs["logits_processor_args"][-2].long(), (0, 1))[self.request]

    @cached_property
    def eligible(self) -> torch.Tensor:
        """Whether the token's policy may act on it."""
        table, position, slot = self._table, self.position, self.slot
        inside = (position >= table.start[slot]) & (position < table.stop[slot])
        return inside | table.listed[slot, position]

    @cached_property
    def counted(self) -> torch.Tensor:
        """1.0 where the token enters the counts. A position counts once, also when its request was evicted and is computed again."""
        return (self.eligible & (self.position >= self._table.counted[self.slot])).float()


class Moves:
    """One hook point in one forward pass: what its layers are to do, and what they did.

    Over the L active layers of the P rows in use, T tokens: offset (L, T, P) is b − logit α in the column of the token's own row where
    the token may be moved and -inf elsewhere, so that w·h + offset says by how much z exceeds its threshold, one product for all
    policies. pull (L, T, P), how far each goes against ũ, and size = ‖h‖ (L, T) are filled layer by layer. Where it is asked for, at
    report layers and for traces, z holds z (T, P) by layer; again holds it behind the step at the tokens that choose, (R, P).

    Between two layers all that is small has left the caches: an operation costs several times what it does alone, whatever its size.
    """

    def __init__(self, facts: Facts, table: VectorTable, rows: Rows, switches: Switches) -> None:
        self.rows, self.table, self.facts = rows, table, facts
        slot = facts.slot
        self.own = rows.column[table.policy[slot]]  # (T,)
        shape = (len(rows.layers), slot.shape[0], rows.count)
        at = self.own[None, :, None].expand(shape[0], -1, -1)

        def spread(values: torch.Tensor, fill: float) -> torch.Tensor:
            return torch.full(shape, fill, device=values.device).scatter_(2, at, values[..., None])

        excess = rows.bias[:, self.own] - table.logit_alpha[rows.index][:, slot]
        self.offset = spread(excess.masked_fill(~facts.eligible, -float("inf")), -float("inf"))
        for _, classes in () if rows.laws is None else rows.laws.groups:
            self.offset[:, :, classes] = rows.bias[:, None, classes]
        self.strength = None
        if switches.strength:
            self.strength = spread(table.strength[rows.index][:, slot] * facts.eligible, 0.0).unbind()
        self.pull = torch.empty_like(self.offset)
        self.size = torch.empty(shape[:2], device=self.offset.device)
        self._said: dict[int, list[torch.Tensor]] = {}
        self.z: dict[int, torch.Tensor] = {}
        self.again: dict[int, torch.Tensor] = {}
        self._read = frozenset(rows.layers) if switches.trace else rows.reports
        self._at = at
        self._by_layer = tuple(zip(self.offset.unbind(), self.pull.unbind(), self.size.unbind(), strict=True))

    def move(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (1, T, d), each token moved by its own policy at a layer. Two thin products, never a (T, d) gather."""
        i = self.rows.layers[layer]
        offset, pull, size = self._by_layer[i]
        weight, bias, step = self.rows.vectors[i]
        before = hidden[0].float()
        excess = torch.addmm(offset, before, weight, out=pull)
        laws, strength = self.rows.laws, None if self.strength is None else self.strength[i]
        if layer in self._read:
            self.z[layer] = torch.addmm(bias, before, weight)
        if laws is None:
            pull_(excess, strength)
        else:
            z = self.z.get(layer)
            if z is None and laws.proportional is not None:
                z = torch.addmm(bias, before, weight)
            self._said[layer] = laws.pull_(excess, 0.0 if strength is None else strength, z)
        moved = torch.addmm(before, pull, step, alpha=-1).to(hidden.dtype)
        torch.linalg.vector_norm(before, dim=-1, out=size)
        if layer in self.rows.reports:
            self.again[layer] = torch.addmm(bias, self._chosen(moved).float(), weight)
        return moved[None]

    def shifts(self) -> torch.Tensor:
        """‖v‖/‖h‖ (L, T)."""
        lengths = (self.pull.abs() @ self.rows.norm[:, :, None])[..., 0]
        return lengths / self.size.clamp_min(1e-30)

    def _chosen(self, values: torch.Tensor) -> torch.Tensor:
        """values (T, ...) at the tokens that choose, (R, ...)."""
        return values if self.facts.steady else values[self.facts.last]

    @cached_property
    def _reporting(self) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """The own column of each token that chooses, (2, R, 1); and for each report layer whether it is the token's, (R,)."""
        own, report = self.own[self.facts.last], self.table.report[self.facts.slot[self.facts.last]]
        return own[None, :, None].expand(2, -1, -1), {layer: report == layer for layer in self.again}

    def reads(self) -> torch.Tensor:
        """z before and behind the step at each request's report layer, at the token that chooses, (2, R); 0 where it has none."""
        own, layers = self._reporting
        found = torch.zeros(own.shape[:2], device=own.device)
        for layer, here in layers.items():
            both = torch.stack([self._chosen(self.z[layer]), self.again[layer]]).gather(2, own)[..., 0]
            found = torch.where(here, both, found)
        return found

    def said(self) -> torch.Tensor | None:
        """The label that class readouts say at each token that chooses, (R,), -1 where none does; None where nothing was to say one."""
        found = [self._chosen(labels) for layer in self._said.values() for labels in layer]
        return reduce(torch.maximum, found) if found else None

    def trace(self, shifts: torch.Tensor, out: torch.Tensor) -> None:
        """Writes z before, z after and the shift at the tokens that choose to out (R, all layers, 3), for this hook point's requests."""
        last, index = self.facts.last, self.rows.index
        at = self._at[:, last]
        z = torch.stack([self.z[layer][last] for layer in self.rows.layers]).gather(2, at)[..., 0]
        after = z - (self.pull[:, last] * self.rows.along[:, None]).sum(-1)  # only the token's own columns pull
        mine = (self.table.report[self.facts.slot[last]] >= 0)[:, None, None]
        new = torch.stack([z, after, shifts[:, last]], dim=-1).transpose(0, 1)
        out[: last.shape[0], index] = torch.where(mine, new, out[: last.shape[0], index])


class Steering:
    """Tables, hooks and step reports of one model. Mutates activations in flight and the tables; owns no thread."""

    def __init__(self, model: Any, layers: int, width: int, config: EngineConfig) -> None:
        self.model, self.layers, self.config = model, layers, config
        device, slots = model.device, config.max_requests + 1
        self.slots, self.rope = SlotTable(slots, device, context_of(model.config)), Rope(model, slots)
        self.tables = {
            point: VectorTable(layers, width, config.max_policies, slots, device) for point in family_of(model).sites
        }
        self.switches = Switches()
        self.report = torch.zeros(config.max_requests, CLASSES.stop, device=device)
        self.trace = torch.zeros(config.max_requests, layers, 3, device=device)  # z before, z after, shift
        self.head = Head(self.slots, config.max_requests)
        self.captured = {
            point: torch.zeros(config.max_requests, layers, width, device=device) for point in config.capture
        }
        self._facts: Facts | None = None
        self._hooks: dict[tuple[HookPoint, int], Any] = {}
        self._hooked: tuple[int, ...] = ()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks sit in the model inside this context and are gone after it, whatever happens."""
        begin = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        end = self.model.base_model.register_forward_hook(self._end)
        try:
            self.rehook()
            with self.rope.attached(lambda: self._facts):
                yield
        finally:
            begin.remove()
            end.remove()
            while self._hooks:
                self._hooks.popitem()[1].remove()
            self._hooked, self._facts = (), None

    def rehook(self) -> bool:
        """Puts a hook on every layer that is captured or that a resident policy reads, and on no other; whether anything changed.

        Between two forward passes only. Raises what attaching raises; the model is then as `attached` leaves it.
        """
        versions = tuple(table.version for table in self.tables.values())
        if versions == self._hooked:
            return False
        wanted = {
            (point, layer)
            for point, table in self.tables.items()
            for layer in (range(self.layers) if point in self.captured else table.active)
        }
        for key in self._hooks.keys() - wanted:
            self._hooks.pop(key).remove()
        blocks = decoder_layers(self.model)
        for point, layer in sorted(wanted - self._hooks.keys()):
            where = site(self.model, point)
            module = blocks[layer].get_submodule(where.module) if where.module else blocks[layer]
            act = self._hook(point, layer)
            self._hooks[point, layer] = (
                module.register_forward_pre_hook(_on_input(act))
                if where.side == "input"
                else module.register_forward_hook(_on_output(act))
            )
        self._hooked = versions
        return True

    def _begin(self, _module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        if "logits_processor_args" not in kwargs:
            self._facts = None  # not our engine's forward
        elif self._facts is not None and self.switches.steady:
            self._facts.advance(kwargs)
        else:
            self._facts = facts = Facts(kwargs, self.slots)
            for point, table in self.tables.items():
                wanted = table.in_use if self.switches.rows is None else self.switches.rows.get(point, ())
                if wanted and (rows := table.rows(wanted)).layers:  # none where every layer is idle
                    facts.moves[point] = Moves(facts, table, rows, self.switches)

    def _end(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Looks at every token, not only at those that choose: what is not finite stays so through the layers, unseen by others."""
        if self._facts is not None:
            self._facts.broken = (output[0][0] * 0).sum(-1, dtype=torch.float32)

    def _hook(self, point: HookPoint, layer: int) -> Callable[[torch.Tensor], torch.Tensor | None]:
        def act(hidden: torch.Tensor) -> torch.Tensor | None:
            facts = self._facts
            if facts is None:
                return None
            if point in self.captured:
                self.captured[point][: facts.last.shape[0], layer] = hidden[0, facts.last].float()
            moves = facts.moves.get(point)
            return None if moves is None or layer not in moves.rows.layers else moves.move(layer, hidden)

        return act

    def finish(self, scores: torch.Tensor) -> torch.Tensor:
        """Ends a step behind the logits: writes the report and applies each request's sampling.

        scores (R, V) raw float32 logits, rows in the order of the requests that got a new token. Returns the processed scores.
        """
        facts = self._facts
        if facts is None:
            raise RuntimeError("a step was finished that never began: the model's pre-hook did not run")
        report = self.report[: scores.shape[0]]
        self._account(facts, report)
        _spoil(facts, report)
        label = self._said(facts) if self.switches.choice else None
        return self.head.finish(scores, facts.slots_new, facts.position[facts.last], report, self.switches, label)

    def _said(self, facts: Facts) -> torch.Tensor | None:
        """See `Moves.said`, of all hook points: no token has vectors at two of them."""
        said = [found for moves in facts.moves.values() if (found := moves.said()) is not None]
        return reduce(torch.maximum, said) if said else None

    def _account(self, facts: Facts, report: torch.Tensor) -> None:
        """Writes counts (batch order) and reads (order of new tokens) to the report, and the trace."""
        if self.switches.trace:
            self.trace.zero_()
        if not facts.moves:
            report[:, : COUNTS + 2] = 0.0
            return
        shifts = [moves.shifts() for moves in facts.moves.values()]
        if self.switches.trace:
            for moves, shift in zip(facts.moves.values(), shifts, strict=True):
                moves.trace(shift, self.trace)
        report[:, COUNTS : COUNTS + 2] = reduce(torch.add, (moves.reads() for moves in facts.moves.values())).T
        cells = torch.cat(shifts)  # (cells of a token, T)
        moved, counted = (cells != 0).sum(0, dtype=torch.float32), facts.counted
        counts = [torch.ones_like(counted), moved.clamp(max=1.0), moved, cells.sum(0), cells.amax(0)]
        per_token = torch.stack(counts, dim=-1).mul_(counted[:, None])
        if facts.steady:
            report[:, :COUNTS] = per_token
            return
        # Padding falls into a row that is dropped.
        sums = torch.zeros(report.shape[0] + 1, COUNTS, device=counted.device)
        sums[:, :4].index_add_(0, facts.request, per_token[:, :4])
        sums[:, 4].scatter_reduce_(0, facts.request, per_token[:, 4], "amax")
        report[:, :COUNTS] = sums[:-1]


def _spoil(facts: Facts, report: torch.Tensor) -> None:
    """Makes the first count of a request NaN where one of its tokens is not finite."""
    if facts.broken is None:
        raise RuntimeError(
            "a step was finished without the hook behind the model's last layer; nothing of it is served"
        )
    broken = facts.broken.to(report.device)
    if not facts.steady:
        broken = torch.zeros(report.shape[0] + 1, device=report.device).index_add_(0, facts.request, broken)[:-1]
    report[:, 0] += broken


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
