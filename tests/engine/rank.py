"""One rank of a tensor-parallel group, run by test_tensor_parallel.py: MODEL OUT [forget | die].

Rank 0 sends the requests; every rank writes what its hooks and tables saw to OUT/rankN.json, rank 0 the answers to OUT/answers.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from merasteer.engine import Engine, EngineConfig, load_model
from merasteer.errors import EngineFailed
from merasteer.types import GenerationRequest, LabelChoice, Policy, Sampling, SteeringVectors

WIDTH, LAYERS = 48, 4
LABELS = LabelChoice((((5,), (6,)), ((7, 8),), ((7, 8, 10), (9, 11)), ((9,),)), end=299)
CONFIG = EngineConfig(max_requests=6, cache_tokens=256, page_size=8, max_batch_tokens=32)


def vectors(seed: int, hook_point: str) -> SteeringVectors:
    weight = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.3
    return SteeringVectors(hook_point, weight, torch.zeros(LAYERS), weight / (weight * weight).sum(-1, keepdim=True), 2)  # type: ignore[arg-type]


def requests() -> list[GenerationRequest]:
    """Different prompts, policies, positions and sampling; some share a prefix; more than fit at once, so that some are evicted.

    Some choose among labels that begin alike, which is decided at points behind the first token.
    """
    policies = [
        None, Policy("a", 0.3), Policy("b", 0.4, positions="all"), Policy("a", None, 0.5), Policy("a", 0.2, positions=(0, 2), layers=(1,)),
    ]  # fmt: skip
    sampling = [Sampling(), Sampling(1.0, seed=5)]
    return [
        GenerationRequest(
            tuple((3 + (i % 3) + 7 * j) % 300 for j in range(6 + 2 * (i % 5))), 24, policies[i % 5], sampling[i % 2],
            stop=("w1",) if i % 7 == 3 else (), logprobs=True, choice=LABELS if i % 4 == 1 else None,
        )
        for i in range(15)
    ]  # fmt: skip


def answered(engine: Engine) -> list[dict[str, Any]]:
    with engine.held():
        futures = [engine.submit(request) for request in requests()]
        gone = engine.submit(GenerationRequest((1, 2, 3), 200))
    answers = [future.result(100) for future in futures]
    gone.cancel()
    again = engine.submit(requests()[1]).result(60)  # its slot is one that was used before
    return [
        {
            "tokens": answer.tokens,
            "reads": answer.predicted_error and [answer.predicted_error.before, answer.predicted_error.after],
            "cells": answer.steering.steered_cells,
            "label": answer.answer and answer.answer.label,
            "reason": answer.finish_reason,
        }
        for answer in [*answers, again]
    ]


def record(engine: Engine) -> list[str]:
    """A digest of every table behind each forward pass, with the slots of its requests."""
    seen: list[str] = []
    on_step = engine.on_step

    def watch(step: Any) -> None:
        steering = engine._steering
        tables = [steering.slots, steering.slots.choice, steering.slots.draws, *steering.tables.values()]
        tensors = [value for table in tables for value in vars(table).values() if isinstance(value, torch.Tensor)]
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
        slots = [engine._runs[part.request_id].slot for part in step.delivered if part.request_id in engine._runs]
        seen.append(f"{slots} {digest}")
        on_step(step)

    engine.on_step = watch  # type: ignore[method-assign]
    return seen


def main(model: str, out: str, fault: str = "") -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    loaded = load_model(model, device="cpu", dtype="float32", tensor_parallel=world)
    engine = Engine(loaded, CONFIG)
    seen = record(engine)
    engine.start()
    try:
        if not (fault == "forget" and rank == 1):
            engine.register("a", vectors(1, "residual"))
        engine.register("b", vectors(2, "mlp_input"))
        if fault == "die" and rank == 1:
            steps = engine.on_batch
            engine.on_batch = lambda *given, **named: 1 / 0 if len(seen) > 3 else steps(*given, **named)  # type: ignore
        if engine.leads:
            try:
                result: Any = answered(engine)
            except EngineFailed as error:
                result = {"failed": str(error), "dead": engine.failure is not None}
            Path(out, "answers.json").write_text(json.dumps(result))
        else:
            engine.follow()
            try:
                engine.submit(GenerationRequest((1, 2), 1))
            except EngineFailed as error:
                seen.append(str(error))
    finally:
        engine.stop()
    if not fault:
        Path(out, f"rank{rank}.json").write_text(json.dumps({"seen": seen, "runs": len(engine._runs)}))
    os._exit(0)  # gloo's threads are not waited for


if __name__ == "__main__":
    main(*sys.argv[1:])
