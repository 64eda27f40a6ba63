"""A supervised training that is killed, or that finds the disk full, ends with the same weights and the same log."""

from pathlib import Path

import pytest
import torch
from killing import Moment, in_process
from transformers import LlamaForCausalLM, LlamaForSequenceClassification, set_seed

from prompts.stories import documents
from selfplay.config import Architecture, Optimisation, Reward
from selfplay.models import save
from selfplay.rewards.reward_model import RewardModel
from selfplay.stages.bootstrap import llama_config, train_tokenizer
from selfplay.storage.checksums import check_of_file
from selfplay.storage.files import read_json, write_json
from selfplay.training.reward_model import train_reward_model
from selfplay.training.supervised import document_rows, train_supervised

KINDS = ("language model", "reward model", "ranking reward model")
STEPS = 45
"""Of a language model, 25 to an epoch, with checkpoints behind 20, 40 and 45; a reward model has 46, two epochs."""


def train(kind: str, work: Path, result: Path) -> None:
    """Train a tiny model with dropout, so that its steps draw random numbers; write it with what was logged."""
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(documents(50), 300)
    shape = Architecture(layers=1, hidden_size=16, heads=1, intermediate_size=16, context=64)
    config = llama_config(shape, tokenizer)
    config.attention_dropout = 0.2
    set_seed(1)
    texts = [tokenizer(text)["input_ids"][:24] for text in documents(100)]
    if kind == "language model":
        model = LlamaForCausalLM(config)
        training = Optimisation(steps=STEPS, batch_size=4, learning_rate=1e-2)
        logged = train_supervised(model, tokenizer, document_rows(texts, 24), training, work, 3, "train")
    else:
        config.num_labels = 1
        model = LlamaForSequenceClassification(config)
        rows = [
            {"prompt_id": str(place), "chosen_ids": one, "rejected_ids": one[:cut], "confidence": 1.0, "margin": 1.0}
            for place, one in enumerate(texts[:90])
            for cut in ((9, 5) if kind == "ranking reward model" else (9,))
        ]
        loss = "ranking" if kind == "ranking reward model" else "pairwise"
        settings = Reward(batch_size=4, learning_rate=1e-2, epochs=2, loss=loss)  # 23 steps an epoch
        logged = train_reward_model(RewardModel(model, tokenizer), rows, settings, work, 3)
    save(model, tokenizer, result)
    write_json(result / "rows.json", logged)


def files_of(result: Path) -> dict[str, str]:
    """Name -> checksum of what a training has written."""
    return {file.name: check_of_file(file) for file in result.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each kind of training gives if nothing happens to it."""
    folder = tmp_path_factory.mktemp("whole")
    for kind in KINDS:
        assert in_process(train, kind, folder / "work" / kind, folder / kind) == 0
    return folder


def step(number: int) -> Moment:
    return Moment("selfplay.training.supervised", "Watcher.on_step_end", number)


MODEL_IS_WRITTEN = "transformers.trainer", "Trainer._save_optimizer_and_scheduler"
ALL_BUT_ITS_STATE_IS_WRITTEN = "transformers.trainer_callback", "TrainerState.save_to_json"
ALL_IS_WRITTEN = "selfplay.training.checkpoints", "write_checks"
READY = "selfplay.storage.durable", "publish"
OLD_ONE_STAYS = "selfplay.storage.durable", "remove_tree"
ENDED = Moment("selfplay.training.supervised", "logged", 1)
LOADING = Moment("selfplay.training.supervised", "align_special_tokens", 1)
CASES = {
    "within the steps": [step(30), step(23)],
    "in the last step": [step(45)],
    "while the first is written": [Moment(*MODEL_IS_WRITTEN, 1)],
    "while the second is written, twice": [Moment(*ALL_BUT_ITS_STATE_IS_WRITTEN, 2), Moment(*MODEL_IS_WRITTEN, 1)],
    "around the rename": [Moment(*READY, 1), Moment(*ALL_IS_WRITTEN, 2), Moment(*OLD_ONE_STAYS, 2)],
    "at the end": [ENDED],
    "at the end, twice": [ENDED, ENDED],
    "at the end, three times": [ENDED, ENDED, LOADING],
    "a full disk": [
        Moment("transformers.trainer", "Trainer._save_checkpoint", 2, full=True),
        Moment(*MODEL_IS_WRITTEN, 1, full=True),
        Moment(*ALL_IS_WRITTEN, 1, full=True),
    ],
}


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        *(("language model", case) for case in CASES),
        *(("reward model", case) for case in ("within the steps", "around the rename", "at the end, three times")),
        *(("ranking reward model", case) for case in ("within the steps", "at the end, three times")),
    ],
)
def test_whatever_ends_it_nothing_changes(whole: Path, kind: str, case: str, tmp_path: Path) -> None:
    arguments = (kind, tmp_path / "work", tmp_path / "result")
    for moment in CASES[case]:
        assert in_process(train, *arguments, moment=moment) == (2 if moment.full else -9), f"not ended at {moment}"
    assert in_process(train, *arguments) == 0
    assert files_of(tmp_path / "result") == files_of(whole / kind)
    assert len(list((tmp_path / "work").glob("step-*"))) == 1


def test_a_row_for_each_step(whole: Path) -> None:
    rows = {kind: read_json(whole / kind / "rows.json") for kind in KINDS}
    assert [row["step"] for row in rows["language model"]] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows["reward model"]] == list(range(1, 47))
    tokens = [row["num_tokens"] for row in rows["language model"]]
    assert tokens == sorted(set(tokens)), "tokens are counted from the first step"


def test_a_damaged_checkpoint_is_taken_for_none(whole: Path, tmp_path: Path) -> None:
    arguments = ("language model", tmp_path / "work", tmp_path / "result")
    assert in_process(train, *arguments, moment=step(30)) == -9
    file = tmp_path / "work" / "step-20" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert in_process(train, *arguments) == 0
    assert files_of(tmp_path / "result") == files_of(whole / "language model")
