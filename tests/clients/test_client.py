"""What is sent and what comes back, through both clients."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError

import httpx
import mera_client
import pytest
from mera_client import AsyncClient, BadResponse, Client, InvalidInput, Steering


async def test_a_bare_generate_leaves_every_default_to_the_server(call, server):
    await call("generate", "hello")
    assert server.requests[0].method == "POST"
    assert server.requests[0].url == "http://mera.test/generate"
    assert server.requests[0].headers["content-type"] == "application/json"
    assert server.body == {"inputs": "hello", "parameters": {}, "details": "summary"}


async def test_every_option_reaches_the_body(call, server):
    await call(
        "generate",
        {"text": "win a prize"},
        max_new_tokens=16,
        temperature=0.0,
        top_p=0.9,
        top_k=5,
        stop=("\n", "."),
        seed=0,
        return_full_text=True,
        details=True,
        steering=Steering("sms_spam", "3fa9", "mera", 0.3, (0, 4), (1, 2), 1.5),
        mera_details="trace",
    )
    assert server.body == {
        "inputs": {"text": "win a prize"},
        "parameters": {
            "max_new_tokens": 16,
            "temperature": 0.0,
            "top_p": 0.9,
            "top_k": 5,
            "stop": ["\n", "."],
            "seed": 0,
            "return_full_text": True,
            "details": True,
        },
        "steering": {
            "task": "sms_spam",
            "probe": "3fa9",
            "method": "mera",
            "alpha": 0.3,
            "positions": [0, 4],
            "layers": [1, 2],
            "strength": 1.5,
        },
        "details": "trace",
    }


async def test_steering_is_a_value_or_a_mapping_sent_as_it_is(call, server):
    await call("generate", "hello", steering=Steering(task="sms_spam"))
    assert server.body["steering"] == {"task": "sms_spam"}
    await call("generate", "hello", steering=Steering(task="sms_spam", method="mera+bias", positions="last"))
    assert server.body["steering"] == {"task": "sms_spam", "method": "mera+bias", "positions": "last"}
    await call("generate", "hello", steering={"task": "sms_spam", "alpha": None})
    assert server.body["steering"] == {"task": "sms_spam", "alpha": None}


async def test_one_stop_string_is_not_taken_for_its_letters(call, server):
    await call("generate", "hello", stop="END")
    assert server.body["parameters"]["stop"] == ["END"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
async def test_what_json_cannot_hold_is_refused_before_sending(call, server, value):
    with pytest.raises(InvalidInput, match="cannot be written as JSON"):
        await call("generate", {"text": value})
    assert server.requests == []


async def test_the_generation_is_read_field_by_field(call):
    generation = await call("generate", "hello")
    mera = generation.mera
    assert generation.generated_text == " spam"
    assert (generation.details.finish_reason, generation.details.prompt_tokens) == ("length", 57)
    assert generation.details.tokens is None
    assert (mera.decision, mera.reason, mera.alpha, mera.probe) == ("steered", None, 0.31, "3fa9c0ffee12")
    assert (mera.predicted_error.before, mera.predicted_error.after, mera.predicted_error.layer) == (0.71, 0.31, 5)
    assert (mera.steering.cells, mera.steering.steered_cells, mera.steering.max_shift) == (8, 5, 0.2)
    assert (mera.guarantee.certified, mera.guarantee.n) == (True, 250)
    assert isinstance(mera.guarantee.epsilon, float)
    assert mera.answer.label == "spam"
    assert mera.answer.probabilities == {"ham": 0.08, "spam": 0.92}
    with pytest.raises(FrozenInstanceError):
        mera.alpha = 0.5


CLASSIFIED = {
    "label": "spam",
    "probabilities": {"ham": 0.1, "spam": 0.9},
    "decision": "steered",
    "reason": None,
    "predicted_error": {"before": 0.7, "after": 0.3, "layer": 2, "position": "answer"},
    "certified": True,
}


async def test_classify_sends_a_list_and_reads_a_result_for_each(call, server):
    nothing = {"label": None, "probabilities": {}, "decision": "abstained", "reason": "no_probe"}
    results = [CLASSIFIED, {**nothing, "predicted_error": None, "certified": False}]
    usage = {"prompt_tokens": 40, "generated_tokens": 2}
    server.answer = httpx.Response(200, json={"task": "t", "probe": None, "results": results, "usage": usage})
    answer = await call("classify", "t", ("one", {"text": "two"}), steering=Steering(method="mera", alpha=0.2))
    assert server.requests[0].url.path == "/classify"
    assert server.body == {
        "task": "t",
        "inputs": ["one", {"text": "two"}],
        "steering": {"method": "mera", "alpha": 0.2},
    }
    first, second = answer.results
    assert (first.label, first.probabilities["spam"], first.certified) == ("spam", 0.9, True)
    assert (first.predicted_error.before, first.predicted_error.after) == (0.7, 0.3)
    assert (second.label, second.decision, second.reason, second.predicted_error) == (
        None, "abstained", "no_probe", None,
    )  # fmt: skip
    assert (answer.task, answer.probe, answer.usage.prompt_tokens) == ("t", None, 40)
    with pytest.raises(BadResponse, match="2 of them for 1 inputs"):
        await call("classify", "t", ["one"])


@pytest.mark.parametrize("inputs", ["hello", {"text": "hello"}])
async def test_one_input_is_not_taken_for_a_list_of_its_letters(call, server, inputs):
    with pytest.raises(InvalidInput, match=r"give \[input\]"):
        await call("classify", "t", inputs)
    assert server.requests == []


async def test_a_timeout_is_the_clients_or_the_calls_own(call, server):
    await call("generate", "hello")
    assert server.requests[0].extensions["timeout"] == {"connect": 5.0, "read": 60.0, "write": 60.0, "pool": 60.0}
    await call("generate", "hello", timeout=7)
    assert set(server.requests[1].extensions["timeout"].values()) == {7}
    await call("generate", "hello", timeout=httpx.Timeout(None))
    assert set(server.requests[2].extensions["timeout"].values()) == {None}


async def test_tasks_come_in_the_servers_order(call, server):
    sms = {"name": "sms_spam", "labels": ["ham", "spam"], "probe": "3fa9", "certified": True, "alpha": 0.31}
    bare = {"name": "agnews", "labels": ["world", "sports"], "probe": None, "certified": False, "alpha": None}
    server.answer = httpx.Response(200, json={"tasks": [sms, bare]})
    first, second = await call("tasks")
    assert server.requests[0].url.path == "/tasks"
    assert (first.name, first.labels, first.certified) == ("sms_spam", ("ham", "spam"), True)
    assert (second.probe, second.alpha) == (None, None)


async def test_probes_keep_all_that_the_server_said(call, server):
    loaded = {"digest": "3fa9", "status": "loaded", "certified": True, "layers": [0, 3], "gain": 0.12, "chances": 1}
    loaded["method"] = "mera+bias"
    rejected = {"digest": None, "status": "rejected", "reason": "other weights", "certified": None, "layers": None}
    server.answer = httpx.Response(200, json={"probes": [loaded, rejected]})
    first, second = await call("probes")
    assert (first.certified, first.layers, first.gain) == (True, (0, 3), 0.12)
    assert (first.method, first.raw["chances"]) == ("mera+bias", 1)
    assert (second.status, second.reason, second.certified, second.method) == ("rejected", "other weights", None, None)


async def test_one_probe_is_asked_for_by_an_escaped_digest(call, server):
    server.answer = httpx.Response(200, json={"digest": "3fa9", "task": "sms_spam"})
    assert (await call("probe", "3f/a9")).task == "sms_spam"
    assert server.requests[0].url.raw_path == b"/probes/3f%2Fa9"


async def test_info_is_the_servers_own_mapping(call, server):
    server.answer = httpx.Response(200, json={"model": "demo"})
    assert await call("info") == {"model": "demo"}


@pytest.mark.parametrize("method", ["live", "ready"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (httpx.Response(200, json={}), True),
        (httpx.Response(503, json={"error": {"code": "not_ready", "message": "loading"}}), False),
        (httpx.ConnectError("refused"), False),
    ],
)
async def test_health_is_yes_or_no(call, server, method, answer, expected):
    server.answer = answer
    assert await call(method) is expected
    assert server.requests[0].url.path == f"/health/{method}"


async def test_health_of_something_else_is_an_error(call, server):
    server.answer = httpx.Response(404, text="nothing here")
    with pytest.raises(BadResponse, match="check base_url"):
        await call("ready")


def test_key_and_headers_go_with_every_request_and_stay_out_of_repr(server):
    server.answer = httpx.Response(200, json={})
    transport = httpx.MockTransport(server)
    with Client("http://mera.test/v0", api_key="sesame", headers={"X-Request-Id": "7"}, transport=transport) as client:
        client.info()
    assert server.requests[0].url == "http://mera.test/v0/info"
    assert server.requests[0].headers["authorization"] == "Bearer sesame"
    assert server.requests[0].headers["x-request-id"] == "7"
    assert "sesame" not in repr(client)


def test_both_clients_offer_the_same():
    def methods(kind: type) -> dict[str, str]:
        public = inspect.getmembers(kind, inspect.isfunction)
        shown = {n: str(inspect.signature(f)).replace("AsyncGenerator", "Generator") for n, f in public}
        return {n: text for n, text in shown.items() if not n.startswith("_") and n not in ("close", "aclose")}

    assert methods(Client) == methods(AsyncClient)


def test_all_names_what_is_exported():
    public = {name for name, value in vars(mera_client).items() if inspect.isclass(value)}
    assert sorted(public) == mera_client.__all__
