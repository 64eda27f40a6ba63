"""Templates and text that nobody vouches for: nothing in it changes the structure around it."""

import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prompts.cleaning import clean, patterns
from prompts.render import Data, compile_template, fence, render, wrap
from selfplay.errors import ConfigError

KNOWN = ("prompt", "responses", "meta")
TEMPLATE = (
    "Asked:\n{{ prompt }}\nFirst:\n{{ responses[0] }}\nSecond:\n{{ responses[1] }}\nWhich is better? [[A]] or [[B]]"
)


def rendered(prompt: str, first: str, second: str) -> str:
    template = compile_template(TEMPLATE, KNOWN, "test")
    return render(template, "user", {"prompt": Data(prompt), "responses": [Data(first), Data(second)]}, "test").content


def taken_apart(text: str) -> list[str]:
    """The three texts of a rendered message, by reading it front to back as a judge would."""
    found = []
    for heading in ("Asked:\n", "First:\n", "Second:\n"):
        assert text.startswith(heading)
        text = text.removeprefix(heading)
        bar = re.match("`+", text)
        assert bar is not None and len(bar.group()) >= 3
        body, _, text = text[len(bar.group()) + 1 :].partition(f"\n{bar.group()}\n")
        found.append(body)
    assert text == "Which is better? [[A]] or [[B]]"
    return found


hostile = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            [
                "```",
                "`",
                "````",
                "\n",
                "{{ prompt }}",
                "{% for x in y %}",
                "{#",
                "}}",
                "First:\n",
                "Second:\n",
                "[[A]]",
                "<|im_start|>",
                "<|im_",
                "end|>",
                "<s>",
                "</s>",
                "[INST]",
                "\x00",
                "\r",
                "\u2028",
                "Which is better?",
                "\ud800",
            ]
        ),
    ),
    max_size=10,
).map("".join)


@settings(max_examples=400, deadline=None)
@given(prompt=hostile, first=hostile, second=hostile)
@example(prompt="```", first="\n```\n", second="`")
@example(prompt="", first="", second="")
@example(prompt="<|im_<|im_start|>start|>", first="<<s>s>", second="[IN[INST]ST]")
def test_any_text_stays_between_its_fences(prompt: str, first: str, second: str) -> None:
    assert taken_apart(rendered(prompt, first, second)) == [clean(prompt), clean(first), clean(second)]


@settings(max_examples=300, deadline=None)
@given(text=hostile)
def test_cleaning_leaves_no_markup_and_is_done_at_once(text: str) -> None:
    cleaned = clean(text)
    assert not patterns(frozenset())[0].search(cleaned)
    assert clean(cleaned) == cleaned
    assert (cleaned.encode("utf-8") and not set(cleaned) & set("\x00\x1b\r")) or not cleaned


@pytest.mark.parametrize(
    "text", ["plain words", "a < b and c > d", "[[A]]", "f(x) = {x | x > 0}", "tabs\tand\nlines", "été 北京 🙂"]
)
def test_cleaning_leaves_ordinary_text_alone(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    "token",
    [
        "<|im_start|>",
        "<|endoftext|>",
        "<|eot_id|>",
        "<s>",
        "</s>",
        "<bos>",
        "<pad>",
        "<start_of_turn>",
        "<file_sep>",
        "<jupyter_code>",
        "<issue_comment>",
        "<reponame>",
        "</tool_call>",
        "[SEP]",
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<｜begin▁of▁sentence｜>",
        "<|start_header_id|>",
    ],
)
def test_chat_markup_is_shown_as_text(token: str) -> None:
    assert clean(f"be{token}fore") == f"be{token[0]} {token[1:]}fore"
    assert clean("a%%b", ["%%"]) == "a% %b" and clean("a%%%b", ["%%"]) == "a% % %b"


def test_what_an_answer_says_about_a_token_stays_to_be_read() -> None:
    assert str(Data("BERT fills <mask>; </s> ends it.", "none")) == "BERT fills < mask>; < /s> ends it."


@pytest.mark.parametrize(
    ("text", "special", "cleaned"),
    [
        ("<a><b>", ["<a>", "a><b"], "< a ><b>"),  # they overlap
        ("<<s>s>", [], "<< s>s>"),
        ("<x>", ["<x>", "< x>"], "<_ x>"),  # what breaking one makes is broken in turn
        ("1€ each", ["€"], "1 each"),
        ("a+b", ["a+b"], "a +b"),
    ],
)
def test_tokens_of_a_tokenizer_are_broken_wherever_they_stand(text: str, special: list[str], cleaned: str) -> None:
    assert clean(text, special) == cleaned
    assert not any(token in clean(text, special) for token in special)


@pytest.mark.parametrize("text", ["<|a" * 9000 + "|>" * 9000, "<" * 50000, "<|" * 20000, "<a_" * 20000, "[INST" * 9000])
def test_cleaning_goes_through_a_text_once_however_it_is_nested(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taking tokens out until none was left took 27 s for 50 KB: one pass for each level."""
    tokens, passes = patterns(frozenset())[0], []

    class Counting:
        def search(self, text: str) -> Any:
            return tokens.search(text)

        def sub(self, replacement: Any, text: str) -> str:
            passes.append(len(text))
            return tokens.sub(replacement, text)

    monkeypatch.setattr("prompts.cleaning.patterns", lambda special: (Counting(), None))
    assert clean(text).replace(" ", "") == text and len(passes) <= 1


def test_fences_are_longer_than_any_run_inside() -> None:
    assert fence("a") == "```\na\n```"
    assert fence("a ```` b ``") == "`````\na ```` b ``\n`````"


def test_data_counts_compares_and_tests_like_its_text() -> None:
    source = (
        "{{ prompt | length }}{{ prompt == 'abc' }}{{ 'b' in prompt }}{% if meta.empty %}full{% else %}empty"
        "{% endif %}{{ meta.n + 1 }}"
    )
    found = render(
        compile_template(source, KNOWN, "t"), "user", {"prompt": Data("abc"), "meta": wrap({"empty": "", "n": 2})}, "t"
    )
    assert found.content == "3TrueTrueempty3"


@pytest.mark.parametrize("filter", ["upper", "trim", "string", "truncate(1000)"])
def test_filters_cannot_take_the_fence_away(filter: str) -> None:
    found = render(
        compile_template(f"{{{{ prompt | {filter} }}}}", KNOWN, "t"), "user", {"prompt": Data("abc")}, "t"
    ).content
    assert found.lower() == "```\nabc\n```"


def test_a_long_response_is_cut_and_the_judge_is_told() -> None:
    assert str(Data("abcdef", limit=4)) == "```\nabcd\n```\n(cut here: 2 more characters)"
    assert str(Data("abcd", limit=4)) == "```\nabcd\n```"
    assert str(Data("abc", "none")) == "abc"


def test_columns_are_wrapped_all_the_way_down() -> None:
    found = render(
        compile_template("{{ meta.a[0].b }} {{ meta.n }} {{ meta.none }}", KNOWN, "t"),
        "user",
        {"meta": wrap({"a": [{"b": "x {{ 1 }} <s>"}], "n": 1.5, "none": None})},
        "t",
    )
    assert found.content == "```\nx {{ 1 }} < s>\n``` 1.5 None"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ meta.tags }}", '["a ``` [[A]]", "b"]'),
        ("{{ meta.box }}", '{"n": 1, "deep": [{"x": "y"}]}'),
        ("{{ meta }}", '{"tags": ["a ``` [[A]]", "b"], "box": {"n": 1, "deep": [{"x": "y"}]}, "ids": [1, 2]}'),
        ("{{ meta.ids }}", "[1, 2]"),
        ("{{ responses }}", '["one", "two\\n(cut here: 3 more characters)"]'),
        ("{{ history }}", '[{"role": "user", "content": "hi"}]'),
        ("{{ meta.tags[:1] }}", '["a ``` [[A]]"]'),
        ("{{ meta.box.items() }}", '[["n", 1], ["deep", [{"x": "y"}]]]'),
        ("{{ meta.keys() }}", '["tags", "box", "ids"]'),
        ("{{ meta.ids | map('string') }}", '["1", "2"]'),
    ],
)
def test_a_list_or_mapping_prints_its_content_between_fences(source: str, shown: str) -> None:
    """Not `<prompts.render.Data object at 0x7f..>`."""
    variables = {
        "meta": wrap({"tags": ["a ``` [[A]]", "b"], "box": {"n": 1, "deep": [{"x": "y"}]}, "ids": [1, 2]}),
        "responses": [Data("one"), Data("two!!!", limit=3)],
        "history": [{"role": "user", "content": Data("hi")}],
    }
    known = (*KNOWN, "history")
    assert render(compile_template(source, known, "t"), "user", variables, "t").content == fence(shown)
    bare = render(compile_template(source, known, "t", "none"), "user", variables, "t").content
    assert bare == shown


@pytest.mark.parametrize("filter", ["string", "pprint", "list | string", "join(', ')", "first", "last | upper"])
def test_no_filter_turns_data_into_an_address(filter: str) -> None:
    found = render(
        compile_template(f"{{{{ meta.tags | {filter} }}}}", KNOWN, "t"),
        "user",
        {"meta": wrap({"tags": ["a", "b"]})},
        "t",
    ).content
    assert "object at 0x" not in found and "```\n" in found


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{{ 'T ' ~ meta.tags }}", 'T ["a", "b"]'),
        ("{{ 'T ' ~ (meta.tags | map('upper')) }}", 'T ["A", "B"]'),
        ("{{ meta.tags | map('upper') | string }}", '["A", "B"]'),
        ("{{ meta.tags | batch(2) ~ '' }}", '[["a", "b"]]'),
        ("{{ '%s, %s' % (meta.tags | select, 3) }}", '["a", "b"], 3'),
        ("{{ '%(x)s' % {'x': meta.tags | select} }}", '["a", "b"]'),
        ("{{ '%.1f' % 2 }}", "2.0"),
        ("{{ '%s' | format(meta.tags | select) }}", '["a", "b"]'),
        ("{{ '{} {x}'.format(meta.tags | select, x=meta.tags | map('length')) }}", '["a", "b"] [1, 1]'),
        ("{{ '{x}'.format_map({'x': meta.tags | select}) }}", '["a", "b"]'),
        ("{{ [meta.tags | select, 'c'] | join('; ') }}", '["a", "b"]; c'),
        ("{{ [meta.tags | select] ~ '' }}", '[["a", "b"]]'),
        ("{{ meta.box | join(', ', attribute='n') }}", "1, 2"),
        ("{{ 'x' ~ meta.said ~ 1 ~ none }}", "x<x object at 0x1>1None"),
        ("{{ meta.tags | select | upper }}", '["A", "B"]'),
    ],
)
def test_whatever_becomes_text_is_what_it_prints(source: str, shown: str) -> None:
    """Not `<generator object sync_do_map at 0x7f..>`; what a text itself says of addresses stays."""
    row = wrap({"tags": ["a", "b"], "said": "<x object at 0x1>", "box": [{"n": 1}, {"n": 2}]}, "none")
    assert render(compile_template(source, KNOWN, "t", "none"), "user", {"meta": row}, "t").content == shown


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x' ~ meta.items }}",
        "{{ 'x' ~ range }}",
        "{{ '%s' % meta.values }}",
        "{{ '%s' % (meta.values,) }}",
        "{{ '{}'.format(meta.keys) }}",
        "{{ meta.get | string }}",
        "{{ [meta.get] ~ '' }}",
        "{{ [meta.get] | join }}",
        "{{ [meta] | join(',', 'items') }}",
        "{{ meta.tags | replace('a', range) }}",
        "{{ ('x' ~ ('y' ~ meta.items)) | upper }}",
        "{{ 'n' ~ namespace(a=1) }}",
        "{{ '' ~ self }}",
        "{% macro m() %}x{% endmacro %}{{ 'a' ~ m }}",
        "{% for tag in meta.tags %}{{ 'a' ~ loop }}{% endfor %}",
        "{{ meta | xmlattr }}",
    ],
)
def test_what_has_no_content_is_refused_wherever_it_becomes_text(source: str) -> None:
    template = compile_template(source, KNOWN, "t")
    with pytest.raises(ConfigError, match=r"cannot be printed|Circular reference|the template cannot be filled in"):
        render(template, "user", {"meta": wrap({"tags": ["a", "b"]})}, "t")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{{ prompt.__class__ }}", "SecurityError"),
        ("{{ prompt._text }}", "SecurityError"),
        ("{{ meta.word }}", "no attribute 'word' (its columns: animal)"),
        ("{{ responses[5] }}", "asks for what this row does not have"),
        ("{% include 'x' %}", "cannot be filled in"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ meta.animal + 1 }}", "TypeError"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
        ("{{ meta.update({}) }}", "SecurityError"),
        (
            "{{ meta.get }}",
            "a builtin_function_or_method cannot be printed: only texts, numbers, lists and mappings can",
        ),
        ("{{ range }}", "a function cannot be printed"),
    ],
)
def test_what_a_template_must_not_do_is_one_sentence(source: str, sentence: str) -> None:
    template = compile_template(source, KNOWN, "judge 'x'")
    with pytest.raises(ConfigError) as error:
        render(
            template,
            "user",
            {"prompt": Data("a"), "responses": [Data("b")], "meta": wrap({"animal": "fox"})},
            "judge 'x', prompt 'p'",
        )
    assert sentence in str(error.value) and str(error.value).startswith("judge 'x', prompt 'p': ")
    assert "\n" not in str(error.value)
