"""Device tables that the layer hooks read: resident steering vectors, and one row per slot.

Shapes: P = max_policies + 1 rows of vectors per hook point (row 0 is "off": zeros), S slots (slot 0 is padding), L layers, d width.
All are allocated once; only the generation thread writes them, in stream order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from merasteer.engine.choice import ChoiceTable
from merasteer.engine.config import MAX_LABELS, MAX_VARIANTS
from merasteer.engine.sampling import Draws
from merasteer.errors import InvalidInput
from merasteer.method.steering import Laws
from merasteer.types import ClassReadouts, GenerationRequest, Law, Policy, SteeringVectors

__all__ = ["NEVER", "OPEN", "Rows", "SlotTable", "VectorTable", "acting_tokens", "moves", "reach", "untouched"]

NEVER = 2**31 - 1  # a position that no token reaches
OPEN = ("generation", "all")  # positions that take in every generated token
LARGEST = 1e30  # of a readout under the closed form: all tokens of a pass meet it, and their products must stay finite


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a `VectorTable`, side by side for the products of a forward pass. La active layers, P rows, d width.

    layers: active layer -> its place in what follows; index (La,) the layers themselves. column (all rows,): a row's place among these,
    0 for the others. vectors: per layer weight (d, P), bias (P,), step (P, d). bias, along, norm (La, P). reports: layers that one reports.
    laws: per layer those of the columns that act there, None where all have the closed form.
    own: columns that are not class readouts; these come last, and `vectors` leaves them out where a layer has none.
    """

    count: int
    layers: Mapping[int, int]
    index: torch.Tensor
    column: torch.Tensor
    vectors: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]
    bias: torch.Tensor
    along: torch.Tensor
    norm: torch.Tensor
    reports: frozenset[int]
    laws: tuple[Laws | None, ...]
    own: int


class VectorTable:
    """The steering vectors of one hook point, and which row of them each slot uses. Vectors with class readouts have a row for each class
    too.

    weight, step (L, P, d), bias (L, P), along = w·ũ (L, P) with the w that is reported, norm = ‖ũ‖ (L, P); policy (S,) row, report (S,)
    layer or -1, logit_alpha (L, S) +inf where nothing may move, strength (L, S).
    """

    def __init__(self, layers: int, width: int, policies: int, slots: int, device: torch.device) -> None:
        rows = policies + 1
        self.weight = torch.zeros(layers, rows, width, device=device)
        self.step = torch.zeros(layers, rows, width, device=device)
        self.bias = torch.zeros(layers, rows, device=device)
        self.along = torch.zeros(layers, rows, device=device)
        self.norm = torch.zeros(layers, rows, device=device)
        self.policy = torch.zeros(slots, dtype=torch.long, device=device)
        self.report = torch.full((slots,), -1, dtype=torch.long, device=device)
        self.logit_alpha = torch.full((layers, slots), float("inf"), device=device)
        self.strength = torch.zeros(layers, slots, device=device)
        self._free = list(range(rows - 1, 0, -1))
        self._vectors: dict[int, SteeringVectors] = {}
        self._classes: dict[int, tuple[int, ...]] = {}  # row -> the rows of its class readouts, where it has some
        self.active: frozenset[int] = frozenset()  # layers that some resident readout reads
        self.in_use: tuple[int, ...] = ()  # rows of the resident vectors
        self.version = 0  # counts the changes of what is resident
        self._rows: tuple[tuple[int, ...], int, Rows] | None = None  # the last answer of `rows`

    def reserve(self, vectors: SteeringVectors) -> tuple[int, ...]:
        """Free rows for these vectors, to be written: their own, and one for each class. Any thread, under a lock.

        Raises InvalidInput on a wrong shape, a readout that would overflow, or a full table.
        """
        layers, _, width = self.weight.shape
        if vectors.weight.shape != (layers, width):
            raise InvalidInput(
                f"steering vectors: shape {tuple(vectors.weight.shape)} does not fit the model's ({layers}, {width})"
            )
        if vectors.law == "closed_form" and float(vectors.weight.abs().max()) > LARGEST:
            raise InvalidInput(f"steering vectors: weight holds a value above {LARGEST:g}; fit the probe again")
        if len(self._free) < vectors.rows:
            raise InvalidInput(
                f"steering vectors: {vectors.rows} rows wanted, {len(self._free)} of {self.weight.shape[1] - 1} free; raise max_policies"
            )
        return tuple(self._free.pop() for _ in range(vectors.rows))

    def release(self, rows: tuple[int, ...]) -> None:
        """Gives rows that no slot uses any more to the next who reserves some. Any thread, under a lock."""
        self._free += rows
        self._free.sort(reverse=True)

    def write(self, rows: tuple[int, ...], vectors: SteeringVectors | None) -> None:
        """Makes vectors resident in reserved rows; None: empties them."""
        row, *classes = rows
        if vectors is None:
            for table in (self.weight, self.step, self.bias, self.along, self.norm):
                table[:, list(rows)] = 0
            del self._vectors[row]
            self._classes.pop(row, None)
        else:
            self.weight[:, row], self.step[:, row] = vectors.weight.to(self.weight), vectors.step.to(self.step)
            # An idle layer reads as 0 whatever its bias, also where another row makes the layer active.
            idle = vectors.weight.abs().sum(-1) == 0
            self.bias[:, row] = vectors.bias.masked_fill(idle, 0.0).to(self.bias)
            self.along[:, row] = _finite((vectors.weight.double() * vectors.step.double()).sum(-1)).to(self.along)
            self.norm[:, row] = _finite(vectors.step.double().norm(dim=-1)).to(self.norm)
            self._vectors[row] = vectors
            if vectors.classes is not None:
                self._classes[row] = tuple(classes)
                self._write_classes(tuple(classes), vectors, vectors.classes)
        self._refresh()

    def _write_classes(self, rows: tuple[int, ...], vectors: SteeringVectors, classes: ClassReadouts) -> None:
        for i, layer in enumerate(vectors.active_layers):
            at = layer, list(rows)
            self.weight[at], self.bias[at] = classes.weight[i].to(self.weight), classes.bias[i].to(self.bias)
            self.step[at] = classes.step[i].to(self.step)
            step = classes.step[i].double()
            self.along[at] = _finite(step @ vectors.weight[layer].double()).to(self.along)
            self.norm[at] = _finite(step.norm(dim=-1)).to(self.norm)

    def _refresh(self) -> None:
        self.active = frozenset(layer for vectors in self._vectors.values() for layer in vectors.active_layers)
        self.in_use = tuple(sorted(self._vectors))
        self.version += 1

    def rows(self, wanted: tuple[int, ...]) -> Rows:
        """The rows of a batch, made once for as long as they stay the same: most steps follow a step of the same requests."""
        if self._rows is None or self._rows[:2] != (wanted, self.version):
            self._rows = (wanted, self.version, self._side_by_side(wanted))
        return self._rows[2]

    def _side_by_side(self, wanted: tuple[int, ...]) -> Rows:
        resident = [self._vectors[row] for row in wanted]
        layers = sorted({layer for vectors in resident for layer in vectors.active_layers})
        device = self.weight.device
        every = [*wanted, *(row for own in wanted for row in self._classes.get(own, ()))]
        place = {row: i for i, row in enumerate(every)}
        index, picked = torch.tensor(layers, dtype=torch.long, device=device), torch.tensor(every, device=device)
        column = torch.zeros(self.weight.shape[1], dtype=torch.long, device=device)
        column[picked] = torch.arange(len(every), device=device)
        weight, bias, step = (table[index][:, picked] for table in (self.weight, self.bias, self.step))
        laws = tuple(self._laws(layer, wanted, place) for layer in layers)
        widths = [len(wanted) if one is None or one.classes is None else len(every) for one in laws]
        return Rows(
            count=len(every),
            layers={layer: i for i, layer in enumerate(layers)},
            index=index,
            column=column,
            vectors=tuple((weight[i, :n].T.contiguous(), bias[i, :n], step[i, :n]) for i, n in enumerate(widths)),
            bias=bias,
            along=self.along[index][:, picked],
            norm=self.norm[index][:, picked],
            reports=frozenset(vectors.report_layer for vectors in resident),
            laws=laws,
            own=len(wanted),
        )

    def _laws(self, layer: int, wanted: tuple[int, ...], place: Mapping[int, int]) -> Laws | None:
        """Of a layer's columns. place: row -> its column. What does not act at the layer costs nothing there."""
        acting = [row for row in wanted if layer in self._vectors[row].active_layers]
        laws: list[Law] = [self._vectors[row].law if row in acting else "closed_form" for row in wanted]
        classes = {place[own]: [place[row] for row in self._classes[own]] for own in acting if own in self._classes}
        return Laws.of(laws, classes, len(place), self.weight.device)

    def assign(self, slot: int, row: int, policy: Policy) -> None:
        """Points a slot at a row of vectors, with the request's own α, strength and layers."""
        vectors = self._vectors[row]
        movable = movable_layers(vectors, policy)
        self.policy[slot] = row
        self.report[slot] = vectors.report_layer
        self.logit_alpha[:, slot] = float("inf")
        self.strength[:, slot] = 0.0
        if policy.alpha is not None:
            self.logit_alpha[movable, slot] = (
                torch.logit(torch.tensor(policy.alpha, dtype=torch.float64)).float().to(self.strength)
            )
        self.strength[movable, slot] = policy.strength

    def clear(self, slot: int) -> None:
        """Turns a slot off."""
        self.policy[slot] = 0
        self.report[slot] = -1
        self.logit_alpha[:, slot] = float("inf")
        self.strength[:, slot] = 0.0


def _finite(values: torch.Tensor) -> torch.Tensor:
    """The values in the range of float32: what others multiply by zero must not be infinite."""
    most = torch.finfo(torch.float32).max
    return values.clamp(-most, most)


def movable_layers(vectors: SteeringVectors, policy: Policy) -> list[int]:
    """Layers that a policy may move: the active ones, restricted to those the request names."""
    wanted = vectors.active_layers if policy.layers is None else policy.layers
    idle = set(wanted) - set(vectors.active_layers)
    if idle:
        raise InvalidInput(f"layers: {sorted(idle)} have no readout; choose among {list(vectors.active_layers)}")
    return list(wanted)


class SlotTable:
    """One row per running request, whatever its policy. Positions are absolute; S slots.

    start, stop: the policy may act on positions start ≤ p < stop, and on those that `listed` (S, context) marks. counted: first
    position to enter the counts, above 0 only after an eviction. variants (S, labels, spellings) token ids, -1 where none. bias
    (S, labels) is added to their logits at positions up to bias_until, and zeroed once a variant is chosen. Those who choose among labels
    have `choice` instead.
    """

    def __init__(self, slots: int, device: torch.device, context: int) -> None:
        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((slots,), value, dtype=dtype, device=device)

        self.start = full(NEVER, torch.int32)
        self.stop = full(NEVER, torch.int32)
        self.listed = torch.zeros(slots, context, dtype=torch.bool, device=device)
        self.counted = full(0, torch.int32)
        self.bias = torch.zeros(slots, MAX_LABELS, device=device)
        self.bias_until = full(-1, torch.int32)
        self.draws = Draws(full(0, torch.float32), full(0, torch.long), full(1, torch.float32), full(0, torch.long))
        self.choice = ChoiceTable(slots, device)
        self.logprobs = torch.zeros(slots, dtype=torch.bool, device=device)  # whether they are wanted
        self.variants = torch.full((slots, MAX_LABELS, MAX_VARIANTS), -1, dtype=torch.long, device=device)

    def assign(self, slot: int, request: GenerationRequest) -> None:
        """Writes a request's row."""
        self.start[slot], self.stop[slot] = acting_range(request)
        positions = request.policy.positions if request.policy is not None else ()
        if isinstance(positions, tuple):
            self.listed[slot, list(positions)] = True
        self.counted[slot] = 0
        sampling, draws = request.sampling, self.draws
        draws.temperature[slot] = 0.0 if sampling.greedy else float(sampling.temperature or 0.0)
        draws.top_p[slot] = 1.0 if sampling.top_p is None else sampling.top_p
        draws.top_k[slot] = sampling.top_k or 0
        draws.seed[slot] = sampling.seed
        self.choice.assign(slot, request)
        self.logprobs[slot] = request.logprobs
        self.variants[slot] = -1
        for label, ids in enumerate(request.variants or ()):
            self.variants[slot, label, : len(ids)] = torch.tensor(ids)
        self.give_bias(slot, request)

    def give_bias(self, slot: int, request: GenerationRequest) -> None:
        """Writes a request's label bias, also once more where its answer is to be chosen again."""
        if request.label_bias is not None and request.choice is None:
            self.bias[slot, : len(request.label_bias)] = torch.tensor(request.label_bias)
            self.bias_until[slot] = len(request.prompt) - 1 if request.position == "last" else NEVER

    def clear(self, slot: int) -> None:
        """Turns a slot off."""
        self.start[slot] = NEVER
        self.listed[slot] = False
        self.draws.temperature[slot] = 0.0
        self.choice.clear(slot)
        self.variants[slot] = -1
        self.bias[slot] = 0.0

    def end_with_label(self, slots: torch.Tensor) -> None:
        """Where a label has been chosen, the policies act no further than its last token."""
        self.stop.index_put_((slots,), torch.minimum(self.stop[slots], self.choice.ends(slots).int()))


def acting_range(request: GenerationRequest) -> tuple[int, int]:
    """(start, stop) of the absolute positions that a request's policy may act on, listed ones apart (docs/method.md, positions)."""
    if request.policy is None or isinstance(request.policy.positions, tuple):
        return NEVER, NEVER
    last, tokens = len(request.prompt) - 1, acting_tokens(request)
    stop = NEVER if tokens is None else last + tokens
    return {"all": (0, stop), "generation": (last, stop), "last": (last, last + 1)}[request.policy.positions]


def acting_tokens(request: GenerationRequest) -> int | None:
    """While how many tokens of the answer are chosen a policy may act at the most; None: without end."""
    return request.acts if request.choice is None else request.choice.longest


def moves(policy: Policy | None) -> bool:
    """Whether a policy can move anything; one without threshold and strength only reads."""
    return policy is not None and (policy.alpha is not None or policy.strength != 0.0)


def untouched(request: GenerationRequest) -> int:
    """How many of the prompt's first tokens have the same keys and values under any such request, so that they may be shared.

    A token's keys and values depend on the tokens up to it and on where among these a policy acts. Those before the first position that
    the policy may act on are the unsteered model's. The last prompt token is never among them: each request computes it itself, since
    its logits choose and the hooks read there. Nor are generated tokens, though after an eviction the library takes them for a prompt.
    """
    last, policy = len(request.prompt) - 1, request.policy
    if policy is None or not moves(policy):
        return last
    first = min(policy.positions) if isinstance(policy.positions, tuple) else acting_range(request)[0]
    return min(first, last)


def reach(request: GenerationRequest) -> int:
    """The most tokens that a request can have keys of: its prompt and its answer but for the last token, which is never fed back."""
    return len(request.prompt) + max(request.budget, 1 if request.choice is None else request.choice.longest) - 1


def resume_position(request: GenerationRequest, counted: int) -> int:
    """The position that is to be counted next after `counted` of those that the policy may act on."""
    if request.policy is not None and isinstance(request.policy.positions, tuple):
        ordered = sorted(request.policy.positions)
        return ordered[counted] if counted < len(ordered) else NEVER
    return min(acting_range(request)[0] + counted, NEVER)
