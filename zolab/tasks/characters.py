"""One token a character: the tokenizer of the toy tasks that are learnt from rewards.

    BOS c_1 ... c_n          pad 0, BOS 1, EOS 2, then the characters in their order

BOS is put in front by the tokenizer, so that no prompt has to spell it. A character
that is not in the alphabet raises; nothing is dropped, cut or lower-cased.
"""

from __future__ import annotations

from typing import Any

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SPECIAL = (PAD, BOS, EOS)


def tokenizer(alphabet: str) -> Any:
    """A fast tokenizer of transformers; `alphabet` is every character it knows.

    Raises ValueError for an alphabet with a character twice, and, when it encodes, for
    a character outside of it.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers import processors as after
    from transformers import PreTrainedTokenizerFast

    if len(set(alphabet)) != len(alphabet):
        raise ValueError(f"the alphabet {alphabet!r} has a character twice")
    words = {w: i for i, w in enumerate((*SPECIAL, *alphabet))}
    # Without a token for the unknown, an unknown character is an error.
    inner = Tokenizer(models.WordLevel(words))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    inner.post_processor = after.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
    )
