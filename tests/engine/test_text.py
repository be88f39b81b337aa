"""Text token by token: the pieces join to the text at once, whatever the tokens are, and stop where the text stops."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merasteer.engine.text import TextStream, continuation

TEXTS = ("naïve café, 日本語 and 👩‍👩‍👧 spam", " plain words only", "ends in half 日", "ÿþ odd � itself", "")


def byte_level() -> Any:
    """Every byte one token: characters are always split."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace() -> Any:
    """Words that begin with ▁ and bytes as a last resort, the leading space stripped by the decoder: as Llama 2 has it."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {
        word: 256 + i for i, word in enumerate(("<unk>", "▁", "▁spam", "▁ham", "ham", "▁is", "s", "▁caf", "é", "▁日"))
    }
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def streamed(
    tokenizer: Any, prompt: list[int], tokens: list[int], stop: tuple[str, ...] = ()
) -> tuple[list[str], TextStream]:
    """The pieces of a stream as a server sends them, and the stream that told the final text."""
    watcher, teller = TextStream(tokenizer, prompt, stop), TextStream(tokenizer, prompt, stop)
    pieces = []
    for token in tokens:
        teller.push(token)
        pieces.append(watcher.push(token))
        if teller.stopped:
            break
    return [*pieces, watcher.rest(teller.text)], teller


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_the_pieces_join_to_the_text_of_all_tokens(make: Any) -> None:
    tokenizer, rng = make(), random.Random(0)
    size = len(tokenizer)
    for _ in range(200):
        prompt = [rng.randrange(size) for _ in range(rng.randrange(10))]
        tokens = [rng.randrange(size) for _ in range(rng.randrange(80))]
        pieces, teller = streamed(tokenizer, prompt, tokens)
        assert "".join(pieces) == teller.text


@pytest.mark.parametrize("text", TEXTS)
def test_split_characters_come_whole_and_equal_decoding_at_once(text: str) -> None:
    tokenizer = byte_level()
    prompt, tokens = tokenizer.encode("Say: "), tokenizer.encode(text)
    pieces, teller = streamed(tokenizer, prompt, tokens)
    assert teller.text == continuation(tokenizer, prompt, tokens) == text
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces[:-1]) or "�" in text


def test_a_leading_space_survives_a_decoder_that_strips_it() -> None:
    tokenizer = metaspace()
    prompt, tokens = [tokenizer.convert_tokens_to_ids("▁is")], tokenizer.convert_tokens_to_ids(["▁spam", "s", "▁ham"])
    pieces, teller = streamed(tokenizer, prompt, tokens)
    assert pieces[:3] == [" spam", "s", " ham"]
    assert teller.text == continuation(tokenizer, prompt, tokens) == " spams ham"


def test_text_stops_before_the_first_stop_string_and_never_shows_its_beginning() -> None:
    tokenizer = byte_level()
    for stop, expected in (
        (("END",), "ab EN "),
        (("EN E", "D c"), "ab "),
        (("é",), "ab EN END caf"),
        (("zz", "fée"), "ab EN END caf\xe9!"),
    ):
        pieces, teller = streamed(tokenizer, [], tokenizer.encode("ab EN END café!"), stop)
        assert "".join(pieces) == teller.text == expected
    held = TextStream(tokenizer, [], ("END",))
    assert [held.push(token) for token in tokenizer.encode("aENEND")] == ["a", "", "", "EN", "", ""]
    assert held.stopped


def test_a_stop_string_is_found_wherever_the_tokens_cut_it() -> None:
    tokenizer, rng = byte_level(), random.Random(1)
    for _ in range(200):
        text = "".join(rng.choice("abé日") for _ in range(60))
        stop = tuple("".join(rng.choice("abé日") for _ in range(rng.randrange(1, 5))) for _ in range(2))
        pieces, teller = streamed(tokenizer, [], tokenizer.encode(text), stop)
        found = [at for at in map(text.find, stop) if at >= 0]
        assert "".join(pieces) == teller.text == text[: min(found, default=len(text))]


def test_a_token_costs_the_same_wherever_it_stands() -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, tokens: list[int], **_: Any) -> str:
            decoded.append(len(tokens))
            return "".join(chr(97 + token % 26) for token in tokens)

    stream = TextStream(Counting(), [1, 2, 3], ("nowhere",))
    for token in range(500):
        stream.push(token)
    assert max(decoded) <= 40


def test_a_run_of_byte_tokens_is_never_cut_inside_a_character() -> None:
    """Emoji as four byte tokens each: whatever the window's length, none is lost, and a stop string in them is found."""
    tokenizer = metaspace()
    text = "🎉🥳🍰🎈" * 6
    tokens = list(text.encode())
    for shift in range(4):
        prompt = [ord("x")] * shift + list("é日🎉".encode())
        pieces, teller = streamed(tokenizer, prompt, tokens)
        assert "".join(pieces) == teller.text == continuation(tokenizer, prompt, tokens) == text
    _, stopped = streamed(tokenizer, [], tokens, ("🎈🎉🥳🍰🎈🎉🥳",))
    assert stopped.stopped
    assert stopped.text == "🎉🥳🍰"
