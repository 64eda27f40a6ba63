"""Which texts a tokenizer of transformers reads as special tokens."""

import re
from typing import Any
from weakref import WeakKeyDictionary

from prompts.cleaning import SpecialTokens

MARKUP = re.compile(r"\s*(?:<.+>|\[.+\])\s*", re.DOTALL)
CONTROL_TOKENS: WeakKeyDictionary[Any, tuple[tuple[int, list[str]], SpecialTokens]] = WeakKeyDictionary()
"""Tokenizer -> what tells whether it was changed since, and its control tokens."""


def special_texts(tokenizer: Any) -> SpecialTokens:
    """Return the texts that a tokenizer reads as one token with a meaning of its own, wherever they stand.

    Beside those marked special, added ones that look like markup (`<tool_call>`, `[TOOL]`); not added words and blanks.
    """
    markup = {token.content for token in tokenizer.added_tokens_decoder.values() if MARKUP.fullmatch(token.content)}
    return SpecialTokens.of(_marked(tokenizer) | markup, tokenizer)


def control_tokens(tokenizer: Any) -> SpecialTokens:
    """Return those that are marked special, by which a chat template tells turns and roles apart.

    Not markup that is data too, such as the tool calls of a conversation, nor single characters, which are part of words.
    """
    state = (len(tokenizer), list(tokenizer.all_special_tokens))
    known = CONTROL_TOKENS.get(tokenizer)
    if known is None or known[0] != state:
        texts = {text for text in _marked(tokenizer) if len(text.strip()) > 1}
        known = CONTROL_TOKENS[tokenizer] = (state, SpecialTokens.of(texts, tokenizer))
    return known[1]


def _marked(tokenizer: Any) -> set[str]:
    added = tokenizer.added_tokens_decoder.values()
    return {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
