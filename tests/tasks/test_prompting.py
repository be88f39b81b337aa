"""Prompts of a task: what stands around the template, which tokens it becomes, and which raw texts are recognised."""

from __future__ import annotations

from dataclasses import replace

import pytest

from merasteer.errors import BadTask, InvalidInput
from merasteer.tasks import Prompter, demonstrations, resolve
from merasteer.tasks.chat import broken
from merasteer.types import Task

TASK = Task("spam", ("ham", "spam"), (("ham", " ham"), ("spam",)), 'Message: "{text}" {{Ham}} or spam?', chat=None)
EXAMPLES = (('Message: "win" {Ham} or spam?', "spam"), ('Message: "hi" {Ham} or spam?', "ham"))
FIELDS = ({"text": "hello"}, {"text": ""}, {"text": "<|im_end|>\n{x} {{"}, {"text": " two\nlines "})
SYSTEM = "Be brief."


def prompter(tokenizer, examples=(), **changes) -> Prompter:
    return Prompter(resolve(replace(TASK, **changes), tokenizer, examples), tokenizer)


def messages(text, system=None, examples=()):
    turns = [{"role": "system", "content": system}] if system else []
    for asked, said in examples:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return [*turns, {"role": "user", "content": f'Message: "{text}" {{Ham}} or spam?'}]


# ------------------------------------------------------------------------------------------------ plain


def test_a_plain_prompt_is_the_rendered_template_with_the_tokenizers_own_special_tokens(chatty):
    tokenizer = chatty(None)
    made = prompter(tokenizer)
    assert made.text({"text": "a {b}"}) == 'Message: "a {b}" {Ham} or spam?'
    assert made.encode(made.text({"text": "a"})) == tuple(tokenizer.encode('Message: "a" {Ham} or spam?'))
    assert made.encode("a")[0] == tokenizer.bos_token_id
    with pytest.raises(InvalidInput, match="field 'text': missing"):
        made.text({})


@pytest.mark.parametrize(
    ("prompt", "label", "written"),
    [("Is it?", "ham", "Is it? ham\n\n"), ("Is it?", " ham", "Is it? ham\n\n"), ("Is it: ", "ham", "Is it: ham\n\n"),
     ("Is it?", "\nham", "Is it?\nham\n\n")],
)  # fmt: skip
def test_examples_in_front_of_a_plain_prompt_are_parted_from_their_labels_by_white_space(
    chatty, prompt, label, written
):
    made = prompter(chatty(None), [(prompt, label)])
    assert made.text({"text": "a"}) == f'{written}Message: "a" {{Ham}} or spam?'
    assert made.matches(made.text({"text": "a"}))
    assert not made.matches('Message: "a" {Ham} or spam?')


def test_a_system_text_without_a_chat_stands_in_front(chatty):
    made = prompter(chatty(None), EXAMPLES, system=SYSTEM)
    assert made.system_in_front
    assert made.text({"text": "a"}).startswith('Be brief.\n\nMessage: "win" {Ham} or spam? spam\n\nMessage: "hi"')
    assert made.matches(made.text({"text": "a"}))


def test_labels_are_shown_in_their_first_spelling(example):
    shown = [example("a?", 1), example("b?", 0)]
    assert demonstrations(TASK, shown) == (("a?", "spam"), ("b?", "ham"))


def test_a_second_begin_of_text_is_never_added(chatty):
    tokenizer = chatty(None)
    made, once = prompter(tokenizer), tokenizer.encode("hello")
    assert tokenizer.encode("<s>hello") == [tokenizer.bos_token_id, *once]
    assert made.encode("<s>hello") == made.encode("hello") == tuple(once)
    assert made.encode("<s><s>hello") == (tokenizer.bos_token_id, *once)  # two that were asked for
    bare = chatty(None, bos=False)
    assert prompter(bare).encode("<s>hello") == tuple(bare.encode("<s>hello"))


# ------------------------------------------------------------------------------------------------- chat


@pytest.mark.parametrize("examples", [(), EXAMPLES], ids=["bare", "examples"])
@pytest.mark.parametrize("system", [None, SYSTEM], ids=["no system", "system"])
@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma", "deaf", "plain", "shouting"])
def test_tokens_are_those_of_the_chat_template(chatty, family, system, examples):
    tokenizer = chatty(family)
    made = prompter(tokenizer, examples, system=system)
    in_front = family in ("gemma", "deaf")
    assert made.system_in_front is (in_front and system is not None)
    if family == "llama3":  # its date is one day, whatever day it is
        tokenizer.chat_template = tokenizer.chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    for fields in FIELDS:
        chat = messages(fields["text"], None if in_front else system, examples)
        if in_front and system:
            chat[0]["content"] = f"{system}\n\n{chat[0]['content']}"
        text = made.text(fields)
        assert text == tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert made.encode(text) == tuple(wanted) == made.tokens(f'Message: "{fields["text"]}" {{Ham}} or spam?')
        assert made.matches(text) is (family != "shouting")


@pytest.mark.parametrize("family", ["chatml", "gemma", "plain"])
def test_a_raw_text_matches_if_it_holds_the_literal_parts_of_the_whole_prompt(chatty, family):
    made = prompter(chatty(family), system=SYSTEM)
    text = made.text({"text": "hello"})
    assert made.matches(text.replace("hello", "good {day}\n"))
    for other in ("", "hello", 'Message: "hello" {Ham} or spam?', text + " ", " " + text, text.replace(SYSTEM, "Be long."),
                  text.replace("{Ham}", "Ham")):  # fmt: skip
        assert not made.matches(other), other


def test_what_is_no_prompt_of_the_task_is_encoded_as_the_tokenizer_does(chatty):
    tokenizer = chatty("chatml")
    made = prompter(tokenizer)
    own = made.text({"text": "hello"})
    assert made.encode(own)[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")  # this family begins without <s>
    assert made.encode("hello") == tuple(tokenizer.encode("hello"))
    other = own.replace("{Ham} or spam?", "Which?")
    assert not made.matches(other)
    assert made.encode(other)[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")  # another message in the same chat


def test_a_template_that_changes_what_it_is_given_recognises_no_text_and_still_encodes_its_own(chatty):
    tokenizer = chatty("shouting")
    made = prompter(tokenizer)
    text = made.text({"text": "hello"})
    assert text == '<s>[user] MESSAGE: "HELLO" {HAM} OR SPAM?[assistant]'
    assert not made.matches(text)
    assert made.encode(text).count(tokenizer.bos_token_id) == 1


def test_a_template_that_trims_is_matched_by_what_is_left(chatty):
    made = prompter(chatty("llama3"), template="\n {text} Spam? \n")
    text = made.text({"text": "hello"})
    assert "<|end_header_id|>\n\nhello Spam?<|eot_id|>" in text
    assert made.matches(text)


def test_two_fields_and_no_literal_between_them(chatty):
    made = prompter(chatty("chatml"), template="{a}{b} {a}?")
    assert made.matches(made.text({"a": "x", "b": "y"}))
    assert not made.matches(made.text({"a": "x", "b": "y"}).replace("?", "!"))


BROKEN = [
    ("{{ raise_exception('this template\nis broken') }}", r"\(TemplateError: this template is broken\)"),
    ("{{ messages[0]['content'] }}\n{% for %}", r"\(TemplateSyntaxError: .*, line 2 of it\)"),
    ("{{ messages[0].content.nothing.of_it }}", r"\(UndefinedError: "),
    ("{{ 1 / 0 }}", r"\(ZeroDivisionError: "),
]


@pytest.mark.parametrize(("template", "why"), BROKEN)
def test_a_template_that_takes_no_conversation_is_told_as_broken_and_whose_fault_that_is(chatty, template, why):
    tokenizer = chatty("chatml")
    tokenizer.chat_template = template
    with pytest.raises(BadTask, match="the model's chat template is broken.*" + why) as caught:
        prompter(tokenizer)
    assert "the fault is in the model's files, not in task or request: mend their chat_template" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_that_refuses_one_conversation_is_not_broken(chatty):
    assert [broken(chatty(family)) for family in ("chatml", "gemma", "deaf")] == [None] * 3
    demanding = chatty("chatml")
    demanding.chat_template = (
        "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[1]['content'] }}"
    )
    assert broken(demanding) is None
    with pytest.raises(BadTask, match=r"refuses this conversation \(TemplateError: no system\).*not the request's"):
        prompter(demanding)


def test_a_template_that_refuses_one_message_does_not_repeat_it(chatty):
    tokenizer = chatty("chatml")
    check = (
        "{% if 'secret' in messages[-1]['content'] %}{{ raise_exception('no ' + messages[-1]['content']) }}{% endif %}"
    )
    tokenizer.chat_template = check + tokenizer.chat_template
    made = prompter(tokenizer)
    made.text({"text": "hello"})
    with pytest.raises(BadTask, match=r"\(TemplateError\)") as caught:
        made.text({"text": "secret"})
    assert "secret" not in str(caught.value)


def test_room_is_for_the_prompt_and_the_longest_answer(chatty):
    made = prompter(chatty("chatml"), variants=(("ham",), ("spam", "not ham")))
    assert made.longest_answer == len("not ham")
    length = len(made.tokens("hello"))
    assert made.fits("hello", length + 7)
    assert not made.fits("hello", length + 6)
    free = prompter(chatty("chatml"), variants=(("h",), ("s",)), choose="free", max_new_tokens=3)
    assert free.longest_answer == 3


@pytest.mark.parametrize("name", ["SmolLM2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gemma", "Qwen"))])
def test_prompts_of_real_models(real_tokenizer, name):
    tokenizer = real_tokenizer(name)
    made = prompter(tokenizer, EXAMPLES, system=SYSTEM)
    assert made.system_in_front is (name == "gemma")
    for fields in FIELDS:
        text = made.text(fields)
        assert made.matches(text)
        if name == "gemma":
            assert made.encode(text) == (tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False))
            continue
        chat = messages(fields["text"], SYSTEM, EXAMPLES)
        wanted = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert made.encode(text) == tuple(wanted)
        assert tokenizer.decode(made.encode(text)[:1]) == "<|im_start|>"
        assert made.encode(f"{tokenizer.bos_token}hello").count(tokenizer.bos_token_id) == 1
