"""No prompt, response or column reaches a judge's model as a special token of its tokenizer, whatever that has."""

from collections.abc import Iterator
from typing import Any

import pytest
from judging import pair, spec
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judges import build
from judges.audit.inspect import try_pair
from prompts.special_tokens import special_texts
from selfplay.engines.hf import TransformersEngine
from selfplay.models import encode_prompt
from selfplay.records import Prompt

CODE = ("start", "text", "code", "output", "script")
SMOLLM2 = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<repo_name>",
    "<reponame>",
    "<file_sep>",
    "<filename>",
    "<gh_stars>",
    *(f"<issue_{part}>" for part in ("start", "comment", "closed")),
    *(f"<jupyter_{part}>" for part in CODE),
    "<empty_output>",
]
"""The special tokens of HuggingFaceTB/SmolLM2."""
OTHERS = ["<s>", "<mask>", "[PAD]", "@@END@@", "<ünï>", "<Tool>", "§§"]
"""Some that no list of common ones has."""
JUDGE = """
mode: pairwise
model: m
messages: [{role: user, content: "{{ history }} {{ prompt }} {{ responses[0] }} {{ responses[1] }} {{ meta }} {{ reference }}"}]
output: {kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {A: 1, B: 0}}
sampling: {max_tokens: 4}
on_error: {retries: 1, repair: Again., max_failure_rate: 1}
"""


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    """A random Llama over bytes with all those special tokens, and added words that are none."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, special=True) for text in (*SMOLLM2, *OTHERS)])
    fast.add_tokens([AddedToken(text, special=False) for text in (" fox", "    ", "<tool_call>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>{% endfor %}<|im_start|>"
    )
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=8192, **shape))
    return TransformersEngine(model.eval(), tokenizer)


def special_ids(engine: TransformersEngine) -> set[int]:
    texts = (*SMOLLM2, *OTHERS, "<tool_call>")
    return set(engine.tokenizer.convert_tokens_to_ids(list(texts)))


def hostile() -> Iterator[str]:
    """Each token, and what becomes one once another is taken out or broken."""
    for token in (*SMOLLM2, *OTHERS, "<tool_call>"):
        yield token
        yield f"{token[:3]}{token}{token[3:]}"
        yield f"{token}{token}"


def test_the_tokens_that_are_known_are_those_with_a_meaning(engine: TransformersEngine) -> None:
    assert engine.special_tokens == special_texts(engine.tokenizer) == {*SMOLLM2, *OTHERS, "<tool_call>"}


@pytest.mark.parametrize("fence", ["block", "none"])
def test_no_special_token_of_the_model_comes_through(engine: TransformersEngine, fence: str) -> None:
    judge: Any = build(spec(JUDGE + f"untrusted: {{fence: {fence}}}"), engine)
    known = special_ids(engine)
    for text in hostile():
        prompt = Prompt.plain("p", text, **{text: text, "tags": [text, {text: [text]}], "reference": text})
        prompt = prompt.model_copy(update={"messages": (*prompt.messages, *prompt.messages)})
        asked = pair(text, f"x{text}y").model_copy(update={"prompt": prompt})
        messages = judge.question(asked, "forward").messages
        ids = encode_prompt(engine.tokenizer, Prompt(id="q", messages=messages))
        markup = [engine.tokenizer.convert_ids_to_tokens(one) for one in ids if one in known]
        assert markup == ["<|im_start|>", "<|im_end|>", "<|im_start|>"], f"{text}: the template's own, and no other"
        assert text in messages[0].content.replace(" ", ""), "it can still be read"


def test_nor_in_what_is_tried_or_repeated_for_repair(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Prompt] = []
    real = engine.generate

    def echoing(prompts: Any, sampling: Any) -> Any:
        asked.extend(prompts)
        return [
            [one.model_copy(update={"text": "hm <file_sep> @@END@@", "finish_reason": "stop"}) for one in row]
            for row in real(prompts, sampling)
        ]

    monkeypatch.setattr(engine, "generate", echoing)
    trial = try_pair(spec(JUDGE.replace("{{ reference }}", "")), engine, pair("<file_sep>", "@@END@@"))
    contents = [message.content for exchange in trial.exchanges for message in exchange.messages]
    contents += [message.content for prompt in asked for message in prompt.messages]
    assert len(asked) == 4 and asked[-1].messages[1].content == "hm < file_sep> @ @END@@"
    assert not any("<file_sep>" in content or "@@END@@" in content for content in contents)


def test_what_an_endpoint_s_model_has_beside_the_usual_ones_is_named_in_the_file() -> None:
    from judging import Scripted

    judge: Any = build(spec(JUDGE + "untrusted: {special_tokens: ['@@END@@']}"), Scripted())
    shown = (
        judge.question(
            pair("@@END@@", "<mask>").model_copy(update={"prompt": Prompt.plain("p", "?", reference="r")}), "forward"
        )
        .messages[0]
        .content
    )
    assert "@ @END@@" in shown and "< mask>" in shown
