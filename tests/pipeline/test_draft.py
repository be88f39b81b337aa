"""Stages that are stopped in the middle: what was finished is taken up, and the outputs are the same to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from merasteer.engine import LoadedModel
from merasteer.pipeline import Bars, Job, Options, prepare
from merasteer.pipeline import collect as stage
from merasteer.pipeline.collect import SPLITS, activations_of, answers_of, collect, layer_rows
from merasteer.pipeline.draft import Draft, draft_of, draft_path, journal_of
from merasteer.pipeline.stored import Layout, stored_in

LAYOUT = Layout({"label": ("I64", (5,)), "rows": ("BF16", (2, 5, 3)), "more": ("F32", (3, 4, 2))})


def filled(folder: Path, name: str = "collect") -> Path:
    path = folder / f"{name}.safetensors"
    with draft_of(folder, name, LAYOUT) as draft:
        for first in (0, 3):
            n = min(3, 5 - first)
            draft.write("label", first, torch.arange(first, first + n))
            draft.write("rows", first, (torch.arange(2 * n * 3).reshape(2, n, 3) + 100 * first).bfloat16())
            draft.finish(first + n)
        draft.write("more", 0, torch.arange(24.0).reshape(3, 4, 2))
        draft.close({"seconds": 1.5}, path)
    return path


def test_a_file_written_in_parts_is_a_safetensors_file(tmp_path: Path) -> None:
    path = filled(tmp_path)
    found = load_file(path)
    assert found["label"].tolist() == [0, 1, 2, 3, 4]
    assert found["rows"].dtype is torch.bfloat16
    assert found["rows"][1, :, 0].tolist() == [9, 12, 15, 306, 308]
    stored = stored_in(path)
    assert set(stored) == {"rows", "more"}
    for name, one in stored.items():
        assert one.mapped().shape == (one.shape[1], one.shape[0], one.shape[2])
        for layer in range(one.shape[0]):
            assert torch.equal(one.layer(layer), found[name][layer])
            assert torch.equal(one.mapped()[:, layer], found[name][layer])
    assert not draft_path(tmp_path, "collect").exists()


def test_only_finished_parts_of_the_same_layout_are_taken_up(tmp_path: Path) -> None:
    with draft_of(tmp_path, "collect", LAYOUT) as draft:
        draft.write("label", 0, torch.arange(3))
        draft.finish(1)
        draft.write("label", 3, torch.arange(2))  # not finished
    with draft_of(tmp_path, "collect", LAYOUT) as draft:
        assert draft.done == 1
    other = Layout({**LAYOUT.tensors, "label": ("I64", (6,))})
    with draft_of(tmp_path, "collect", other) as draft:
        assert draft.done == 0
    path = draft_path(tmp_path, "collect")
    for damage in (b"", b"x" * 100, path.read_bytes()[:20]):
        path.write_bytes(damage)
        with draft_of(tmp_path, "collect", other) as draft:
            assert draft.done == 0
            draft.finish(2)
    with draft_of(tmp_path, "collect", other) as draft:
        assert draft.done == 2


def test_a_journal_forgets_a_line_that_was_being_written(tmp_path: Path) -> None:
    with journal_of(tmp_path, "calibrate") as journal:
        journal.add("a", [1, None])
        journal.add("b", {"x": 0.1})
    path = draft_path(tmp_path, "calibrate")
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with journal_of(tmp_path, "calibrate") as journal:
            kept = cut == len(whole) or whole[:cut].count(b"\n")
            assert (journal.get("a"), journal.get("b")) == ([1, None] if kept else None, None)
            journal.add("c", 1)
        with journal_of(tmp_path, "calibrate") as journal:
            assert journal.get("c") == 1


def test_two_who_work_on_one_draft_do_not_write_into_each_others(tmp_path: Path) -> None:
    with draft_of(tmp_path, "collect", LAYOUT) as first:
        first.finish(1)
        with draft_of(tmp_path, "collect", LAYOUT) as second:
            assert second.done == 0
            assert second.path != first.path
        filled(tmp_path)
        assert first.path.exists()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


@pytest.fixture
def job(loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("merasteer.pipeline.collect.PART_ROWS", 30)
    return prepare(loaded, make_task(train=80, calibration=50, test=40), tmp_path / "store", Options(ordering=40))


def test_collect_goes_on_where_it_was_stopped_and_leaves_the_same_bits(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = collect(job, Bars())
    expected = {name: tensor.clone() for name, tensor in whole.tensors.items()}
    job.ground.path("collect").unlink()
    finish, asked = Draft.finish, []

    def stopped(self: Draft, parts: int) -> None:
        finish(self, parts)
        if parts in (2, 5):
            raise KeyboardInterrupt

    real = stage.generations
    monkeypatch.setattr(stage, "generations", lambda *a, **k: asked.append(len(a[1])) or real(*a, **k))
    monkeypatch.setattr(Draft, "finish", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            collect(job, Bars())
    found = collect(job, Bars())
    assert asked == [30, 30, 20, 30, 20, 30, 10]  # each part once
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    assert [path.name for path in job.ground.folder.iterdir()] == ["collect.safetensors"]


def test_what_is_stored_is_what_the_model_answers_row_by_row(job: Job) -> None:
    found = collect(job, Bars())
    for split in SPLITS:
        n = len(getattr(job.splits, split))
        assert answers_of(found, split).probabilities.shape == (n, 2)
        for point in job.options.hook_points:
            view = activations_of(found, point, split)
            assert view.shape == (n, job.loaded.layers, job.loaded.width)
            assert torch.equal(view[:, 1], layer_rows(found, point, 1, split))
    tokens = torch.tensor([job.prompts(job.splits.test).tokens[7]])
    with torch.no_grad():
        hidden = job.loaded.model(tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(activations_of(found, "residual", "test")[7, 1], hidden[2][0, -1], rtol=1e-4, atol=1e-4)
