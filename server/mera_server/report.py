"""A plan and the engine's `Generation` -> the answer's body. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from typing import Any

from mera_server.replies import (
    AnswerReply,
    BriefReply,
    CountsReply,
    DetailsReply,
    GenerateReply,
    GuaranteeReply,
    MeraReply,
    PredictedErrorReply,
    TokenReply,
    TraceReply,
)
from mera_server.resolve import Plan
from merasteer.types import Decision, GeneratedToken, Generation

__all__ = ["brief", "details", "generate_reply", "mera_object", "step"]

Decode = Callable[[tuple[int, ...]], str]


def mera_object(plan: Plan, generation: Generation, decode: Decode) -> MeraReply:
    """What steering did, and what is guaranteed. Untouched requests report zeros, and `after` equal to `before`."""
    decision = _decision(plan, generation)
    touched = plan.decision is None
    return MeraReply(
        task=plan.task.name if plan.task else None,
        probe=plan.probe.digest if plan.probe else None,
        method=plan.method,
        decision=decision,
        reason=plan.reason,
        alpha=plan.alpha,
        predicted_error=_predicted_error(plan, generation, touched),
        steering=CountsReply(**asdict(generation.steering)) if touched else CountsReply(),
        guarantee=_guarantee(plan, generation),
        answer=_answer(plan, generation),
        trace=_trace(generation, decode) if plan.trace else None,
    )


def brief(mera: MeraReply) -> BriefReply:
    """`details: none`."""
    return BriefReply(decision=mera.decision, reason=mera.reason, alpha=mera.alpha)


def generate_reply(
    plan: Plan, generation: Generation, mera: MeraReply | BriefReply, decode: Decode, special: Collection[int]
) -> GenerateReply:
    """The body of `POST /generate`."""
    return GenerateReply(
        generated_text=plan.prompt + generation.text if plan.full_text else generation.text,
        details=DetailsReply(
            **details(plan, generation),
            prefill=[] if plan.tokens else None,
            tokens=_tokens(generation, decode, special) if plan.tokens else None,
        ),
        mera=mera,
    )


def details(plan: Plan, generation: Generation) -> dict[str, Any]:
    """How generation went, without its tokens: a `StreamDetailsReply`."""
    return {
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.prompt_tokens,
        "generated_tokens": len(generation.tokens),
        "seed": None if plan.sampling.greedy else plan.sampling.seed,
    }


def step(plan: Plan, token: GeneratedToken) -> dict[str, Any] | None:
    """A `StepReply`: what the step read and did that chose this token. None for `details: none`. Plain values: one for each token."""
    if plan.brief:
        return None
    touched, trace = plan.decision is None, token.trace
    after = token.after if touched else token.before
    return {
        "predicted_error": None if token.before is None else {"before": token.before, "after": after},
        "steered": token.steered and touched,
        "trace": None if trace is None else {"before": trace.before, "after": trace.after, "shift": trace.shift},
    }


def _decision(plan: Plan, generation: Generation) -> Decision:
    changed = generation.answer is not None and generation.answer.changed
    return plan.decision or ("steered" if generation.steering.steered_cells > 0 or changed else "not_needed")


def _predicted_error(plan: Plan, generation: Generation, touched: bool) -> PredictedErrorReply | None:
    read = generation.predicted_error
    if read is None or plan.probe is None or plan.reason == "no_probe":
        return None
    after = read.after if touched and plan.correction.moves else read.before
    return PredictedErrorReply(before=read.before, after=after, layer=read.layer, position=read.position)


def _guarantee(plan: Plan, generation: Generation) -> GuaranteeReply | None:
    if plan.probe is None or plan.reason == "no_probe":
        return None
    missing = generation.answer is None or generation.answer.label is None
    reasons = (*plan.why, *(("the answer is none of the labels",) if missing else ()))
    return GuaranteeReply(certified=not reasons, why="; ".join(reasons) or None, **asdict(plan.probe.certificate))


def _answer(plan: Plan, generation: Generation) -> AnswerReply | None:
    if plan.task is None or generation.answer is None:
        return None
    labels, answer = plan.task.labels, generation.answer
    return AnswerReply(
        label=None if answer.label is None else labels[answer.label],
        probabilities=dict(zip(labels, answer.probabilities, strict=True)),
        by=answer.by,
    )


def _trace(generation: Generation, decode: Decode) -> list[TraceReply]:
    """One entry for each generated token; empty where nothing was read."""
    return [
        TraceReply(
            id=token, text=decode((token,)), before=list(row.before), after=list(row.after), shift=list(row.shift)
        )
        for token, row in zip(generation.tokens, generation.trace or (), strict=False)
    ]


def _tokens(generation: Generation, decode: Decode, special: Collection[int]) -> list[TokenReply]:
    scores = generation.logprobs or (0.0,) * len(generation.tokens)
    return [
        TokenReply(id=token, text=decode((token,)), logprob=score, special=token in special)
        for token, score in zip(generation.tokens, scores, strict=True)
    ]
