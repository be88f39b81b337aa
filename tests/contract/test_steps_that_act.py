"""Every law at both hook points over HTTP, from artifacts made by hand: answers, decisions, guarantees, refusals, clients, metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import mera_client
import pytest
import torch
from mera_server.app import create_app
from mera_server.loading import Serving, load
from mera_server.settings import Settings

from merasteer import demo, store
from merasteer.engine import Engine, EngineConfig, load_model
from merasteer.tasks import Prompter
from merasteer.types import BY_CLASS, LAWS, UNCORRECTED, Correction

from .conftest import PROMPT, ready
from .test_methods import FIELDS, measure
from .test_metrics import samples

POINTS = ("residual", "mlp_input")
DIRECTIONS = ("covariance", "gradient", "proportional", "gradient_by_label", "label_probe")
TASKS = [f"{direction}-{point}" for direction in DIRECTIONS for point in POINTS]
WEAK = ["weak-gradient", "weak-label_probe"]  # that failed their test
STRENGTH, LAYER = 0.6, 2
OPEN = 0.5  # α, where z is 0: the median of what is read
POEM = "Say it in verse: the harbour at dawn"
PROBED, STEPS = "label_probe-residual", "gradient-residual"

Rows = dict[str, torch.Tensor]


def tensors_of(direction: str, hidden: torch.Tensor, labels: torch.Tensor, seed: int) -> tuple[Rows, torch.Tensor]:
    """What an artifact holds whose gate is open on half of the rows, hidden (n, L, d); and z of each at `LAYER`.

    labels (n,): the model's. A label probe says another one somewhere behind its gate.
    """
    n, layers, width = hidden.shape
    rows = hidden[:, LAYER]
    generator = torch.Generator().manual_seed(seed)

    def read() -> tuple[torch.Tensor, torch.Tensor]:
        """A readout of these rows with median 0 and spread 1."""
        w = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
        w = w / (rows @ w).std()
        ordered = (rows @ w).sort().values
        return w, -(ordered[n // 2 - 1] + ordered[n // 2]) / 2

    def step() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0) * rows.norm(dim=-1).mean()

    weight, bias, moved = torch.zeros(layers, width), torch.zeros(layers), torch.zeros(layers, width)
    weight[LAYER], bias[LAYER] = read()
    if direction in BY_CLASS:
        (w, b), acts = read(), direction != "label_probe"
        said = (rows @ w + b <= 0).long()
        if bool((said == labels)[rows @ weight[LAYER] + bias[LAYER] > 0].all()):
            w, b = -w, -b
        classes = {"class_weight": torch.stack([w, -w])[None], "class_bias": torch.stack([b, -b])[None]}
        classes["class_step"] = torch.stack([step(), step()])[None] * acts
    else:
        classes = {}
        moved[LAYER] = weight[LAYER] / weight[LAYER].square().sum() if direction == "covariance" else step()
    found = {"weight": weight, "bias": bias, "step": moved, "label_bias": torch.tensor([0.0, 40.0]), **classes}
    return found, rows @ weight[LAYER] + bias[LAYER]


def publish(folder: Path, task: str, direction: str, point: str, tensors: Rows, *, certified: bool) -> None:
    """The certified demo artifact with other vectors, under another task's name."""
    original = store.load(next(path.parent for path in demo.store_dir().glob("*/demo_spam/*/manifest.json")))
    manifest, calibration = (json.loads(json.dumps(dict(part))) for part in (original.manifest, original.calibration))
    for name in ("schema", "digest", "files"):
        del manifest[name]
    length = {"strength": STRENGTH} if LAWS[direction] in ("gated", "proportional") else {}  # type: ignore[index]
    own = {"method": "label_probe"} if direction == "label_probe" and certified else {}
    manifest |= {"certified": certified}
    manifest["task"]["name"] = task
    manifest["steering"] = {
        "hook_point": point, "direction": direction, "alpha": OPEN if certified else None, "active_layers": [LAYER],
        "positions": "generation", "report_layer": LAYER, **length, **own,
    }  # fmt: skip
    manifest["probe"]["scores"] = []
    row = {"key": task, "hook_point": point, "direction": direction, "alpha": OPEN, "gain": 0.2, **length, **own}
    calibration |= {"candidates": [row], "tested": [{**calibration["tested"][0], "key": task}], "chosen": task}
    if not certified:
        calibration |= {"decision": "abstained", "reason": "uncertified", "chosen": None}
    store.publish(folder, manifest=manifest, calibration=calibration, tensors=tensors)


@pytest.fixture(scope="module")
def opened() -> dict[str, list[bool]]:
    """Task -> whether the gate of its artifact is open on each of `FIELDS`, as plain arithmetic says. Filled by `acting_serving`."""
    return {}


@pytest.fixture(scope="module")
def acting_serving(opened: dict[str, list[bool]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    draft, folder = tmp_path_factory.mktemp("draft"), tmp_path_factory.mktemp("acting")
    loaded = load_model(demo.model_dir())
    task = store.load(next(path.parent for path in demo.store_dir().glob("*/demo_spam/*/manifest.json"))).task
    prompter = Prompter(task, loaded.tokenizer)
    with Engine(loaded, EngineConfig(capture=POINTS)) as engine:
        asked = [UNCORRECTED.request(task, prompter.encode(prompter.text(fields))) for fields in FIELDS]
        answers = [engine.submit(one).result(60) for one in asked]
    labels = torch.tensor([one.answer.label for one in answers if one.answer is not None])
    for i, name in enumerate([*TASKS, *WEAK]):
        direction, point = name.removeprefix("weak-").partition("-")[0], name.rpartition("-")[2]
        point = point if point in POINTS else "residual"
        hidden = torch.stack([one.activations[point] for one in answers if one.activations is not None])
        tensors, z = tensors_of(direction, hidden, labels, seed=40 + i)
        opened[name] = (z > 0).tolist()
        publish(draft, name, direction, point, tensors, certified=name not in WEAK)
    measure(draft, folder)
    found = load(Settings(store=folder, max_waiting=256))
    assert {*TASKS, *WEAK} <= set(found.catalog.latest), [entry.reason for entry in found.catalog.entries]
    yield found
    found.engine.stop()


@pytest.fixture
async def client(acting_serving: Serving) -> AsyncIterator[httpx.AsyncClient]:
    app = ready(create_app(loader=lambda _: acting_serving))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as found:
        yield found


@pytest.fixture
def ask(client: httpx.AsyncClient) -> Any:
    """Posts to /generate; the answer's `mera`, which must be a 200."""

    async def post(task: str, fields: Any, parameters: dict[str, Any] | None = None, **steering: Any) -> dict[str, Any]:
        body = {"inputs": fields, "parameters": parameters or {}, "steering": {"task": task, **steering}}
        response = await client.post("/generate", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json()["mera"])

    return post


async def test_each_answers_in_one_batch_as_the_plain_engine_does_alone(ask: Any, acting_serving: Serving) -> None:
    pairs = [(task, fields) for fields in FIELDS for task in TASKS]
    together = await asyncio.gather(*(ask(task, fields) for task, fields in pairs))
    said = 0
    for (task, fields), mera in zip(pairs, together, strict=True):
        probe = acting_serving.catalog.latest[task]
        tokens = Prompter(probe.task, acting_serving.engine.loaded.tokenizer)
        request = probe.correction.request(probe.task, tokens.encode(tokens.text(fields)))
        alone = acting_serving.engine.submit(request).result(60)
        assert alone.answer is not None
        assert mera["answer"]["label"] == probe.task.labels[alone.answer.label or 0], task
        assert list(mera["answer"]["probabilities"].values()) == pytest.approx(alone.answer.probabilities, abs=1e-5)
        assert mera["answer"]["by"] == alone.answer.by
        assert mera["steering"]["steered_cells"] == alone.steering.steered_cells
        assert mera["steering"]["max_shift"] == pytest.approx(alone.steering.max_shift, abs=1e-5)
        said += alone.answer.by == "label_probe"
    assert said == len(POINTS) * len(FIELDS) // 2


@pytest.mark.parametrize("task", TASKS)
async def test_what_was_done_is_told_as_documented(ask: Any, opened: dict[str, list[bool]], task: str) -> None:
    decisions = set()
    for fields, is_open in zip(FIELDS, opened[task], strict=True):
        mera, plain = await ask(task, fields), await ask(task, fields, method="none")
        method = "label_probe" if task.startswith("label_probe") else "mera"
        assert (mera["method"], mera["alpha"], mera["reason"]) == (method, OPEN, None)
        assert (mera["guarantee"]["certified"], mera["guarantee"]["why"]) == (True, None)
        before, after = mera["predicted_error"]["before"], mera["predicted_error"]["after"]
        assert before == pytest.approx(plain["predicted_error"]["before"], abs=1e-5)
        assert (before > OPEN) == is_open
        decisions.add(mera["decision"])
        if method == "label_probe":
            changed = mera["answer"]["label"] != plain["answer"]["label"]
            assert mera["answer"]["by"] == ("label_probe" if is_open else "model")
            assert mera["decision"] == ("steered" if changed else "not_needed")
            assert is_open or not changed
            assert mera["steering"]["steered_cells"] == mera["steering"]["max_shift"] == 0
            assert mera["answer"]["probabilities"] == pytest.approx(plain["answer"]["probabilities"], abs=1e-5)
            assert after == pytest.approx(before, abs=1e-6)
            continue
        assert mera["answer"]["by"] == "model"
        assert mera["decision"] == ("steered" if is_open else "not_needed")
        assert mera["steering"]["steered_cells"] == is_open
        if task.startswith("covariance"):
            assert after <= max(before * (not is_open), OPEN) + 1e-5
        elif is_open:  # κ times about the activations' size
            assert 0.15 < mera["steering"]["max_shift"] < 1.2
    assert decisions == {"steered", "not_needed"}


async def test_the_canaries_of_each_pass(client: httpx.AsyncClient, ask: Any) -> None:
    for task in TASKS:
        probe = (await ask(task, FIELDS[0]))["probe"]
        found = (await client.get(f"/probes/{probe}")).json()
        assert (found["here"]["canaries"], found["here"]["certified"]) == ("passed", True), found["here"]
        assert found["method"] == ("label_probe" if task.startswith("label_probe") else "mera")


async def test_an_artifact_that_failed_its_test_acts_where_it_is_asked_to(ask: Any, opened: Any) -> None:
    """Its method is what it is made for, and the length of its step is the manifest's."""
    for task, method in (("weak-gradient", "mera"), ("weak-label_probe", "label_probe")):
        for fields, is_open in zip(FIELDS, opened[task], strict=True):
            watched = await ask(task, fields)
            assert (watched["method"], watched["decision"], watched["reason"]) == (method, "abstained", "uncertified")
            assert watched["answer"]["by"] == "model"
            mera = await ask(task, fields, alpha=OPEN)
            assert (mera["method"], mera["alpha"], mera["guarantee"]["certified"]) == (method, OPEN, False)
            if method == "mera":
                assert (mera["decision"] == "steered") == is_open == (mera["steering"]["max_shift"] > 0.1)
            else:
                assert mera["answer"]["by"] == ("label_probe" if is_open else "model")


async def test_overrides_do_what_they_say(ask: Any) -> None:
    for fields in FIELDS:
        own = await ask(STEPS, fields)
        for same in ({"layers": [LAYER]}, {"layers": [0, LAYER]}, {"positions": "last"}, {"alpha": OPEN}):
            mera = await ask(STEPS, fields, **same)
            assert mera["guarantee"]["certified"]
            assert mera["steering"]["steered_cells"] == own["steering"]["steered_cells"]
        wide = await ask(STEPS, fields, alpha=1e-6)
        assert (wide["decision"], wide["guarantee"]["certified"]) == ("steered", False)
        assert wide["guarantee"]["why"] == "alpha overridden"
        spam = await ask(STEPS, fields, method="mera+bias")
        assert (spam["answer"]["label"], spam["guarantee"]["certified"]) == ("spam", False)
        assert spam["steering"] == pytest.approx(own["steering"], abs=1e-5)
        elsewhere = await ask(PROBED, fields, alpha=1e-6, positions=[0])
        assert (elsewhere["answer"]["by"], elsewhere["decision"]) == ("model", "not_needed")
        assert (await ask(PROBED, fields, alpha=1e-6, positions="all"))["answer"]["by"] == "label_probe"
        assert (await ask(PROBED, fields, method="logit_bias"))["answer"]["label"] == "spam"
        moved = await ask(PROBED, fields, method="additive", strength=2.0)
        assert (moved["answer"]["by"], moved["decision"], moved["steering"]["steered_cells"]) == ("model", "steered", 1)


async def test_a_trace_and_a_longer_answer(client: httpx.AsyncClient) -> None:
    """Behind the label nothing is moved, and what is said is the label alone."""
    for task in (PROBED, STEPS):
        asked = {"steering": {"task": task, "alpha": 1e-6}, "details": "trace", "parameters": {"max_new_tokens": 4}}
        short = await client.post("/generate", json={"inputs": FIELDS[0], "steering": asked["steering"]})
        mera = (await client.post("/generate", json={"inputs": FIELDS[0], **asked})).json()["mera"]
        answer = short.json()["mera"]["answer"]
        assert (mera["answer"]["label"], mera["answer"]["by"]) == (answer["label"], answer["by"])
        assert all(row["before"][LAYER] > 0 for row in mera["trace"])
        assert [max(row["shift"]) > 0 for row in mera["trace"]] == [task == STEPS, *[False] * (len(mera["trace"]) - 1)]


async def test_a_stream_says_the_label_that_the_answer_says(client: httpx.AsyncClient) -> None:
    for fields in FIELDS:
        body = {"inputs": fields, "steering": {"task": PROBED}}
        plain = (await client.post("/generate", json=body)).json()
        lines = (await client.post("/generate_stream", json=body)).text.splitlines()
        last = json.loads([line for line in lines if line.startswith("data:")][-1][5:])
        assert (last["generated_text"], last["mera"]) == (plain["generated_text"], plain["mera"])


@pytest.mark.parametrize(
    ("task", "body", "code", "told"),
    [
        (PROBED, {"parameters": {"temperature": 0.7}}, "invalid_input", "parameters.temperature: a label probe says"),
        (PROBED, {"parameters": {"do_sample": True}}, "invalid_input", "parameters.temperature: a label probe says"),
        (PROBED, {"steering": {"method": "mera"}}, "unsupported", "steering.method: this artifact holds a label probe"),
        (PROBED, {"steering": {"method": "mera+bias"}}, "unsupported", "steering.method: .* leave mera.bias out"),
        (STEPS, {"steering": {"method": "label_probe"}}, "unsupported", "steering.method: .* holds no label probe"),
        (PROBED, {"steering": {"layers": [0]}}, "invalid_input", "steering.layers: .* active layers: 2"),
        (PROBED, {"steering": {"method": "label_probe", "strength": 1.0}}, "invalid_input", "steering.strength"),
        (STEPS, {"steering": {"strength": 1.0}}, "invalid_input", "steering.strength"),
        ("weak-label_probe", {"steering": {"method": "label_probe", "positions": "all"}}, "alpha_required", "alpha"),
        ("weak-gradient", {"steering": {"positions": "all"}}, "alpha_required", "steering.alpha"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, task: str, body: dict[str, Any], code: str, told: str) -> None:
    asked = {"inputs": FIELDS[0], **body, "steering": {"task": task, **body.get("steering", {})}}
    response = await client.post("/generate", json=asked)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (422, code)
    with pytest.raises(ValueError, match=told):
        raise ValueError(error["message"])


@pytest.mark.parametrize("steering", [{"method": "none"}, {"method": "additive"}, {"method": "logit_bias"}])
async def test_where_no_label_is_said_one_may_be_drawn(ask: Any, steering: dict[str, Any]) -> None:
    mera = await ask(PROBED, FIELDS[0], {"temperature": 1.0, "seed": 3}, **steering)
    assert (mera["answer"]["by"], mera["guarantee"]["certified"]) == ("model", False)


async def test_a_server_whose_default_is_a_label_probe_still_writes_poems(acting_serving: Serving) -> None:
    """What abstains anyway is not refused for being drawn; the task's own prompt is, on every route and in its words."""
    app = ready(create_app(Settings(default_task=PROBED), loader=lambda _: acting_serving))
    hot = {"temperature": 0.9}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        found = await client.post("/generate", json={"inputs": POEM, "parameters": {**hot, "max_new_tokens": 5}})
        assert (found.status_code, found.json()["mera"]["reason"]) == (200, "other_prompt")
        found = await client.post("/generate", json={"inputs": PROMPT, "parameters": hot})
        assert (found.status_code, found.json()["error"]["code"]) == (422, "invalid_input")
        body = {"model": f"mera-demo:{PROBED}", "messages": [{"role": "user", "content": PROMPT}]}
        found = await client.post("/v1/chat/completions", json={**body, **hot})
        assert (found.status_code, found.json()["error"]["param"]) == (400, "temperature")
        native = await client.post("/generate", json={"inputs": PROMPT, "steering": {"task": PROBED}})
        found = await client.post("/v1/chat/completions", json=body)
        [choice] = found.json()["choices"]
        assert choice["message"]["content"].strip() == choice["mera"]["answer"]["label"]
        assert choice["mera"]["answer"] == native.json()["mera"]["answer"]


async def test_lists_of_inputs_and_the_client_say_what_was_said(client: httpx.AsyncClient, ask: Any) -> None:
    """The answer comes first where labels are listed by their shares."""
    transport = client._transport
    async with mera_client.AsyncClient("http://test", transport=transport) as typed:
        listed = await typed.classify(PROBED, FIELDS)
        for fields, one in zip(FIELDS, listed.results, strict=True):
            mera = await ask(PROBED, fields)
            assert (one.label, one.by, one.decision) == (
                mera["answer"]["label"],
                mera["answer"]["by"],
                mera["decision"],
            )
            answer = await typed.generate(fields, steering=mera_client.Steering(task=PROBED))
            assert answer.mera.answer is not None
            assert (answer.mera.answer.label, answer.mera.answer.by) == (one.label, one.by)
        assert {one.by for one in listed.results} == {"model", "label_probe"}
        with pytest.raises(mera_client.Unsupported, match="leave mera out"):
            await typed.generate(FIELDS[0], steering=mera_client.Steering(task=PROBED, method="mera"))
    against = 0
    shares = (await client.post(f"/classify/{PROBED}", json={"inputs": FIELDS})).json()
    for one, labels in zip(listed.results, shares, strict=True):
        assert [label["label"] for label in labels] == [one.label, *({"ham", "spam"} - {one.label})]
        against += labels[0]["score"] < labels[1]["score"]
    assert against == sum(one.decision == "steered" for one in listed.results) > 0


async def test_metrics_and_the_page_know_them(client: httpx.AsyncClient, ask: Any) -> None:
    asked = [(task, fields) for task in (PROBED, STEPS) for fields in FIELDS]
    found = [await ask(task, fields) for task, fields in asked]
    counted = await samples(client)
    for task in (PROBED, STEPS):
        for decision in ("steered", "not_needed"):
            n = sum(mera["decision"] == decision for (name, _), mera in zip(asked, found, strict=True) if name == task)
            assert counted[f'mera_decisions_total{{decision="{decision}",reason="",task="{task}"}}'] == n > 0
        assert counted[f'mera_predicted_error_count{{task="{task}",when="after"}}'] == len(FIELDS)
    assert counted[f'mera_steered_tokens_total{{task="{PROBED}"}}'] == 0
    forms = {row["name"]: row for row in (await client.get("/tasks/forms")).json()["tasks"]}
    assert forms[PROBED]["methods"] == ["label_probe", "additive", "logit_bias"]
    assert forms[STEPS]["methods"] == ["mera", "additive", "logit_bias", "mera+bias"]
    for weak in WEAK:
        assert forms[weak]["method"] == forms[weak]["methods"][0]


def test_what_is_served_is_what_was_published(acting_serving: Serving) -> None:
    for task in TASKS:
        probe = acting_serving.catalog.latest[task]
        expected = Correction(probe.method, probe.digest, OPEN, probe.strength)
        assert probe.correction == expected
        assert probe.strength == (
            STRENGTH if task.split("-")[0] in ("gradient", "proportional", "gradient_by_label") else 0.0
        )
