"""Plain values to plan with: a catalog of three tasks, one certified, one not, one without an artifact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from mera_server.catalog import Catalog, Certificate, Probe
from mera_server.resolve import Limits, Plan, plan
from mera_server.schemas import GenerateBody
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from merasteer.errors import BadTask
from merasteer.store import Entry
from merasteer.types import Correction, ServedTask

MakePlan = Callable[..., Plan]

LABELS = ("ham", "spam")
CERTIFICATE = Certificate("mcnemar", 0.12, 0.05, 0.0, 0.05, n=250, level=0.025, attempt=1)
SPELT = (((1,),), ((2,), (3,)))
BOS, TURN = "<s>", "<t>"
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m['role'] == 'assistant' %}"
    "{{ raise_exception('never ' + m['content']) }}{% endif %}{{ '<t>' + m['role'][0] + ':' + m['content'] }}{% endfor %}"
)


def served(name: str, position: str = "last", max_new_tokens: int = 1, choose: str = "free") -> ServedTask:
    return ServedTask(name, LABELS, SPELT, "Say: {text} Label:", choose, position, max_new_tokens)  # type: ignore[arg-type]


def holding(probe: Probe, **facts: Any) -> Probe:
    """The probe with another correction: method, alpha, positions, label_bias, active as an artifact has them."""
    active, bias = facts.get("active", probe.active), facts.get("label_bias", probe.label_bias)
    own = {name: facts.get(name, getattr(probe.correction, name)) for name in ("method", "alpha", "positions")}
    correction = Correction(
        **own, readout=probe.digest if active else None, bias=bias if "bias" in own["method"] else None
    )
    kept = {name: value for name, value in facts.items() if name not in own}
    return replace(probe, **(kept | {"correction": correction, "label_bias": bias, "active": active}))


@pytest.fixture(scope="session")
def characters() -> Callable[[], PreTrainedTokenizerFast]:
    """Makes tokenizers of one token a character, its code point; <s> (1) goes in front of a text, <t> (2) begins a chat's turn."""

    def make() -> PreTrainedTokenizerFast:
        inner = Tokenizer(models.WordLevel({BOS: 1, TURN: 2} | {chr(i): i for i in range(3, 300)}, unk_token=chr(3)))
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        inner.decoder = decoders.Fuse()
        inner.add_special_tokens([AddedToken(token, special=True) for token in (BOS, TURN)])
        inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token=BOS,
            unk_token=chr(3),
            additional_special_tokens=[TURN],
            chat_template=CHAT,
        )

    return make


@pytest.fixture
def good() -> Probe:
    """Certified, with α."""
    return Probe(
        "aa" * 32, served("good"), True, Correction("mera", "aa" * 32, 0.3), (0, 2, 3), certificate=CERTIFICATE
    )


@pytest.fixture
def weak() -> Probe:
    """Tested and not certified: no α."""
    reads = Correction("mera", "bb" * 32)
    return Probe(
        "bb" * 32, served("weak"), False, reads, (1, 2), certificate=CERTIFICATE, baselines=frozenset({"additive"})
    )


@pytest.fixture
def catalog(good: Probe, weak: Probe, characters: Callable[[], PreTrainedTokenizerFast]) -> Catalog:
    probes = {probe.digest: probe for probe in (good, weak)}
    tasks = {name: served(name) for name in ("good", "weak", "bare")}
    entries = [Entry(None, p.task.name, d, "loaded", None, None) for d, p in probes.items()]  # type: ignore[arg-type]
    latest = {"good": good, "weak": weak}
    return Catalog(4, {**tasks, "broken": BadTask("no such token")}, probes, latest, entries, characters())


@pytest.fixture
def make_plan(catalog: Catalog) -> MakePlan:
    """The plan of a body, on this catalog."""

    def make(body: dict[str, object] | None = None, *, catalog: Catalog = catalog, **limits: object) -> Plan:
        asked = {"inputs": "Say: hello Label:", **(body or {})}
        return plan(GenerateBody.model_validate(asked), catalog, Limits(**limits))  # type: ignore[arg-type]

    return make
