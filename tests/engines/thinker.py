"""A tiny model that was taught to think before it judges, with a chat template that can turn thinking off.

    checkpoint = make_thinker(folder, 0)                          # a Llama of 0.1 M parameters
    spec = parse_spec(judge_tree(str(checkpoint), "reasoning: {budget: 64}"))

Taught on the very questions of the judge file about PAIRS: its thinking drafts [[B]], and its answer is [[A]].
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from judges.llm.templates import Conversation
from judges.spec.load import parse_spec
from selfplay.config import parse_yaml
from selfplay.models import encode_prompt, save
from selfplay.records import Completion, Pair, Prompt, TemplatedPrompt

THOUGHT = "B is longer, so [[B]]? No, A is kinder."
ANSWER = "The kinder one is A. [[A]]"
TEMPLATE = (
    "<s>{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: "
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
JUDGE = """\
mode: pairwise
model: {model}
sampling: {{max_tokens: 24}}
untrusted: {{fence: none}}
on_error: {{max_failure_rate: 1, retries: 0}}
messages: [{{role: user, content: "{{{{ prompt }}}} A: {{{{ responses[0] }}}} B: {{{{ responses[1] }}}}"}}]
output: {{kind: regex, pattern: '\\[\\[(A|B)\\]\\]', labels: {{A: 1, B: 0}}}}
{more}
"""


def _pair(number: int, first: str, second: str) -> Pair:
    made = [
        Completion(id=f"{number}{side}", prompt_id=str(number), text=text, finish_reason="stop", policy="test")
        for side, text in (("a", first), ("b", second))
    ]
    return Pair(id=str(number), prompt=Prompt.plain(str(number), "Say hello."), first=made[0], second=made[1])


PAIRS = [_pair(1, "Hello, friend.", "Go away."), _pair(2, "Good day.", "What do you want?")]


def judge_tree(model: str, more: str = "") -> dict[str, object]:
    """The judge file that asks a model of this name."""
    return {"name": "thinker", **parse_yaml(JUDGE.format(model=model, more=more))}


def make_thinker(folder: Path, seed: int) -> Path:
    """Make the model's checkpoint in a folder."""
    conversation = Conversation(parse_spec(judge_tree("thinker")))
    asked = [
        conversation.messages(pair.prompt, texts)
        for pair in PAIRS
        for texts in ((pair.first.text, pair.second.text), (pair.second.text, pair.first.text))
    ]
    texts = [message.content for messages in asked for message in messages]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [THOUGHT, ANSWER, "user: assistant:", *texts] * 20, 400, special_tokens=["<pad>", "<s>", "</s>"]
    )
    trained.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    rows = [
        (
            encode_prompt(tokenizer, TemplatedPrompt(id="p", messages=messages, options={"enable_thinking": thinks})),
            tokenizer(said + "</s>", add_special_tokens=False)["input_ids"],
        )
        for messages in asked
        for thinks, said in ((True, f"<think>{THOUGHT}</think>{ANSWER}"), (False, ANSWER))
    ]
    save(teach(rows, len(tokenizer), seed), tokenizer, folder)
    return folder


def teach(rows: list[tuple[list[int], list[int]]], vocabulary: int, seed: int) -> PreTrainedModel:
    """A Llama that knows what follows each prompt by heart; head size 32, which vLLM's CPU kernels have."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    longest = max(len(asked) + len(said) for asked, said in rows)
    filled = [(*row, longest - len(row[0]) - len(row[1])) for row in rows]
    ids = torch.tensor([asked + said + [0] * empty for asked, said, empty in filled])
    labels = torch.tensor([[-100] * len(asked) + said + [-100] * empty for asked, said, empty in filled])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    return model.eval()
