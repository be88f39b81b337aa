"""What a forward pass is asked for, and the columns of what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from merasteer.engine.config import MAX_LABELS
from merasteer.types import HookPoint

__all__ = ["CHANGED", "CLASSES", "COUNTS", "LARGEST", "LOGPROB", "READS", "SAID", "SPELT", "Switches"]

# Columns of a step's report: counts in batch order, reads in the order of the requests that got a new token.
COUNTS = 5  # tokens, steered tokens, steered cells, sum of shifts, largest shift
READS = 7  # z before, z after, and
LOGPROB = COUNTS + 2  # log-probability of the chosen token
CHANGED = COUNTS + 3  # 1 where the label bias, or a label probe, changed it
SPELT = COUNTS + 4  # spelling of the chosen label
LARGEST = COUNTS + 5  # logit
SAID = COUNTS + 6  # 1 where a label probe said the label
CLASSES = slice(COUNTS + READS, COUNTS + READS + MAX_LABELS)  # score of each class


@dataclass(frozen=True)
class Switches:
    """Which parts of a step some request of the batch needs. With captured graphs all are on: a graph cannot change.

    rows: the rows of vectors in the batch at each hook point; a hook point that is missing is left alone, None stands for all in use.
    choice: a label is chosen; points: a later branching point is asked about; forced: a label's tokens are due. classes, bias: of free
    answers.
    steady: the requests are those of the pass before, each then and now with one token, and their policies act on all that follows.
    """

    rows: Mapping[HookPoint, tuple[int, ...]] | None = field(default=None, hash=False)
    steady: bool = False
    strength: bool = True
    sampling: bool = True
    choice: bool = True
    points: bool = True
    forced: bool = True
    classes: bool = True
    bias: bool = True
    logprobs: bool = True
    trace: bool = True
