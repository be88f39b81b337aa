"""All that is behind the logits: labels, the label bias, sampling, log-probabilities, and whether the numbers are finite.

Each row pays for what it asks: on a CPU, where shapes may differ from step to step, work over the vocabulary is done for those rows alone.
What is chosen other than by the largest logit is forced: its own logit is raised above all others, which the library then finds.
"""

from __future__ import annotations

import torch

from merasteer.engine.config import MAX_LABELS, MAX_VARIANTS
from merasteer.engine.switches import CHANGED, CLASSES, LARGEST, LOGPROB, SAID, SPELT, Switches
from merasteer.engine.tables import SlotTable

__all__ = ["Head"]


class Head:
    """The head of one engine. R requests with a new token, V vocabulary; slots and position are (R,).

    options (R, labels · spellings): at a later branching point, the log-probability of each spelling's token.
    """

    def __init__(self, slots: SlotTable, requests: int) -> None:
        self._slots = slots
        self.options = torch.zeros(requests, MAX_LABELS * MAX_VARIANTS, device=slots.bias.device)

    def finish(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        position: torch.Tensor,
        report: torch.Tensor,
        switches: Switches,
        said: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The scores (R, V) whose largest is each request's token; writes the reads of the report. Mutates `logits`.

        position: of the tokens whose logits these are. said (R,): the label that a label probe says, -1 where none does.
        """
        report[:, LARGEST] = logits.amax(-1)  # not finite where a logit is none, or all are -inf
        scores = self._biased(logits, slots, position) if switches.bias else logits
        if switches.classes:
            report[:, CLASSES] = _class_logits(scores, self._slots.variants[slots])
        forced = self._drawn(scores, slots, position) if switches.sampling else None
        if switches.choice:
            self._choose(logits, slots, position, report, said, points=switches.points)
        if switches.forced:
            due = self._slots.choice.due(slots, position)
            forced = due if forced is None else torch.where(due >= 0, due, forced)
        if switches.bias:
            self._end_bias(logits, _chosen(scores, forced), slots, position, report, sampling=switches.sampling)
        if switches.logprobs:
            self._log_probabilities(logits, scores, forced, slots, report)
        if forced is None:
            return scores
        at = forced.clamp_min(0)[:, None]
        top = torch.where(forced[:, None] >= 0, torch.finfo(scores.dtype).max, scores.gather(1, at))
        return scores.scatter_(1, at, top)

    def _drawn(self, scores: torch.Tensor, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """What the rows that sample draw, (R,), -1 for the others."""
        samples = self._slots.draws.temperature[slots] > 0
        rows = _rows(samples)
        drawn = self._slots.draws.pick(scores[rows], slots[rows], position[rows] + 1)
        tokens = torch.full_like(slots, -1).index_copy_(0, rows, drawn)
        return torch.where(samples, tokens, -1)

    def _log_probabilities(
        self,
        logits: torch.Tensor,
        scores: torch.Tensor,
        forced: torch.Tensor | None,
        slots: torch.Tensor,
        report: torch.Tensor,
    ) -> None:
        """Of the chosen tokens under the model's own logits, for the rows that ask."""
        rows = _rows(self._slots.logprobs[slots])
        raw = logits[rows]
        chosen = _chosen(scores[rows], None if forced is None else forced[rows])[:, None]
        found = (raw.gather(1, chosen) - raw.logsumexp(-1, keepdim=True))[:, 0]
        report[:, LOGPROB] = report[:, LOGPROB].index_copy(0, rows, found)

    def _choose(
        self,
        logits: torch.Tensor,
        slots: torch.Tensor,
        position: torch.Tensor,
        report: torch.Tensor,
        said: torch.Tensor | None,
        *,
        points: bool,
    ) -> None:
        """Rows at the point where their label is chosen: writes its spelling and the labels' scores to the report."""
        found = self._slots.choice.choose(logits, slots, position, self._slots.draws, said)
        here = found.here[:, None]
        report[:, CLASSES] = torch.where(here, found.scores, report[:, CLASSES])
        report[:, CHANGED] = torch.where(found.here, found.changed.float(), report[:, CHANGED])
        if said is not None:
            report[:, SAID] = (said >= 0).float()
        report[:, SPELT] = found.best.float()
        if points:
            self.options[: report.shape[0]] = found.options
        self._slots.end_with_label(slots)

    def _biased(self, scores: torch.Tensor, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Scores (R, V) with each free request's bias added to its variants' logits, as far as its answer is still to be chosen."""
        variants = self._slots.variants[slots]  # (R, labels, spellings)
        bias = torch.where(position <= self._slots.bias_until[slots], 1.0, 0.0)[:, None] * self._slots.bias[slots]
        added = torch.where(variants >= 0, bias[:, :, None], 0.0).flatten(1)
        return scores.scatter_add(1, variants.clamp_min(0).flatten(1), added)

    def _end_bias(
        self,
        logits: torch.Tensor,
        chosen: torch.Tensor,
        slots: torch.Tensor,
        position: torch.Tensor,
        report: torch.Tensor,
        *,
        sampling: bool,
    ) -> None:
        """Free answers: writes where the bias changed the token. Once a label's token is chosen nothing is biased behind it."""
        variants = self._slots.variants[slots]
        alone = _chosen(logits, self._drawn(logits, slots, position) if sampling else None)
        free = (variants >= 0).flatten(1).any(-1)
        report[:, CHANGED] = torch.where(free, (alone != chosen).float(), report[:, CHANGED])
        answered = (variants == chosen[:, None, None]).flatten(1).any(-1)
        self._slots.bias.index_put_((slots,), torch.where(answered[:, None], 0.0, self._slots.bias[slots]))


def _chosen(scores: torch.Tensor, forced: torch.Tensor | None) -> torch.Tensor:
    """The token of each row, (R,)."""
    best = scores.argmax(-1)
    return best if forced is None else torch.where(forced >= 0, forced, best)


def _rows(wanted: torch.Tensor) -> torch.Tensor:
    """The rows that want something, and on a device with captured graphs all of them."""
    if wanted.device.type == "cpu":
        return wanted.nonzero()[:, 0]
    return torch.arange(wanted.shape[0], device=wanted.device)


def _class_logits(scores: torch.Tensor, variants: torch.Tensor) -> torch.Tensor:
    """The largest logit over each class's token variants (docs/method.md, error target). scores (R, V), variants (R, C, M)."""
    picked = scores.gather(1, variants.clamp_min(0).flatten(1)).view(variants.shape)
    return picked.masked_fill(variants < 0, float("-inf")).amax(-1)
