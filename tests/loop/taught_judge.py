"""A run that makes its own judge from a rule that 0.4M parameters learn in seconds: is the last sentence "The end."?

recipe = write_files(folder)    # recipe.yaml, and beside it the rules, their Python, four judge files and gold pairs
"""

import json
from pathlib import Path
from textwrap import dedent

RULES = """\
mode: rules
criteria:
  - {name: ending, weight: 2, python: "./ending.py:ends"}
"""
RULE = '''\
def ends(prompt, response):
    """1 if the last sentence is the usual one."""
    return float(response.rstrip().endswith("The end."))
'''
QUESTION = """\
mode: pairwise
sampling: {{max_tokens: {tokens}}}
untrusted: {{fence: none}}
messages:
  - role: user
    content: |
      {{{{ prompt }}}}
      A: {{{{ responses[0] }}}}
      Score ending.
      B: {{{{ responses[1] }}}}
      Score ending.
      {request}
output: {output}
gold: gold.jsonl
thresholds: {{canary_wins: 1.0}}
"""
LABELS = "labels: {A: 1, B: 0}"
# `{"verdict": "A"}` is 16 bytes. With room for one token a byte and the end token, guided decoding ends whatever a model
# has learned.
JSON_TOKENS = 17
FILES = {
    "chances": (1, "One letter.", f"{{kind: logprob, {LABELS}}}"),
    "letter": (4, "One letter.", f"{{kind: regex, pattern: '^\\s*(A|B)\\s*$', {LABELS}}}"),
    "json": (
        JSON_TOKENS,
        "One letter as JSON.",
        f"{{kind: json, {LABELS}, json_schema: {{type: object, required: [verdict], "
        "additionalProperties: false, properties: {verdict: {type: string, enum: [A, B]}}}}",
    ),
    "reasons": (16, "Who wins each?", f"{{kind: regex, pattern: '\\[\\[(A|B)\\]\\]$', {LABELS}}}"),
}
RECIPE = """\
iterations: 1
threads: 1
policy:
  bootstrap:
    documents: 400
    vocabulary: 400
    architecture: {layers: 1, hidden_size: 32, heads: 1, intermediate_size: 64, context: 192}
    pretrain: {steps: 20, batch_size: 8}
    sft: {count: 200, training: {steps: 20, batch_size: 8}}
prompts:
  train: {source: stories, limit: 64}
  heldout: {source: stories, split: heldout, limit: 16}
sampling: {max_tokens: 32}
generate: {prompts: 32, completions: 2}
judge:
  file: FOLDER/chances.yaml
  bootstrap:
    rules: FOLDER/rules.yaml
    also: [FOLDER/letter.yaml, FOLDER/json.yaml, FOLDER/reasons.yaml]
    vocabulary: 768
    architecture: {layers: 2, hidden_size: 128, heads: 4, intermediate_size: 256, context: 512}
    training: {steps: 200, batch_size: 8, learning_rate: 5e-3}
    heldout: HELDOUT
evaluate: {judge: FOLDER/rules.yaml}
algorithm: {steps: 1, episodes: 16, minibatches: 1}
"""
HELDOUT = 160


def write_files(folder: Path) -> Path:
    """The recipe with its rules, judge files and gold pairs; gives the recipe's path."""
    (folder / "rules.yaml").write_text(RULES)
    (folder / "ending.py").write_text(RULE)
    for name, (tokens, request, output) in FILES.items():
        (folder / f"{name}.yaml").write_text(QUESTION.format(tokens=tokens, request=request, output=output))
    gold = [
        {"prompt": "Tell a story.", "chosen": f"{line} It was happy. The end.", "rejected": f"{line} It was happy."}
        for line in ("It began to rain.", "The wind was cold.", "The sun was warm.", "It ran up the hill.")
    ]
    (folder / "gold.jsonl").write_text("\n".join(json.dumps(row) for row in gold * 3))
    (folder / "recipe.yaml").write_text(dedent(RECIPE).replace("FOLDER", str(folder)).replace("HELDOUT", str(HELDOUT)))
    return folder / "recipe.yaml"
