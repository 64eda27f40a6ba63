"""Text that nobody vouches for, made harmless for the tokenizer of a model that reads it.

A tokenizer reads the text of a special token, such as `<|im_end|>`, as that token wherever it stands, and its normaliser may
make one of other characters, such as full-width ones. Here each gets a blank behind its first character, so that it stays to
be read but is text. What counts as one: all that the model's own tokenizer finds, where it is known, and what chat models and
code models commonly use, where it is not (an endpoint).
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

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
"""One is enough, but for a tokenizer that has `< s>` beside `<s>`, or that drops blanks."""
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\u2028\u2029\ufeff]")
REST = "\x00rest"


class SpecialTokens(frozenset[str]):
    """Texts that a tokenizer reads as one token with a meaning of its own; and how it finds them, where it is known.

    `splitter` is a `tokenizers.Tokenizer` with the normaliser and the added tokens of the model's own and no vocabulary behind
    them, so that it does that part of the work alone, in time proportional to the text; `numbers` are the texts' ids in it.
    """

    splitter: Any = None
    numbers: frozenset[int] = frozenset()

    @classmethod
    def of(cls, texts: Iterable[str], tokenizer: Any) -> "SpecialTokens":
        """Return the texts as a tokenizer of transformers finds them; one without a fast part finds them as they are."""
        found = cls(texts)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None:
            from tokenizers import AddedToken, Tokenizer, models

            found.splitter = Tokenizer(models.WordLevel({REST: 0}, unk_token=REST))
            if backend.normalizer is not None:
                found.splitter.normalizer = backend.normalizer
            added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
            others = sorted(found - {token.content for token in added})
            found.splitter.add_tokens([*added, *(AddedToken(text, normalized=False) for text in others if text)])
            ids = (found.splitter.token_to_id(text) for text in found)
            found.numbers = frozenset(one for one in ids if one is not None)
        return found

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return where the tokenizer finds one in a text: first character, and the first behind it, in order."""
        if self.splitter is None:
            return []
        encoded = self.splitter.encode(text, add_special_tokens=False)
        found = zip(encoded.ids, encoded.offsets, strict=True)
        return [(start, end) for number, (start, end) in found if number in self.numbers and start < end]


def joined(special: Iterable[str], more: Iterable[str]) -> SpecialTokens:
    """Return special tokens and further texts that count as such."""
    both = SpecialTokens((*special, *more))
    if isinstance(special, SpecialTokens):
        both.splitter, both.numbers = special.splitter, special.numbers
    return both


def clean(text: str, special: Iterable[str] = ()) -> str:
    """Return the text without control characters and half surrogates, its special tokens broken; line ends become newlines.

    `special`: the tokens of the model's tokenizer beside the common ones. One of a single character cannot be broken and
    is taken out. Takes time in proportion to the text's length.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    text = CONTROL.sub("", text)
    known = special if isinstance(special, SpecialTokens) else SpecialTokens(special)
    tokens, single = patterns(known)
    text = single.sub("", text) if single is not None else text
    text = _broken_up(text, tokens)
    return text if known.splitter is None else inert(text, known)


def inert(text: str, special: SpecialTokens) -> str:
    """Return the text with all that the tokenizer finds as a special token broken, and any other text as it is.

    What the passes leave is taken out; a text of which that makes special tokens again and again is left out whole.
    """
    if special.splitter is None:
        return _broken_up(text, patterns(special, common=False)[0]) if special else text
    for change in (*[_broken_span] * PASSES, *[_removed] * PASSES):
        spans = special.spans(text)
        if not spans:
            return text
        text = _changed(text, spans, change)
    return "" if special.spans(text) else text


def _broken_up(text: str, tokens: re.Pattern[str]) -> str:
    for _ in range(PASSES):
        if not tokens.search(text):
            break
        text = tokens.sub(broken, text)
    return text


def _changed(text: str, spans: list[tuple[int, int]], change: Callable[[str], str]) -> str:
    """Return the text with `change` made to each span."""
    parts, done = [], 0
    for start, end in spans:
        parts += [text[done:start], change(text[start:end])]
        done = end
    return "".join((*parts, text[done:]))


def _broken_span(found: str) -> str:
    """Return what stands for a special token with a sign behind its first character; without it, if there is no other.

    Blanks around it, which some tokenizers take for a part of it, do not count.
    """
    inner = found.strip()
    if len(inner) == 1 or len(found) == 1:
        return found.replace(inner or found, "")
    place = 1 + (len(found) - len(found.lstrip()) if inner else 0)
    return f"{found[:place]}{'_' if found[place].isspace() else ' '}{found[place:]}"


def _removed(found: str) -> str:
    return ""


def broken(found: re.Match[str]) -> str:
    """Return a special token's first character and a blank; where a blank follows already, another sign."""
    return found[0] + ("_" if found.string[found.end()] == " " else " ")


@lru_cache(maxsize=64)
def patterns(special: frozenset[str], common: bool = True) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Return what finds the first character of each special token, the rest of it ahead, also where tokens overlap; and what
    finds tokens of one character, if there are any."""
    rest = {first: list(following) for first, following in COMMON.items()} if common else {}
    by_first: dict[str, list[str]] = {}
    for token in sorted(special):
        if len(token) > 1:
            by_first.setdefault(token[0], []).append(token[1:])
    for first, following in by_first.items():
        rest.setdefault(first, []).append(one_of(following))
    firsts = "|".join(f"{re.escape(first)}(?={'|'.join(following)})" for first, following in rest.items())
    ones = [re.escape(token) for token in sorted(special) if len(token) == 1]
    return re.compile(firsts or r"(?!)"), re.compile("|".join(ones)) if ones else None


def one_of(words: list[str]) -> str:
    """Return a pattern that matches where one of some sorted words begins, trying each letter of a text once per branch.

    A list of thousands of words would be tried one after another at each place. A word that begins with another needs no branch.
    """
    if len(words) == 1 or not words[0]:
        return re.escape(words[0])
    shared = 0
    while shared < len(words[0]) and words[0][shared] == words[-1][shared : shared + 1]:  # sorted: so do all between
        shared += 1
    branches: dict[str, list[str]] = {}
    for word in (word[shared:] for word in words):
        branches.setdefault(word[:1], []).append(word[1:])
    if "" in branches:
        return re.escape(words[0][:shared])
    inner = "|".join(f"{re.escape(letter)}{one_of(following)}" for letter, following in branches.items())
    return f"{re.escape(words[0][:shared])}(?:{inner})"
