"""The seam: what the library must have, and what our rows and facts say of a batch, padding included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager

from merasteer.engine import Engine, EngineConfig, wrap_model
from merasteer.engine.seams import _SEAMS, TESTED, check_seams
from merasteer.engine.steer import Facts, Moves, Steering
from merasteer.engine.switches import COUNTS, Switches
from merasteer.engine.tables import NEVER, SlotTable
from merasteer.errors import EngineFailed, InvalidInput, SeamMissing, UnsupportedModel
from merasteer.types import GenerationRequest, Policy


def test_the_installed_version_has_every_seam():
    check_seams()


@pytest.mark.parametrize(
    ("name", "other", "told"),
    [
        ("_generation_step", None, "_generation_step is missing"),
        ("cancel_request", lambda self, number: None, "cancel_request lacks request_id"),
        ("_run_generation_loop", lambda self, device, *more, quiet=True: None, "_run_generation_loop asks for device"),
    ],
)
def test_a_seam_that_does_not_fit_fails_start_up_and_is_named(llama, monkeypatch, name, other, told):
    monkeypatch.setattr(ContinuousBatchingManager, name, other)
    with pytest.raises(SeamMissing, match=rf"ContinuousBatchingManager\.{told}.* tested with 5\.23 and 5\.24"):
        Engine(llama).start()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.model.modules())


def test_the_versions_that_are_let_in_are_those_that_are_tested(root: Path):
    low, high = re.search(r'"transformers>=5\.(\d+),<5\.(\d+)"', (root / "pyproject.toml").read_text("utf-8")).groups()
    assert [f"5.{minor}" for minor in range(int(low), int(high))] == list(TESTED)
    pinned = re.search(r"^transformers==(\d+\.\d+)", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE)[1]
    assert pinned in TESTED
    assert any(transformers.__version__.startswith(f"{version}.") for version in TESTED)


def test_every_seam_has_its_reason_in_the_documentation(root: Path):
    page = (root / "docs" / "seams.md").read_text("utf-8")
    assert [name for _, name, _ in _SEAMS if name not in page] == []
    assert all(version in page for version in TESTED)


def facts(table: SlotTable) -> Facts:
    """Three requests of 3, 1 and 2 tokens in slots 2, 1, 3, the second without a new token, padded to 9 tokens and 4 requests."""
    return Facts(
        {
            "cu_seq_lens_q": torch.tensor([0, 3, 4, 6, 6], dtype=torch.int32),
            "position_ids": torch.tensor([[0, 1, 2, 7, 4, 5, 0, 0, 0]], dtype=torch.int32),
            "logits_indices": torch.tensor([2, 5, 0, 0], dtype=torch.int32),
            "logits_processor_args": torch.tensor([[2, 1, 3, 0], [2, 3, 0, 0]], dtype=torch.int32),
        },
        table,
    )


def add(table, vectors) -> int:
    row = table.reserve(vectors)
    table.write(row, vectors)
    return row[0]


def test_padding_tokens_belong_to_slot_zero():
    table = SlotTable(5, torch.device("cpu"), 32)
    table.start[1:4] = torch.tensor([7, 2, 0])
    seen = facts(table)
    assert seen.slot.tolist() == [2, 2, 2, 1, 3, 3, 0, 0, 0]
    assert seen.eligible.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 0]
    table.counted[3] = 5  # positions below 5 of slot 3 are in the counts already
    assert facts(table).counted.tolist() == [0, 0, 1, 1, 0, 1, 0, 0, 0]
    assert int(table.start[0]) == NEVER


def test_counts_go_to_their_own_request_and_padding_to_none(llama, make_vectors):
    steering = Steering(llama.model, llama.layers, llama.width, EngineConfig(max_requests=4))
    table = steering.tables["residual"]
    row = add(table, make_vectors(0, "residual"))
    steering.slots.start[1:4] = torch.tensor([7, 2, 0])
    steering._facts = seen = facts(steering.slots)
    steering.switches = Switches(strength=False, trace=False)
    moves = seen.moves["residual"] = Moves(seen, table, table.rows((row,)), steering.switches)
    moves.rows.norm.fill_(1.0)
    moves.size.fill_(1.0)
    moves.pull.zero_()
    moves.z, moves.again = ({layer: torch.zeros(n, 1) for layer in moves.rows.reports} for n in (9, 4))
    seen.broken = torch.zeros(9)  # every token is finite
    padding_and_others = 7.0
    for token, amounts in {
        0: [padding_and_others],
        2: [3.0],
        4: [2.0, 1.0],
        5: [0.0, 1.0],
        7: [padding_and_others] * 4,
    }.items():
        moves.pull[: len(amounts), token, 0] = torch.tensor(amounts)
    steering.finish(torch.randn(4, llama.vocab))
    assert steering.report[:, :COUNTS].tolist() == [[1, 1, 1, 3, 3], [1, 0, 0, 0, 0], [2, 2, 3, 4, 2], [0, 0, 0, 0, 0]]


def test_hooks_follow_what_is_resident(llama, make_vectors):
    steering = Steering(llama.model, llama.layers, llama.width, EngineConfig())

    def hooked():
        """Without the one behind the last layer, which looks at every token."""
        return sum(len(module._forward_hooks) for module in llama.model.modules()) - 1

    with steering.attached():
        assert hooked() == 0
        row = add(steering.tables["residual"], make_vectors(0, "residual", idle=(1, 3)))
        assert steering.rehook()
        assert (hooked(), {layer for _, layer in steering._hooks}) == (2, {0, 2})
        assert not steering.rehook()
        other = add(steering.tables["residual"], make_vectors(1, "residual", idle=(0,)))
        assert steering.rehook()
        assert hooked() == 4
        for gone in (row, other):
            steering.tables["residual"].write((gone,), None)
        assert steering.rehook()
        assert hooked() == 0


def test_a_step_without_its_pre_hook_is_an_error(llama):
    steering = Steering(llama.model, llama.layers, llama.width, EngineConfig())
    with pytest.raises(RuntimeError, match="never began"):
        steering.finish(torch.randn(1, llama.vocab))


def test_hooks_are_gone_after_any_error(llama):
    steering = Steering(llama.model, llama.layers, llama.width, EngineConfig())
    with pytest.raises(ZeroDivisionError), steering.attached():
        1 / 0  # noqa: B018
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in llama.model.modules())


def test_an_unknown_request_stops_the_loop_rather_than_going_unsteered(llama):
    engine = Engine(llama)
    with pytest.raises(EngineFailed, match="not known"):
        engine.on_batch([type("State", (), {"request_id": "stranger"})()], decoding=True)


def test_unknown_architectures_are_refused():
    class StableLmForCausalLM(nn.Module):
        pass

    with pytest.raises(
        UnsupportedModel, match="StableLmForCausalLM is not in the hook table; use one of GPT2LMHeadModel"
    ):
        wrap_model(StableLmForCausalLM(), None, "x")


def test_vectors_of_another_width_are_refused(llama, make_vectors):
    v = make_vectors(1, "residual")
    with Engine(llama) as engine:
        narrow = type(v)("residual", v.weight[:, :10], v.bias, v.step[:, :10], 0)
        with pytest.raises(InvalidInput, match=r"does not fit the model's \(4, 48\)"):
            engine.register("narrow", narrow)
        engine.register("v", v)
        with pytest.raises(InvalidInput, match="registered already"):
            engine.register("v", v)
        assert engine.submit(GenerationRequest((1, 2, 3), 1, Policy("v", 0.5))).result(30).predicted_error is not None


def test_vectors_that_are_idle_everywhere_read_and_move_nothing(llama, make_vectors):
    idle = make_vectors(0, "residual", idle=(0, 1, 2, 3))
    request = GenerationRequest((5, 6, 7), 4)
    with Engine(llama) as engine:
        bare = engine.submit(request).result(30)
        engine.register("idle", idle)
        answer = engine.submit(GenerationRequest((5, 6, 7), 4, Policy("idle", 0.01))).result(30)
        assert engine.failure is None
    assert answer.tokens == bare.tokens
    assert (answer.steering.cells, answer.steering.steered_cells) == (0, 0)
