"""Word-level tokenizers of the built-in worlds, in Hugging Face form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def word_tokenizer(
    vocabulary: dict[str, int], specials: Sequence[str], marks: Sequence[str] = (), template: str | None = None
) -> Any:
    """A PreTrainedTokenizerFast that splits on white space: one word, one token.

    `<pad>`, `<eos>` and `<unk>` must be among `specials`, which become special tokens: with special tokens disabled
    they are unknown words, so that text from outside cannot spell them. `marks` are added tokens likewise, but no
    special ones: they are part of what a turn says. `template` is the chat template.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    if marks:
        backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in marks])
    others = [t for t in specials if t not in ("<pad>", "<eos>", "<unk>")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=others,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer
