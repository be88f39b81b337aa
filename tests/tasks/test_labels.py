"""Which token sequences answer for which label, with tokenizers built here and those of real models."""

from __future__ import annotations

from dataclasses import replace

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import resolve
from merasteer.tasks.schema import default_variants
from merasteer.types import MAX_LABEL_TOKENS, Task

TASK = Task("spam", ("ham", "spam"), (("ham", " ham", "Ham"), ("spam", " spam")), "{text}")
FREE = replace(TASK, choose="free")


def pieces(tokenizer, served):
    """The variants as the tokenizer's pieces, label by label."""
    return [[tuple(tokenizer.convert_ids_to_tokens(list(ids))) for ids in variants] for variants in served.variants]


def test_every_spelling_is_a_sequence_of_tokens(byte_level):
    tokenizer = byte_level("Ġham", "Ġspam", "spam")
    served = resolve(TASK, tokenizer)
    assert pieces(tokenizer, served) == [[("h", "a", "m"), ("Ġham",), ("H", "a", "m")], [("spam",), ("Ġspam",)]]
    assert (served.name, served.labels, served.template, served.choose) == ("spam", TASK.labels, "{text}", "labels")
    assert (served.chat, served.system, served.examples, served.end) == (False, None, (), None)


def test_a_free_answer_is_known_by_one_token_and_other_spellings_are_dropped(byte_level):
    tokenizer = byte_level("Ġham", "Ġspam", "spam")
    served = resolve(replace(FREE, position="exact", max_new_tokens=8), tokenizer)
    assert pieces(tokenizer, served) == [[("Ġham",)], [("spam",), ("Ġspam",)]]
    assert (served.choose, served.position, served.max_new_tokens, served.end) == ("free", "exact", 8, None)


def test_spellings_of_the_same_tokens_count_once(word_level):
    assert resolve(TASK, word_level("ham", "spam")).variants == (((1,),), ((2,),))


def test_a_prefix_space_makes_two_spellings_one(byte_level):
    tokenizer = byte_level("Ġham", "Ġspam", "ham", "spam", prefix_space=True)
    served = resolve(replace(TASK, variants=((" ham",), (" spam",))), tokenizer)
    assert pieces(tokenizer, served) == [[("Ġham",)], [("Ġspam",)]]
    # without a blank a text begins with Ġham too, and behind a line end it is ham
    served = resolve(replace(TASK, variants=(("ham", " ham"), ("spam", " spam"))), tokenizer)
    assert pieces(tokenizer, served) == [[("Ġham",), ("ham",)], [("Ġspam",), ("spam",)]]


def test_a_word_start_marker_comes_once_and_is_not_taken_for_another_spelling(marking):
    tokenizer = marking("▁ham", "▁spam", "ham", "spam")
    assert tokenizer.encode(" ham", add_special_tokens=False) != tokenizer.encode("ham", add_special_tokens=False)
    served = resolve(replace(TASK, variants=(("ham", " ham"), (" spam",))), tokenizer)
    assert pieces(tokenizer, served) == [[("▁ham",), ("ham",)], [("▁spam",)]]


def test_bytes_spell_what_is_in_no_piece(marking):
    tokenizer = marking("▁ham")
    served = resolve(replace(TASK, labels=("ham", "π"), variants=((" ham",), ("π",))), tokenizer)
    assert pieces(tokenizer, served)[1] == [("▁", "<0xCF>", "<0x80>"), ("<0xCF>", "<0x80>")]
    assert served.end is None


def test_two_words_are_a_label(byte_level):
    tokenizer = byte_level("not", "Ġspam", "spam")
    served = resolve(replace(TASK, labels=("spam", "not spam"), variants=(("spam",), ("not spam",))), tokenizer)
    assert pieces(tokenizer, served) == [[("spam",)], [("not", "Ġspam")]]


@pytest.mark.parametrize("choose", ["labels", "free"])
def test_a_label_of_unknown_tokens_is_refused(word_level, choose):
    with pytest.raises(
        BadTask, match=r"task 'spam': variants.spam: none of 'spam', ' spam' (is a single|can be) .*; add a"
    ):
        resolve(replace(TASK, choose=choose), word_level("ham"))


def test_an_unknown_token_inside_spoils_a_spelling(word_level):
    task = replace(TASK, variants=(("ham",), ("spam or so", "spam")))
    assert resolve(task, word_level("ham", "spam", "or")).variants == (((1,),), ((2,),))


def test_a_label_of_long_spellings_is_refused(byte_level):
    with pytest.raises(BadTask, match=r"variants.ham: none of 'ham', ' ham', 'Ham' is a single token"):
        resolve(FREE, byte_level("spam"))
    long = replace(TASK, variants=(("h" * MAX_LABEL_TOKENS,), ("s" * (MAX_LABEL_TOKENS + 1),)))
    with pytest.raises(BadTask, match=r"variants.spam: none of .* in up to 32 tokens, none unknown or special; add"):
        resolve(long, byte_level())


def test_what_frames_a_text_is_no_answer(chatty):
    task = replace(TASK, variants=(("ham", "ham</s>", "<|im_end|>"), ("spam",)))
    tokenizer = chatty(None, "ham", "spam")
    assert pieces(tokenizer, resolve(task, tokenizer)) == [[("ham",)], [("spam",)]]
    with pytest.raises(BadTask, match=r"variants.ham: none of 'ham</s>' can be written"):
        resolve(replace(task, variants=(("ham</s>",), ("spam",))), tokenizer)


def test_what_two_labels_claim_is_refused_naming_both(word_level, byte_level):
    task = replace(TASK, labels=("no", "yes", "NO"), variants=(("no",), ("yes",), (" NO",)))
    for choose in ("labels", "free"):
        with pytest.raises(BadTask, match=r"labels 'no' and 'NO' both claim token 1 \(' NO'\)"):
            resolve(replace(task, choose=choose), word_level("no", "yes", lower=True))
    task = replace(TASK, variants=(("h am",), ("h  am", "spam")))
    with pytest.raises(BadTask, match=r"labels 'ham' and 'spam' both claim the tokens \[1, 2\] \('h  am'\)"):
        resolve(task, word_level("h", "am", "spam"))


def test_special_tokens_are_not_added(chatty):
    tokenizer = chatty(None, "Ġham", "Ġspam")
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert all(tokenizer.bos_token_id not in ids for variants in resolve(TASK, tokenizer).variants for ids in variants)


NESTED = replace(TASK, labels=("spam", "spammer"), variants=(("spam",), ("spammer",)))


def test_an_end_competes_only_where_a_spelling_begins_another(chatty):
    tokenizer = chatty("chatml", "spam", "ham", "mer")
    assert resolve(NESTED, tokenizer).end == tokenizer.eos_token_id
    assert resolve(replace(NESTED, chat=True), tokenizer).end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert resolve(replace(TASK, chat=True), tokenizer).end is None
    assert resolve(replace(NESTED, choose="free", variants=(("spam",), ("mer",))), tokenizer).end is None


@pytest.mark.parametrize(
    ("family", "ends"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("plain", "</s>"),
        ("shouting", "</s>"),
    ],
)
def test_the_end_of_a_chat_is_what_ends_the_assistants_turn(chatty, family, ends):
    tokenizer = chatty(family, "spam")
    assert resolve(replace(NESTED, chat=True), tokenizer).end == tokenizer.convert_tokens_to_ids(ends)


def test_a_tokenizer_without_an_end_is_refused_where_one_is_needed(chatty):
    tokenizer = chatty(None, "spam", eos=False)
    assert resolve(TASK, tokenizer).end is None
    with pytest.raises(
        BadTask, match=r"variants: one spelling is the beginning of another, .*; change a spelling"
    ) as caught:
        resolve(NESTED, tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "family", "chat"), [(None, "chatml", True), (None, None, False), (False, "chatml", False)]
)
def test_a_chat_is_settled_by_the_tokenizer_where_it_is_left_open(chatty, asked, family, chat):
    assert resolve(replace(TASK, chat=asked, system="Be brief."), chatty(family)).chat is chat


def test_a_chat_without_a_template_is_refused(chatty):
    with pytest.raises(
        BadTask, match=r"task 'spam': prompt.chat: true, but the tokenizer .* no chat template; set chat = \"auto\""
    ):
        resolve(replace(TASK, chat=True), chatty(None))


def test_examples_are_passed_on(byte_level):
    assert resolve(TASK, byte_level(), [("a", "ham")]).examples == (("a", "ham"),)


SPELT = {
    "SmolLM2": [("ham",), ("Ġham",), ("Ham",), ("ĠHam",), ("H", "AM"), ("ĠH", "AM")],
    "gemma-3-270m": [("ham",), ("▁ham",), ("Ham",), ("▁Ham",), ("HAM",), ("▁HAM",)],
    "Qwen2.5-Coder": [("ham",), ("Ġham",), ("Ham",), ("ĠHam",), ("HAM",), ("ĠH", "AM")],
}


@pytest.mark.parametrize("name", ["SmolLM2", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gemma", "Qwen"))])
def test_real_tokenizers_write_each_default_spelling_in_one_way(real_tokenizer, name):
    tokenizer = real_tokenizer(name)
    task = replace(TASK, variants=tuple(default_variants(label) for label in TASK.labels), chat=None)
    served = resolve(task, tokenizer)
    assert served.chat is (name != "gemma")
    assert pieces(tokenizer, served)[0] == next(spelt for key, spelt in SPELT.items() if key.startswith(name))
    assert len(served.variants[1]) == 6
    nested = resolve(replace(NESTED, variants=(("spam",), ("spam and ham",)), chat=None), tokenizer)
    assert tokenizer.convert_ids_to_tokens(nested.end) == ("<eos>" if name == "gemma" else "<|im_end|>")
