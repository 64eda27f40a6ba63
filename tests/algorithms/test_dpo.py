"""Preference optimisation in runs: the shipped recipe in small, which ids the loss sees, which pairs are learned, kills."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from algorithm_runs import checksums, small_run
from killing import Moment, in_process
from transformers import AutoModelForCausalLM, AutoTokenizer

from prompts.sources import load_demonstrations
from selfplay.algorithms import Inputs
from selfplay.algorithms.dpo import DPOAlgorithm, farthest, pair_of
from selfplay.config import DPO, DemonstratedPairs, Lora
from selfplay.context import RunContext
from selfplay.models import load_policy, load_tokenizer, save
from selfplay.preflight import check
from selfplay.records import Completion, Pair, Prompt
from selfplay.rundir import RunDirectory
from selfplay.stages.label import shares_won
from selfplay.storage.files import derived_seed, read_json_lines, read_rows, write_json_lines
from selfplay.storage.journal import Journal
from selfplay.training.pairs import read_preferences
from selfplay.training.preference import pair_trainer, train_on_pairs
from selfplay.training.supervised import demonstration_rows

QUICK = "algorithm.batch_size=4", "algorithm.learning_rate=3e-3"
STEP = "selfplay.training.supervised", "Watcher.on_step_end"


@pytest.fixture(scope="module")
def dpo_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped recipe at small size, from the tiny run's start."""
    return small_run("dpo", tiny_run, tmp_path_factory.mktemp("dpo"), *QUICK)


def test_a_run_learns_without_a_reward_model(dpo_run: Path) -> None:
    for number in (1, 2):
        folder = dpo_run / f"iteration-00{number}"
        assert sorted(path.name for path in folder.iterdir()) == ["evaluate", "generate", "label", "policy"]
        rows = read_json_lines(folder / "policy" / "metrics.jsonl")
        pairs = read_rows(folder / "label" / "preferences.parquet")
        assert [row["step"] for row in rows] == list(range(1, -(-len(pairs) // 4) + 1))
        assert rows[0]["loss/preference"] == pytest.approx(0.6931, abs=1e-3)  # log 2: nothing is learned yet
        for row in rows:
            assert row["rewards/margin"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5)
    old, new = (AutoModelForCausalLM.from_pretrained(dpo_run / f"iteration-00{n}/policy") for n in (1, 2))
    assert all(not torch.equal(a, b) for a, b in zip(old.parameters(), new.parameters(), strict=True))


def test_report_and_card_know_it(dpo_run: Path) -> None:
    page = (dpo_run / "report.html").read_text()
    assert "Share of pairs ranked right" in page and "Implicit reward" in page
    card = (dpo_run / "iteration-002/policy/README.md").read_text()
    assert "a judge compares them, and DPO learns from them." in card
    assert "- DPO: sigmoid loss, beta 0.3, on all pairs, 1 epoch an iteration\n" in card and "- dpo\n" in card


@torch.no_grad()
def log_prob(policy: Any, asked: list[int], answer: list[int]) -> float:
    """Of the answer's ids together, by a plain forward pass."""
    logits = policy(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())


def test_the_loss_sees_the_ids_that_were_sampled(dpo_run: Path, tmp_path: Path) -> None:
    """The log-probabilities that the trainer works with are those of the sampled ids, by a plain forward pass."""
    start = dpo_run / "iteration-000" / "policy"
    tokenizer = load_tokenizer(start)
    judged = read_preferences(dpo_run / "iteration-001/label/preferences.parquet")
    sampled = {
        (row["prompt_id"], row["text"], *row["token_ids"])
        for row in read_rows(dpo_run / "iteration-001/generate/completions.parquet")
    }
    again = AutoTokenizer.from_pretrained(start)
    config = DPO(kind="dpo", batch_size=4)
    rows = [pair_of(row, tokenizer, config) for row in judged]
    for row, one in zip(judged, rows, strict=True):
        assert (row["prompt_id"], row["chosen"][0]["content"], *one["chosen_ids"]) in sampled
        assert (row["prompt_id"], row["rejected"][0]["content"], *one["rejected_ids"]) in sampled
    retokenized = [again(row["chosen"][0]["content"])["input_ids"] for row in judged]
    assert any(ids != one["chosen_ids"][: len(ids)] for ids, one in zip(retokenized, rows, strict=True)), (
        "text read again gives the same ids, so that this test would see nothing"
    )
    trainer = pair_trainer(load_policy(start), None, tokenizer, rows, config, None, tmp_path, 0)
    plain = load_policy(start)
    for row, one in zip(trainer.train_dataset, rows, strict=True):
        for side in ("chosen", "rejected"):
            expected = log_prob(plain, one["prompt_ids"], one[f"{side}_ids"])
            assert row[f"ref_{side}_logps"] == pytest.approx(expected, abs=2e-3)
            assert row[f"{side}_ids"] == one[f"{side}_ids"]


def test_best_and_worst_by_the_share_of_pairs_won() -> None:
    """b beats a and c, a beats c, and d ties with all: b 1, 1, 1/2; a 0, 1, 1/2; c 0, 0, 1/2; d 1/2 each."""
    prompt = Prompt.plain("p", "?")
    made = {name: Completion(id=name, prompt_id="p", text=name, finish_reason="stop", policy="test") for name in "abcd"}
    settled = {"ab": 0.0, "ac": 1.0, "bc": 0.9, "ad": 0.5, "bd": 0.5, "cd": 0.5}
    pairs = [Pair(id=key, prompt=prompt, first=made[key[0]], second=made[key[1]]) for key in [*settled, "da"]]
    wins = shares_won(pairs, settled)  # "da" was not scored, and counts nowhere
    assert wins == pytest.approx({"a": 1.5 / 3, "b": 2.4 / 3, "c": 0.6 / 3, "d": 0.5})
    rows = [
        {"prompt_id": "p", "pair_id": key, "chosen_wins": wins[key[0]], "rejected_wins": wins[key[1]]}
        for key in ("ba", "ac", "bc")
    ]
    other = {"prompt_id": "q", "pair_id": "xy", "chosen_wins": 1.0, "rejected_wins": 0.0}
    assert [row["pair_id"] for row in farthest([*rows, other])] == ["xy", "bc"]


def train(start: Path, lora: bool, work: Path, result: Path) -> None:
    """Train on forty made pairs, 20 steps of two forward passes, with what was logged beside the weights."""
    torch.set_num_threads(1)
    rows = [
        {
            "prompt_ids": [5, 6 + place % 9],
            "chosen_ids": [20 + place, 21, 22],
            "rejected_ids": [40 + place] * (1 + place % 4),
            "target": 0.9,
            "chosen_wins": 1.0,
            "rejected_wins": 0.0,
        }
        for place in range(40)
    ]
    config = DPO(kind="dpo", batch_size=4, micro_batch=2, epochs=5, learning_rate=1e-3, soft_labels=True)
    adapters = Lora(rank=2, alpha=4.0, targets=("q_proj", "down_proj")) if lora else None
    tokenizer = load_tokenizer(start)
    trainer = pair_trainer(load_policy(start), load_policy(start), tokenizer, rows, config, adapters, work, 3)
    model, logged = train_on_pairs(trainer, work)
    save(model, tokenizer, result)
    write_json_lines(result / "rows.jsonl", logged)


@pytest.mark.parametrize("lora", [False, True])
def test_a_killed_training_ends_with_the_same_weights(tiny_run: Path, lora: bool, tmp_path: Path) -> None:
    start = tiny_run / "iteration-000" / "policy"
    assert in_process(train, start, lora, tmp_path / "work", tmp_path / "whole") == 0
    for moment in (Moment(*STEP, 35), Moment("selfplay.training.supervised", "logged", 2)):
        assert in_process(train, start, lora, tmp_path / "again", tmp_path / "result", moment=moment) == -9
    assert in_process(train, start, lora, tmp_path / "again", tmp_path / "result") == 0
    assert checksums(tmp_path / "result") == checksums(tmp_path / "whole")
    rows = read_json_lines(tmp_path / "whole" / "rows.jsonl")
    # From 0; seed 0 came to 2.0, and with adapters, which begin at nothing, to .13.
    assert [row["step"] for row in rows] == list(range(1, 51)) and rows[-1]["rewards/margin"] > 0.01
    before, after = (load_policy(folder).state_dict() for folder in (start, tmp_path / "whole"))
    moved = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert not lora or moved == {"q_proj", "down_proj"}


def learn(run: Path, folder: Path, iteration: int = 2, **settings: Any) -> list[dict[str, float]]:
    """What an iteration of a finished run would have logged with other settings."""
    files = RunDirectory(run)
    recipe = files.recipe().model_copy(update={"output": str(run)})
    preferences = (files.stage(iteration, "label") / "preferences.parquet",)
    algorithm = DPOAlgorithm(DPO(kind="dpo", batch_size=4, **settings))
    (folder / "work").mkdir(parents=True)
    with closing(RunContext(recipe, files, *check(recipe))) as context:
        algorithm.train(Inputs(context, iteration, folder, folder / "work", None, None, preferences))
    return read_json_lines(folder / "metrics.jsonl")


def test_a_policy_is_held_to_the_reference(dpo_run: Path, tmp_path: Path) -> None:
    """The first step's rewards are log-ratios of iteration 1 to the reference: 0 to itself, and not to the start."""
    to_previous = learn(dpo_run, tmp_path / "previous")[0]
    to_start = learn(dpo_run, tmp_path / "start", reference="start")[0]
    assert abs(to_previous["rewards/chosen"]) < 1e-4 < 1e-3 < abs(to_start["rewards/chosen"])


def test_best_and_worst_are_one_pair_per_prompt(dpo_run: Path, tmp_path: Path) -> None:
    judged = read_preferences(dpo_run / "iteration-002/label/preferences.parquet")
    steps = learn(dpo_run, tmp_path / "extremes", pairs="best-worst", epochs=2)
    assert len(steps) == 2 * -(-len({row["prompt_id"] for row in judged}) // 4)


@pytest.mark.parametrize("settings", [{"loss": "sppo", "soft_labels": True, "beta": 0.01}, {"loss": "sppo"}])
def test_sppo_regresses_on_the_share_of_pairs_won(dpo_run: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """At first all log-ratios are 0, so the loss is ((won - 1/2)^2 + (lost - 1/2)^2) / beta^2."""
    [one, *_] = learn(dpo_run, tmp_path / "sppo", **{"beta": 0.1, **settings}, epochs=1)
    beta = settings.get("beta", 0.1)
    judged = read_preferences(dpo_run / "iteration-002/label/preferences.parquet")
    sides = [
        ((row["chosen_wins"] - 0.5) ** 2 + (row["rejected_wins"] - 0.5) ** 2) / beta**2
        if settings.get("soft_labels")
        else 0.5 / beta**2
        for row in judged
    ]
    assert min(sides) - 1e-2 <= one["loss/preference"] <= max(sides) + 1e-2


def test_demonstrations_are_chosen_over_what_the_policy_before_answers(dpo_run: Path, tmp_path: Path) -> None:
    """SPIN: the policy learns to prefer the demonstrations, and needs no judge for it."""
    taught, recipe, spin = DemonstratedPairs(count=12), RunDirectory(dpo_run).recipe(), tmp_path / "spin"
    assert not DPOAlgorithm(DPO(kind="dpo", demonstrations=taught)).needs(recipe).pairs
    steps = learn(dpo_run, spin, demonstrations=taught, epochs=4, learning_rate=1e-3)
    assert len(steps) == 4 * 3 and steps[-1]["rewards/accuracy"] == 1.0
    own = [one for group in Journal(spin / "work" / "own.jsonl").batches["own/0"] for one in group]
    assert [one["policy"] for one in own] == ["iteration-001"] * 12
    before, after, tokenizer = load_policy(dpo_run / "iteration-001/policy"), load_policy(spin), load_tokenizer(spin)
    shown = load_demonstrations(taught.source, taught.count, derived_seed(recipe.seed, "demonstrations"))
    rows, gained = demonstration_rows(tokenizer, shown, 192), []
    for row, one in zip(rows, own, strict=True):
        asked = row["input_ids"][: row["labels"].count(-100)]
        gap = [
            log_prob(policy, asked, row["input_ids"][len(asked) :]) - log_prob(policy, asked, one["token_ids"])
            for policy in (before, after)
        ]
        gained.append(gap[1] - gap[0])
    assert min(gained) > 10  # nats; the least of twelve was 51 to 82 with five seeds
