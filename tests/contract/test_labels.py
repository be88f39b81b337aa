"""A task whose labels have several tokens and begin alike, over the real engine: every route chooses the same label and writes it out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from mera_server.loading import Serving, load
from mera_server.settings import Settings
from transformers import AutoTokenizer

from merasteer import demo, store
from merasteer.tasks import resolve
from merasteer.types import Generation, GenerationRequest, ServedTask, Task

from ..store.conftest import aged

LABELS = ("tech support", "tech sales", "tech", "billing")
TEMPLATE = 'Message: "{text}" Which desk?'
BIAS = (0.5, -4.0, 2.0, 1.5)
TEXTS = ("My screen is black.", "How much is the large one?", "You charged me twice!", "Win a holiday for two.")
BOS = "<|bos|>"  # the demo's tokenizer puts it in front of a text, its chat template too
SYSTEM = "Answer with one desk."
WHOLE = BOS + SYSTEM + "\n" + TEMPLATE  # of the chat task
OTHER = "the prompt does not match the task's template"
SEEDS = (0, 1, 2, 5)


def publish(folder: Path, task: ServedTask) -> Path:
    """The certified demo artifact, made over to another task; its canaries are of the demo's, so it has none."""
    original = store.load(next(path.parent for path in demo.store_dir().glob("*/demo_spam/*/manifest.json")))
    manifest = {name: part for name, part in original.manifest.items() if name not in ("schema", "digest", "files")}
    tensors = {name: getattr(original, name) for name in ("weight", "bias", "step")}
    bias = torch.tensor(BIAS[: len(task.labels)])
    return store.publish(
        folder,
        manifest={**manifest, "task": json.loads(json.dumps(asdict(task)))},
        calibration={**original.calibration, "canaries": {**original.calibration["canaries"], "prompts": []}},
        tensors={**tensors, "label_bias": bias},
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A store with a plain task, a chat task, and one that was published before labels were chosen."""
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    folder, tokenizer = tmp_path_factory.mktemp("labels"), AutoTokenizer.from_pretrained(demo.model_dir())
    variants = tuple((f" {label}", label, label.upper()) for label in LABELS)
    publish(folder, resolve(Task("desks", LABELS, variants, TEMPLATE), tokenizer))
    publish(folder, resolve(Task("talk", LABELS, variants, TEMPLATE, chat=True, system=SYSTEM), tokenizer))
    spam = Task(
        "old_spam", ("ham", "spam"), ((" ham",), (" spam",)), 'Message: "{text}" Is this ham or spam? Answer as desk A'
    )
    aged(publish(folder, resolve(spam, tokenizer)), demo.model_dir())
    return Settings(store=folder, max_new_tokens_limit=900)


@pytest.fixture(scope="module")
def serving(settings: Settings) -> Iterator[Serving]:
    found = load(settings)
    assert {"desks", "talk", "old_spam"} <= set(found.catalog.latest), [one.reason for one in found.catalog.entries]
    yield found
    found.engine.stop()


@pytest.fixture
def submitted(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> list[GenerationRequest]:
    """What has reached the engine."""
    found: list[GenerationRequest] = []
    submit_all = serving.engine.submit_all

    def watched(requests: list[GenerationRequest], *more: Any) -> list[Future[Generation]]:
        found.extend(requests)
        return submit_all(requests, *more)

    monkeypatch.setattr(serving.engine, "submit_all", watched)
    return found


async def post(client: httpx.AsyncClient, route: str, **body: Any) -> Any:
    response = await client.post(route, json=body)
    assert response.status_code == 200, response.text
    return response


def last_event(text: str) -> dict[str, Any]:
    lines = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


async def everywhere(
    client: httpx.AsyncClient, task: str, text: str, whole: str, steering: dict[str, Any], **drawn: Any
) -> dict[str, tuple[str, str | None, dict[str, Any]]]:
    """The label, the text and `mera` by every route and every form of the prompt. whole: the task's prompt as one string."""
    fields, own = {"text": text}, {"steering": {"task": task, **steering}, "parameters": drawn}
    found = {}
    for form, inputs in (("fields", fields), ("whole", whole)):
        made = (await post(client, "/generate", inputs=inputs, **own)).json()
        [tgi] = (await post(client, "/", inputs=inputs, **own)).json()
        end = last_event((await post(client, "/generate_stream", inputs=inputs, **own)).text)
        for name, one in (("generate", made), ("tgi", tgi), ("stream", end)):
            assert one["details"]["finish_reason"] == "length"
            found[f"{name}, {form}"] = (one["mera"]["answer"]["label"], one["generated_text"], one["mera"])
    named = {"model": f"mera-demo:{task}", "steering": steering, **drawn}
    rendered = TEMPLATE.replace("{text}", text)
    chats = {
        "inputs": {"messages": [{"role": "user", "content": ""}], "inputs": fields},
        "message": {"messages": [{"role": "user", "content": rendered}]},
        "field": {"messages": [{"role": "user", "content": text}]},
    }
    for name, chat in chats.items():
        [choice] = (await post(client, "/v1/chat/completions", **named, **chat)).json()["choices"]
        found[f"chat, {name}"] = (choice["mera"]["answer"]["label"], choice["message"]["content"], choice["mera"])
    [choice] = (await post(client, "/v1/completions", **named, prompt=whole)).json()["choices"]
    found["completion"] = (choice["mera"]["answer"]["label"], choice["text"], choice["mera"])
    if not drawn:
        [one] = (await post(client, "/classify", task=task, inputs=[fields], steering=steering)).json()["results"]
        found["classify"] = (one["label"], None, one)
    return found


@pytest.mark.parametrize("method", ["none", "mera", "mera+bias", "logit_bias"])
@pytest.mark.parametrize(("task", "whole"), [("desks", TEMPLATE), ("talk", WHOLE)])
async def test_every_route_answers_with_the_same_label_written_out(
    client: httpx.AsyncClient, serving: Serving, submitted: list[GenerationRequest], task: str, whole: str, method: str
) -> None:
    """No budget is given; the prompt is the same tokens everywhere, with one begin-of-text token."""
    served, bos = serving.catalog.task(task), serving.engine.loaded.tokenizer.bos_token_id
    for text in TEXTS[:1] if method == "none" else TEXTS[1:2]:
        found = await everywhere(client, task, text, whole.replace("{text}", text), {"method": method})
        assert len({label for label, *_ in found.values()}) == 1, found
        assert len({made for _, made, _ in found.values() if made is not None}) == 1, found
        label, made, _ = found["generate, fields"]
        spelt = {serving.engine.decode(tokens) for tokens in served.variants[LABELS.index(label)]}
        assert made in spelt
        [prompt] = {request.prompt for request in submitted}
        assert (prompt[0], prompt.count(bos)) == (bos, 1)
        assert {request.max_new_tokens for request in submitted} == {None}
        probabilities = [mera.get("answer", mera)["probabilities"] for *_, mera in found.values()]
        assert all(one == pytest.approx(probabilities[0], abs=1e-4) for one in probabilities)
        if method == "mera":  # the artifact's own
            assert all(mera["guarantee"]["certified"] for name, (*_, mera) in found.items() if name != "classify")
            assert found["classify"][2]["certified"]


async def test_a_draw_is_the_same_on_every_route(client: httpx.AsyncClient) -> None:
    drawn = set()
    for seed in SEEDS:
        whole = TEMPLATE.replace("{text}", TEXTS[0])
        found = await everywhere(client, "desks", TEXTS[0], whole, {}, temperature=8.0, seed=seed)
        assert len({(label, made) for label, made, _ in found.values()}) == 1, found
        drawn.add(found["completion"][0])
        assert all(mera["guarantee"]["why"] == "decoding is sampled, not greedy" for *_, mera in found.values())
    assert len(drawn) >= 3


async def test_a_budget_never_changes_the_label(client: httpx.AsyncClient, serving: Serving) -> None:
    """A larger one goes on freely and unsteered behind the label, a smaller one cuts its text; the certificate covers both."""
    for text in TEXTS:
        asked: dict[str, Any] = {"inputs": {"text": text}, "steering": {"task": "desks", "method": "mera"}}
        own, long, short = [
            (await post(client, "/generate", **asked, parameters={**budget, "details": True})).json()
            for budget in ({}, {"max_new_tokens": 24}, {"max_new_tokens": 1})
        ]
        assert own["mera"]["answer"] == long["mera"]["answer"] == short["mera"]["answer"]
        tokens = [token["id"] for token in own["details"]["tokens"]]
        label = LABELS.index(own["mera"]["answer"]["label"])
        assert tuple(tokens) in serving.catalog.task("desks").variants[label]
        assert [token["id"] for token in long["details"]["tokens"]][: len(tokens)] == tokens
        assert [token["id"] for token in short["details"]["tokens"]] == tokens[:1]
        assert long["details"]["generated_tokens"] > len(tokens)
        assert [one["mera"]["steering"]["tokens"] for one in (own, long, short)] == [len(tokens), len(tokens), 1]
        assert all(one["mera"]["guarantee"]["certified"] for one in (own, long, short))


async def test_a_stream_ends_with_the_last_token_of_the_label(client: httpx.AsyncClient, serving: Serving) -> None:
    """Token by token; the same as OpenAI's chunks, whose text joins to the label."""
    fields, own = {"text": TEXTS[0]}, {"task": "desks", "method": "mera+bias"}
    lines = (await post(client, "/generate_stream", inputs=fields, steering=own)).text.splitlines()
    events = [json.loads(line.removeprefix("data:")) for line in lines if line]
    label = LABELS.index(events[-1]["mera"]["answer"]["label"])
    assert tuple(event["token"]["id"] for event in events) in serving.catalog.task("desks").variants[label]
    assert len(events) > 1
    body = {"model": "mera-demo:desks", "messages": [{"role": "user", "content": TEXTS[0]}], "stream": True}
    response = await post(client, "/v1/chat/completions", **body, steering={"method": "mera+bias"})
    chunks = [json.loads(line.removeprefix("data:")) for line in response.text.splitlines() if line[:7] == "data: {"]
    joined = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert joined == events[-1]["generated_text"]


async def test_a_bias_is_added_to_the_labels_scores(client: httpx.AsyncClient) -> None:
    for text in TEXTS:
        answers = []
        for method in ("mera", "mera+bias"):
            asked = {"inputs": {"text": text}, "steering": {"task": "desks", "method": method}}
            answers.append((await post(client, "/generate", **asked)).json()["mera"]["answer"])
        before, after = (torch.tensor([answer["probabilities"][label] for label in LABELS]) for answer in answers)
        expected = (before.log() + torch.tensor(BIAS)).softmax(-1)
        assert after.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
        assert answers[1]["label"] == LABELS[int(expected.argmax())]


async def test_a_chat_tasks_prompt_may_be_sent_whole(
    client: httpx.AsyncClient, submitted: list[GenerationRequest]
) -> None:
    """It matches if it is the task's chat, special tokens and all; without them, or with another system text, it does not."""
    whole = WHOLE.replace("{text}", TEXTS[0])
    others = {
        "without its chat": TEMPLATE.replace("{text}", TEXTS[0]),
        "another system text": whole.replace("one desk", "no desk"),
        "begun twice": BOS + whole,
        "going on": whole + " Well?",
    }
    for route in ("/generate", "/v1/completions"):
        for name, prompt in {"whole": whole, **others}.items():
            submitted.clear()
            if route == "/generate":
                mera = (await post(client, route, inputs=prompt, steering={"task": "talk"})).json()["mera"]
            else:
                answered = await post(client, route, model="mera-demo:talk", prompt=prompt)
                mera = answered.json()["choices"][0]["mera"]
            assert mera["guarantee"]["why"] == (None if name == "whole" else OTHER), (route, name)
            assert mera["answer"]["label"] in LABELS
            if name != "begun twice":  # which says so itself
                assert submitted[0].prompt.count(submitted[0].prompt[0]) == 1, (route, name)


async def test_an_artifact_of_before_is_served_as_it_was(
    client: httpx.AsyncClient, submitted: list[GenerationRequest]
) -> None:
    """Its answers are free: the label is that of the token which the model writes, and its own budget is one token."""
    asked: dict[str, Any] = {"inputs": {"text": TEXTS[3]}, "steering": {"task": "old_spam"}}
    own = (await post(client, "/generate", **asked)).json()
    long = (await post(client, "/generate", **asked, parameters={"max_new_tokens": 6})).json()
    [one] = (await post(client, "/classify", task="old_spam", inputs=[TEXTS[3]])).json()["results"]
    [choice] = (
        await post(client, "/v1/chat/completions", model="mera-demo:old_spam", messages=[{"role": "user", "content": TEXTS[3]}])
    ).json()["choices"]  # fmt: skip
    assert [(request.choice, request.variants, request.acts) for request in submitted] == [
        (None, ((272,), (271,)), 1)
    ] * 4
    assert [request.max_new_tokens for request in submitted] == [1, 6, 1, 1]
    label = own["mera"]["answer"]["label"]
    assert own["generated_text"] == choice["message"]["content"] == f" {label}"
    assert {one["label"], choice["mera"]["answer"]["label"], long["mera"]["answer"]["label"]} == {label}
    assert "mera recertify" in own["mera"]["guarantee"]["why"]  # it tells of no conditions under which it was tested
    asked["steering"] |= {"method": "mera", "alpha": 0.01}
    moved = (await post(client, "/generate", **asked, parameters={"max_new_tokens": 6})).json()
    assert moved["mera"]["steering"]["tokens"] == 1
    assert long["details"]["generated_tokens"] > 1
