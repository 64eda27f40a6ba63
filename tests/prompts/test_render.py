"""Templates and text that nobody vouches for: nothing in it changes the structure around it."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prompts.render import SPECIAL_TOKENS, Data, clean, compile_template, fence, render, wrap
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
    assert not SPECIAL_TOKENS.search(cleaned)
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
        "[INST]",
        "[/INST]",
        "<<SYS>>",
        "<｜begin▁of▁sentence｜>",
        "<|start_header_id|>",
    ],
)
def test_chat_markup_is_taken_out(token: str) -> None:
    assert clean(f"be{token}fore") == "before"
    assert clean("a%%b", strip=["%%"]) == "ab" and clean("a%%%b", strip=["%%"]) == "a%b"


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
    assert found.content == "```\nx {{ 1 }} \n``` 1.5 None"


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
