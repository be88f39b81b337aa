"""Small tokenizers of every kind that models come with, and the text of their tokens written from what each kind promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, PAD, TOOL = "<|im_end|>", "<pad>", "<tool>"  # two special tokens, and an added one that is text
WORDS = ("spam", "ham", "is", "s", "caf", "é", "日", "no", "'t", ".", ",", "�", "👩‍👩‍👧", " x")


def _made(tokenizer: Tokenizer) -> Any:
    tokenizer.add_special_tokens([END, PAD])
    tokenizer.add_tokens([AddedToken(TOOL, special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def byte_level() -> Any:
    """Every byte one token, and longer ones that begin and end inside a character: as GPT-2 and most after it have it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(byte for byte in range(256) if byte not in plain)}
    text = " é日 👩‍👩‍👧 ham�".encode()
    longer = {text[i : i + n] for n in (2, 3, 5) for i in range(len(text) - n)}
    names = [
        "".join(letters[byte] for byte in raw) for raw in [*(bytes([byte]) for byte in range(256)), *sorted(longer)]
    ]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _made(tokenizer)


def _with_bytes() -> dict[str, int]:
    """Bytes first, so that the id of a byte is the byte."""
    words = ("<unk>", "▁", "▁▁", *WORDS, *(f"▁{word}" for word in WORDS))
    return {name: i for i, name in enumerate((*(f"<0x{byte:02X}>" for byte in range(256)), *words))}


def byte_fallback() -> Any:
    """Words that begin with ▁, bytes as a last resort, the leading space stripped by the decoder: as Llama 2 has it."""
    tokenizer = Tokenizer(models.BPE(_with_bytes(), [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _made(tokenizer)


def unigram() -> Any:
    """Bytes as a last resort too, no space stripped: as Gemma has it."""
    scores = [(name, -float(i)) for name, i in _with_bytes().items()]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=256, byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _made(tokenizer)


def metaspace() -> Any:
    """Words that begin with ▁, and no bytes: as T5 has it."""
    names = ("<unk>", "▁", *WORDS, *(f"▁{word}" for word in WORDS))
    tokenizer = Tokenizer(models.Unigram([(name, -float(i)) for i, name in enumerate(names)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    return _made(tokenizer)


def word_piece() -> Any:
    """Words, and ## for what goes on inside of one; spaces before punctuation are cleaned up: as BERT has it."""
    names = ("[UNK]", *WORDS, *(f"##{word}" for word in WORDS))
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return _made(tokenizer)


def suffixes() -> Any:
    """Words end in </w>, which is a space only where something follows: as GPT and CLIP have it."""
    names = ("<unk>", *WORDS, *(f"{word}</w>" for word in WORDS))
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _made(tokenizer)


def words() -> Any:
    """No decoder at all."""
    return _made(Tokenizer(models.WordLevel({name: i for i, name in enumerate(WORDS)}, unk_token=WORDS[0])))


def _at_once(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The library's own text of all tokens, less that of the prompt."""
    head, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *tokens]))
    assert whole.startswith(head)
    return str(whole[len(head) :])


def _behind_nothing(tokenizer: Any, _prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Where a token's text does not depend on its neighbours: the library's text of the answer alone."""
    return str(tokenizer.decode(tokens, skip_special_tokens=True))


def _with_runs(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Runs of bytes as sentencepiece reads them: every character that is whole, and a mark for each byte that is of none."""
    special = set(tokenizer.all_special_ids)
    left = [token for token in tokens if token not in special]
    text = ""
    for is_byte, run in groupby(left, lambda token: token < 256):
        if is_byte:
            text += _characters(bytes(run))
        else:
            text += "".join(tokenizer.convert_ids_to_tokens(list(run))).replace("▁", " ")
    begins = all(token in special for token in prompt) and "Strip" in repr(tokenizer.backend_tokenizer.decoder)
    return text.removeprefix(" ") if begins else text


def _characters(raw: bytes) -> str:
    text = ""
    while raw:
        for size in (1, 2, 3, 4):
            try:
                text, raw = text + raw[:size].decode(), raw[size:]
                break
            except UnicodeDecodeError:
                continue
        else:
            text, raw = text + "�", raw[1:]
    return text


KINDS: dict[Callable[[], Any], Callable[[Any, Sequence[int], Sequence[int]], str]] = {
    byte_level: _behind_nothing,
    byte_fallback: _with_runs,
    unigram: _with_runs,
    metaspace: _at_once,
    word_piece: _at_once,
    suffixes: _at_once,
    words: _at_once,
}
