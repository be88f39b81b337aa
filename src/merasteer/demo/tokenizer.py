"""A small byte-level BPE tokenizer, trained on the texts that the model will see.

Any byte can be written, digits stand alone, and the tokenizer itself prepends BOS, so that serving code never has to. The
vocabulary is small, so the words that a task answers with are checked to be single tokens: steering reads the answer there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from merasteer.errors import InvalidInput

__all__ = ["BOS", "CHAT_TEMPLATE", "EOS", "PAD", "train_tokenizer"]

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"

# One user message that holds a rendered prompt gives the very tokens of that prompt. The model knows no roles: what was said
# is put one message a line.
NEXT_LINE = "{% if not loop.last %}{{ '\\n' }}{% endif %}"
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}" + NEXT_LINE + "{% endfor %}"


def train_tokenizer(
    texts: Iterable[str], vocabulary: int = 700, words: Sequence[str] = (), context: int = 1024
) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens; each of `words`, written with its leading space, must be one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    for word in words:
        pieces = bpe.encode(word, add_special_tokens=False).tokens
        if len(pieces) != 1:
            raise InvalidInput(
                f"words: {word!r} is {len(pieces)} tokens, not one; raise vocabulary above {vocabulary} or add texts with it"
            )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
