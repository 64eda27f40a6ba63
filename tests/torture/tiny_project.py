"""The smallest project that does everything for real in a second or two: one iteration, a judge in Python, one that is a model.

    recipe = write_project(folder)

The judge that labels writes down what it is asked, so that no answer is paid twice unseen; the one that measures is the
policy itself and answers through the judge cache. The brake on reward models is released: eight pairs prove nothing.
"""

from pathlib import Path

RECIPE = """\
name: tiny
iterations: 1
threads: 1
policy:
  bootstrap:
    documents: 30
    vocabulary: 280
    architecture: {layers: 1, hidden_size: 16, heads: 2, intermediate_size: 32, context: 256}
    pretrain: {steps: 2, batch_size: 4}
    sft: {count: 12, training: {steps: 2, batch_size: 4}}
prompts:
  train: {source: stories, limit: 12}
  heldout: {source: stories, split: heldout, limit: 4}
sampling: {max_tokens: 8}
engine: {batch_size: 8}
generate: {prompts: 12, completions: 2}
judge: {file: judge.yaml}
reward: {batch_size: 8, epochs: 1, heldout_share: 0.4}
algorithm: {steps: 2, episodes: 4, minibatches: 2, checkpoint_every: 1}
evaluate: {judge: measuring.yaml}
"""

JUDGE = """\
mode: python
python: ./longest.py:Longest
"""

MEASURING = """\
mode: pairwise
model: policy
messages:
  - {role: user, content: "1 {{ responses[0] }} 2 {{ responses[1] }}"}
output: {kind: logprob, labels: {A: 1, B: 0}}
on_error: {max_failure_rate: 1.0}
"""

SERVED = """\
mode: pairwise
model: served
messages:
  - {role: user, content: "{{ responses[0] }}|||{{ responses[1] }}"}
output: {kind: regex, pattern: '\\[\\[([AB])\\]\\]', labels: {A: 1, B: 0}}
on_error: {retries: 0, action: abort}
thresholds: {length_bias: 1.0, canary_wins: 1.0, swap_consistency: 0.0}
endpoint: {url: ADDRESS, key_variable: null, timeout: 1.0, retries: 1, longest_wait: 0.05, concurrency: 4}
"""
"""A judge behind a server: whatever goes wrong with a call stops the run, and is asked again when it goes on."""

LONGEST = '''\
"""A judge that prefers the longer text, and writes down each pair that it is asked about."""

from pathlib import Path

from selfplay.records import Verdict

ASKED = Path(__file__).with_name("asked.txt")


class Longest:
    """Prefers the longer of two texts."""

    def __init__(self, spec=None, engine=None):
        self.spec = spec

    def judge(self, pairs):
        """One verdict per pair."""
        with open(ASKED, "a") as file:
            file.writelines(pair.id.replace("\\n", " ") + "\\n" for pair in pairs)
        return [
            Verdict(
                pair_id=pair.id,
                judge="longest",
                order="none",
                preference=float((len(pair.first.text), pair.first.text) > (len(pair.second.text), pair.second.text)),
            )
            for pair in pairs
        ]
'''


def write_project(folder: Path, server: str | None = None) -> Path:
    """Write the recipe and its judges into a new folder; returns the recipe's path. `server`: the address of the judge."""
    folder.mkdir(parents=True, exist_ok=True)
    judge = JUDGE if server is None else SERVED.replace("ADDRESS", server)
    for name, text in (("judge.yaml", judge), ("measuring.yaml", MEASURING), ("longest.py", LONGEST)):
        (folder / name).write_text(text)
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml"


def asked(folder: Path) -> int:
    """How many pairs the labelling judge was asked about."""
    file = folder / "asked.txt"
    return len(file.read_text().splitlines()) if file.is_file() else 0
