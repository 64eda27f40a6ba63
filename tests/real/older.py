"""transformers 4.57 in a folder of its own, and a process that says what it makes of a checkpoint.

`make test` runs this file once, which installs the folder beside the real model's (see smollm2.py); torch and the rest come from
the environment that runs the tests.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from smollm2 import CACHE

PACKAGES = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2")
"""The last of transformers 4, and the two of its packages that it wants older than ours."""
QUESTIONS = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
asked, answers = json.load(sys.stdin), []
for checkpoint in asked["checkpoints"]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    scores = "SequenceClassification" in AutoConfig.from_pretrained(checkpoint).architectures[0]
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    model = kind.from_pretrained(checkpoint, dtype="auto").eval()
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in asked["ids"]]
    answers.append({
        "version": transformers.__version__,
        "dtype": str(model.dtype),
        "special": sorted(tokenizer.all_special_tokens),
        "ends": [tokenizer.eos_token, tokenizer.pad_token],
        "keys": sorted(tokenizer("a b")),
        "encoded": [tokenizer(text)["input_ids"] for text in asked["texts"]],
        "chats": [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in asked["chats"]],
        "decoded": [tokenizer.decode(ids) for ids in asked["ids"]],
        "top": [one.tolist() if scores else [[*row.topk(2).values.tolist(), int(row.argmax())] for row in one] for one in logits],
    })
json.dump(answers, sys.stdout)
"""


@dataclass(frozen=True)
class Older:
    """A folder with transformers 4."""

    folder: Path

    def ask(self, checkpoints: list[Path], ids: list[list[int]], texts: list[str], chats: list[Any]) -> list[Any]:
        """Of each checkpoint: its precision, special tokens, encodings of `texts` and `chats`, and of each sequence of `ids`
        the text and, at every place, [highest logit, second, argmax] (of a scalar model, the score)."""
        asked = {"checkpoints": list(map(str, checkpoints)), "ids": ids, "texts": texts, "chats": chats}
        environment = {**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", QUESTIONS]
        ran = subprocess.run(
            command, input=json.dumps(asked), env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        answers: list[Any] = json.loads(ran.stdout)
        return answers


def open_older() -> Older:
    """The folder, installed if it is not there."""
    folder = CACHE / PACKAGES[0].replace("==", "-")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "older.lock"):
        if not folder.is_dir():
            partial = folder.with_suffix(".partial")
            pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*pip, "--target", str(partial), *PACKAGES], check=True)
            partial.rename(folder)
    return Older(folder)


if __name__ == "__main__":
    print(open_older().folder)  # noqa: T201
