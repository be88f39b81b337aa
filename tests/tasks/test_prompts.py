"""Templates: rendering, what is refused, and recognising a rendering."""

from __future__ import annotations

import random

import pytest

from merasteer.errors import InvalidInput, UnknownField
from merasteer.tasks import fields_of, matches, render

TEMPLATE = 'Message: "{text}" Is this ham or spam? Answer:'


def test_fields_come_in_order_once():
    assert fields_of("{b} {{x}} {a} {b}") == ("b", "a")


def test_braces_in_values_are_text():
    assert render("{{{text}}} {text}", {"text": "{x} {{"}) == "{{x} {{} {x} {{"


def test_choices_become_lettered_lines():
    assert render("{question}\n{choices}\n", {"question": "?", "choices": ("x", "y", "")}) == "?\nA. x\nB. y\nC. \n"


@pytest.mark.parametrize(
    ("template", "fields", "error", "says"),
    [
        (TEMPLATE, {}, InvalidInput, "field 'text': missing"),
        (TEMPLATE, {"text": "a", "txet": "b"}, UnknownField, "field 'txet': not in the template; give only text"),
        (TEMPLATE, {"text": 3}, InvalidInput, "field 'text': is of type int; give a string"),
        (TEMPLATE, {"text": ["a"]}, InvalidInput, "field 'text': is of type list"),
        (TEMPLATE, {"text": None}, InvalidInput, "field 'text': is of type NoneType"),
        (TEMPLATE, {"text": "\ud800"}, InvalidInput, "field 'text': holds half of a surrogate pair"),
        ("{choices}", {"choices": "A. x"}, InvalidInput, "field 'choices': is not a list of strings"),
        ("{choices}", {"choices": ["x", 1]}, InvalidInput, "field 'choices': is not a list of strings"),
        ("{choices}", {"choices": []}, InvalidInput, "field 'choices': has 0 options; give 1 to 26"),
        ("{choices}", {"choices": ["x"] * 27}, InvalidInput, "has 27 options"),
    ],
)
def test_wrong_fields_are_named(template, fields, error, says):
    with pytest.raises(error, match=says) as caught:
        render(template, fields)
    assert "\n" not in str(caught.value)


def test_an_error_never_repeats_a_value():
    with pytest.raises(InvalidInput) as caught:
        render(TEMPLATE, {"text": ["secret"]})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (TEMPLATE, 'Message: "hi" Is this ham or spam? Answer:', True),
        (TEMPLATE, 'Message: "" Is this ham or spam? Answer:', True),
        (TEMPLATE, ' Message: "hi" Is this ham or spam? Answer:', False),
        (TEMPLATE, 'Message: "hi" Is this ham or spam? Answer: ', False),
        (TEMPLATE, 'Message: "hi" Is this ham or spam?', False),
        ("ab{x}bc", "abc", False),  # the ends may not share a letter
        ("ab{x}bc", "abbc", True),
        ("{x}, {y}.", "a, b, c.", True),
        ("{x}, {y}.", "a b.", False),
        ("{x}{y}", "", True),
        ("a{x}b{y}c{z}a", "abca", True),
        ("a{x}b{y}c{z}a", "acba", False),
        ("{{{x}}}", "{anything\nat all}", True),
        ("plain", "plain", True),
        ("plain", "plainer", False),
    ],
)
def test_matches_the_literal_parts_in_order(template, text, expected):
    assert matches(template, text) is expected


def test_matches_agrees_with_a_slow_search_and_accepts_every_rendering():
    import re

    rng = random.Random(0)
    for _ in range(2000):
        parts = ["".join(rng.choices("ab", k=rng.randrange(3))) for _ in range(rng.randrange(2, 5))]
        names = [f"f{i}" for i in range(len(parts) - 1)]
        template = parts[0] + "".join(f"{{{name}}}{part}" for name, part in zip(names, parts[1:], strict=True))
        text = "".join(rng.choices("ab", k=rng.randrange(8)))
        assert matches(template, text) == bool(re.fullmatch(".*".join(parts), text)), (template, text)
        assert matches(template, render(template, {name: rng.choice(["", "a", "bab"]) for name in names}))
