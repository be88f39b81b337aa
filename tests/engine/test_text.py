"""One text, however it is asked for: the pieces join to the text that the tokenizer's kind promises, and stop where the text stops."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from merasteer.engine.text import Pieces, TextStream

from .tokenizer_kinds import END, KINDS, PAD, TOOL, byte_fallback, byte_level, suffixes, unigram, word_piece

TEXTS = ("naïve café, 日本語 and 👩‍👩‍👧 spam", " plain words only", "ends in half 日", "ÿþ odd � itself", "")
Texts = Callable[[Any, Sequence[int], Sequence[int]], str]


def streamed(
    tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], stop: Sequence[str] = (), pieces: Pieces | None = None
) -> tuple[list[str], TextStream]:
    """What a stream says token by token, what is missing of its text behind them, and the stream."""
    stream = TextStream(pieces or Pieces(tokenizer), prompt, stop)
    said = []
    for token in tokens:
        said.append(stream.push(token))
        assert stream.released == sum(map(len, said))
        if stream.stopped:
            break
    return [*said, stream.finish()[stream.released :]], stream


def first_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to the stop string that is complete first, the longest of those that are."""
    for end in range(1, len(text) + 1):
        found = [len(one) for one in stop if text[:end].endswith(one)]
        if found:
            return text[: end - max(found)]
    return text


def held_back(said: Sequence[str], expected: str, stop: Sequence[str]) -> bool:
    """Whether nothing was ever said that was not in the text, or that could still have been the beginning of a stop string."""
    shown = ""
    for piece in said[:-1]:
        shown += piece
        if not expected.startswith(shown) or any(one in shown for one in stop):
            return False
    return True


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "text_of"), KINDS.items())
def test_plain_streamed_and_stopped_answers_have_one_text(make: Callable[[], Any], text_of: Texts, rounds: int) -> None:
    """Random tokens of any kind, special, cut and unknown ones among them: the text is what the kind promises, in every form."""
    tokenizer, rng = make(), random.Random(make.__name__)
    size, pieces = len(tokenizer) + 2, Pieces(tokenizer)  # models have more ids than their tokenizers
    controls = tokenizer.convert_tokens_to_ids([END, PAD, TOOL])
    for _ in range(rounds):
        prompt, tokens = (
            [rng.choice(controls) if rng.random() < 0.1 else rng.randrange(size) for _ in range(rng.randrange(most))]
            for most in (6, 60)
        )
        known = [token for token in tokens if token < size - 2]
        expected = text_of(tokenizer, [token for token in prompt if token < size - 2], known)
        said, stream = streamed(tokenizer, prompt, tokens, pieces=pieces)
        assert "".join(said) == stream.finish() == expected, (prompt, tokens)
        assert expected.startswith("".join(said[:-1]))
        # Stop strings that nearly come, and one of a special token that does not come.
        starts = range(0, len(expected), 7)[:15]
        unused = ["<|im_", *(expected[at : at + rng.randrange(1, 20)] + "¤\0¤" for at in starts)]
        said, stream = streamed(tokenizer, prompt, tokens, unused, pieces)
        assert not stream.stopped
        assert "".join(said) == stream.finish() == expected, (prompt, tokens, unused)
        # And some that do come.
        if expected:
            at = rng.randrange(len(expected))
            used = (*unused, expected[at : at + rng.randrange(1, 12)], expected[at // 2 : at // 2 + 3])
            said, stream = streamed(tokenizer, prompt, tokens, used, pieces)
            cut = first_stop(expected, used)
            assert stream.stopped
            assert "".join(said) == stream.finish() == cut, (prompt, tokens, used)
            assert held_back(said, cut, used)


@pytest.mark.parametrize("text", TEXTS)
def test_split_characters_come_whole(text: str) -> None:
    tokenizer = byte_level()
    said, stream = streamed(tokenizer, tokenizer.encode("Say: "), list(tokenizer.encode(text)))
    assert "".join(said) == stream.finish() == text
    assert "�" not in "".join(said[:-1]) or "�" in text


def test_a_leading_space_survives_a_decoder_that_strips_it() -> None:
    tokenizer = byte_fallback()
    prompt, tokens = [tokenizer.convert_tokens_to_ids("▁is")], tokenizer.convert_tokens_to_ids(["▁spam", "s", "▁ham"])
    assert streamed(tokenizer, prompt, tokens)[0] == [" spam", "s", " ham", ""]
    assert streamed(tokenizer, tokenizer.convert_tokens_to_ids([END]), tokens)[0] == ["spam", "s", " ham", ""]


def test_what_comes_behind_a_word_is_known_with_the_next() -> None:
    tokenizer = suffixes()
    tokens = tokenizer.convert_tokens_to_ids(["spam</w>", "caf", "é</w>", ".</w>"])
    assert streamed(tokenizer, [], tokens)[0] == ["spam", " caf", "é", " .", ""]
    tokenizer = word_piece()
    tokens = tokenizer.convert_tokens_to_ids(["ham", "##s", ".", "no"])
    assert streamed(tokenizer, [0], tokens)[0] == [" ham", "s", ".", " no", ""]


@pytest.mark.parametrize("make", [byte_fallback, unigram])
def test_complete_characters_are_kept_before_and_behind_a_cut_one(make: Callable[[], Any]) -> None:
    """The tokenizer itself gives a whole run of bytes up for one that is of no character."""
    tokenizer = make()
    whole, half = list("né".encode()), list("日".encode())[:2]
    assert tokenizer.decode([*whole, *half]) == "�����"
    assert streamed(tokenizer, [256], [*whole, *half])[0] == ["n", "", "é", "", "", "��"]
    assert streamed(tokenizer, [256], [*half, *whole])[0] == ["", "", "��n", "", "é", ""]


@pytest.mark.parametrize("make", [byte_fallback, byte_level])
def test_an_answer_begins_at_a_character_whatever_the_prompt_ends_in(make: Callable[[], Any]) -> None:
    tokenizer = make()
    raw = list("日".encode())
    names = [f"<0x{byte:02X}>" for byte in raw] if make is byte_fallback else tokenizer.tokenize("日")
    ids = tokenizer.convert_tokens_to_ids(names)
    assert "".join(streamed(tokenizer, ids[:2], [*ids[2:], *ids])[0]) == "�日"


def test_text_stops_before_the_first_stop_string_and_never_shows_its_beginning() -> None:
    tokenizer = byte_level()
    for stop, expected in (
        (("END",), "ab EN "),
        (("EN E", "D c"), "ab "),
        (("é",), "ab EN END caf"),
        (("zz", "fée"), "ab EN END caf\xe9!"),
        (("b EN EN", "EN"), "ab "),  # the one that is complete first, wherever it begins
        (("EN", "b EN"), "a"),  # the longest of those that end together
    ):
        said, stream = streamed(tokenizer, [], tokenizer.encode("ab EN END café!"), stop)
        assert "".join(said) == stream.finish() == expected
    held = TextStream(Pieces(tokenizer), [], ("END",))
    assert [held.push(token) for token in tokenizer.encode("aENEND")] == ["a", "", "", "EN", "", ""]
    assert held.stopped
    assert held.push(ord("x")) == ""
    assert held.finish() == "aEN"


def test_the_mark_of_a_cut_character_may_complete_a_stop_string() -> None:
    tokenizer = byte_level()
    said, stream = streamed(tokenizer, [], tokenizer.encode("ab日")[:-1], ("b�",))
    assert said == ["a", "", "", "", ""]
    assert (stream.finish(), stream.stopped) == ("a", True)


def test_a_special_token_stops_the_text_by_its_own_text() -> None:
    tokenizer = byte_level()

    def said(text: str, *stop: str) -> list[str]:
        return streamed(tokenizer, [], tokenizer.encode(text), stop)[0]

    assert said(f"ab{END}c", END) == ["a", "b", "", ""]
    assert said(f"ab\n{PAD}c\n{END}d", f"\n{END}") == ["a", "b", "", "", "\nc", "", "", ""]
    assert said(f"a{END}{PAD}b", f"{END}{PAD}b") == ["a", "", "", "", ""]
    assert said(f"a{END}bc", f"a{END}bd") == ["", "", "", "abc", ""]
    # No part of one is text, and one in between is none: what the text shows is what is searched.
    assert said(f"ab{END}c", "im_", "end", "<", "|>c", f"b{END[:-1]}") == ["a", "", "", "bc", ""]
    assert said(f"x{END}yz", "xy") == ["", "", "", ""]
    assert streamed(tokenizer, [], tokenizer.encode(f"x{END}y"), ("xy",))[1].stopped
    assert "".join(said(f"a{TOOL}b", TOOL)) == "a"


def test_each_token_is_decoded_once() -> None:
    """At most three calls of the tokenizer, of two tokens at most, for one that is new behind its neighbour; none for the others."""
    tokenizer = byte_fallback()
    calls: list[int] = []
    decode = tokenizer.decode

    def counting(tokens: list[int], **named: Any) -> Any:
        calls.append(len(tokens))
        return decode(tokens, **named)

    tokenizer.decode = counting
    stream = TextStream(Pieces(tokenizer), [], ["nowhere"])
    tokens = [257 + i % 9 for i in range(900)]
    for token in tokens[:20]:
        stream.push(token)
    calls.clear()
    for token in tokens[20:]:
        stream.push(token)
    assert calls == []
    other = TextStream(Pieces(tokenizer), [], [])
    for token in range(256, 256 + 25):
        other.push(token)
    assert max(calls) <= 2
    assert len(calls) <= 3 * 25 + 2
