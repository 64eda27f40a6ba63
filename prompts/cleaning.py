"""Text that nobody vouches for, made harmless for the tokenizer of a model that reads it.

A tokenizer reads the text of a special token, such as `<|im_end|>`, as that token wherever it stands. Here each gets a
blank behind its first character, so that it stays to be read but is text. What counts as one: all that the model's own
tokenizer names, where it is known, and what chat models and code models commonly use, where it is not (an endpoint).
"""

import re
from collections.abc import Iterable
from functools import lru_cache

COMMON = {
    "<": (
        r"\|[^|<>\s]{1,64}\|>",  # <|im_start|>, <|eot_id|>
        r"｜[^｜<>\s]{1,64}｜>",  # DeepSeek's full-width bars
        r"/?[A-Za-z]{1,32}(?:_[A-Za-z0-9]{1,32}){1,6}>",  # <start_of_turn>, <file_sep>, <jupyter_code>, </tool_call>
        r"/?(?:s|think|reponame|filename)>",
        r"(?:bos|eos|pad|unk|mask|sep|cls)>",
        r"</?SYS>>",
    ),
    "[": (
        r"/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG)\]",
        r"(?:BOS|EOS|PAD|UNK|MASK|SEP|CLS)\]",
    ),
}
"""First character of special tokens -> patterns of what follows."""
PASSES = 3
"""One is enough, but for a tokenizer that has `< s>` beside `<s>`."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ufeff]")


def clean(text: str, special: Iterable[str] = ()) -> str:
    """Return the text without control characters and half surrogates, its special tokens broken; line ends become newlines.

    `special`: the tokens of the model's tokenizer beside the common ones. One of a single character cannot be broken and
    is taken out. Takes time in proportion to the text's length.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    text = CONTROL.sub("", text)
    tokens, single = patterns(frozenset(special))
    text = single.sub("", text) if single is not None else text
    for _ in range(PASSES):
        if not tokens.search(text):
            break
        text = tokens.sub(broken, text)
    return text


def broken(found: re.Match[str]) -> str:
    """Return a special token's first character and a blank; where a blank follows already, another sign."""
    return found[0] + ("_" if found.string[found.end()] == " " else " ")


@lru_cache(maxsize=64)
def patterns(special: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Return what finds the first character of each special token, the rest of it ahead, also where tokens overlap; and what
    finds tokens of one character, if there are any."""
    rest = {first: list(following) for first, following in COMMON.items()}
    for token in sorted(special):
        if len(token) > 1:
            rest.setdefault(token[0], []).append(re.escape(token[1:]))
    firsts = "|".join(f"{re.escape(first)}(?={'|'.join(following)})" for first, following in rest.items())
    ones = [re.escape(token) for token in sorted(special) if len(token) == 1]
    return re.compile(firsts), re.compile("|".join(ones)) if ones else None
