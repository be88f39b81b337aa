"""What is done to an answer, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace

from merasteer.types.names import Method, Positions, Tokens
from merasteer.types.requests import GenerationRequest, Sampling
from merasteer.types.steering import Policy
from merasteer.types.tasks import ServedTask

__all__ = ["UNCORRECTED", "Correction"]


@dataclass(frozen=True)
class Correction:
    """What a candidate is, what is tested, what an artifact holds and what is served (docs/method.md section 6).

    method: none corrects nothing. readout: the name under which the engine holds readouts and steps; None where nothing is read.
    alpha, strength, positions, layers: see `Policy`; what is done where the gate opens is the law of the readout's vectors. bias: added
    where the answer is chosen, one value per label.
    """

    method: Method = "none"
    readout: str | None = None
    alpha: float | None = None
    strength: float = 0.0
    positions: Positions = "generation"
    layers: tuple[int, ...] | None = None
    bias: tuple[float, ...] | None = None

    @property
    def policy(self) -> Policy | None:
        """What the engine is to read and move; None: nothing."""
        if self.readout is None:
            return None
        return Policy(self.readout, self.alpha, self.strength, self.positions, self.layers)

    @property
    def moves(self) -> bool:
        """Whether it may move an activation."""
        return self.readout is not None and (self.alpha is not None or self.strength != 0.0)

    def watching(self) -> Correction:
        """The same readouts read, and nothing corrected."""
        return Correction(readout=self.readout)

    def under(self, readout: str | None) -> Correction:
        """The same with readouts and steps that are held under another name."""
        return replace(self, readout=readout)

    def request(
        self,
        task: ServedTask | None,
        prompt: Tokens,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: tuple[str, ...] = (),
        logprobs: bool = False,
        trace: bool = False,
        ignore_eos: bool = False,
    ) -> GenerationRequest:
        """What asks the engine for an answer that is corrected so. The only place that makes a request of a task.

        max_new_tokens: None ends with the label, or with a free task's budget.
        """
        free = task if task is not None and task.choose == "free" else None
        return GenerationRequest(
            prompt=prompt,
            max_new_tokens=free.max_new_tokens if max_new_tokens is None and free is not None else max_new_tokens,
            policy=self.policy,
            sampling=sampling or Sampling(),
            stop=stop,
            choice=None if task is None else task.choice,
            variants=None if task is None else task.answer_tokens,
            position="last" if task is None else task.position,
            label_bias=self.bias,
            acts=None if free is None else free.max_new_tokens,
            logprobs=logprobs,
            trace=trace and self.readout is not None,
            ignore_eos=ignore_eos,
        )


UNCORRECTED = Correction()
