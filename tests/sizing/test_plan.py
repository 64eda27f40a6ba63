"""What a dry run says of memory and time: stages by hand, settings that fix, cards by name, hours of an earlier run."""

from dataclasses import replace
from pathlib import Path

import pytest
from recipes_to_size import BODY, BOOTSTRAPPED, DPO_OF_SEVEN, OFFLOADED, SEVEN_BILLION, TOTAL, h100, recipe, sized

from selfplay.config import load_recipe
from selfplay.errors import ConfigError
from selfplay.preflight import check_engines
from selfplay.records import Prompt
from selfplay.sizing import cards, memory
from selfplay.sizing.advice import Setting, with_setting
from selfplay.sizing.cards import GB, KNOWN, Machine
from selfplay.sizing.disk import disk
from selfplay.sizing.hours import CardRates, ProcessorRates, Work, hours
from selfplay.sizing.plan import Plan, measured_hours, plan, work_of
from selfplay.sizing.sizes import tokens_of
from selfplay.sizing.stages import stages

RUNS = Path(__file__).parents[2] / "runs"
WORK = {"pairs": 2000, "judge_calls": 0, "completions": 1000}


def test_the_update_of_a_small_model_by_hand(tmp_path: Path) -> None:
    rows = {row.stage: row for row in stages(sized(recipe(tmp_path, BOOTSTRAPPED), Machine(0, None, 8 * GB), prompt=4))}
    assert list(rows) == ["start", "generate", "label", "reward", "policy: sampling", "policy: update", "evaluate"]
    weight = 4 * TOTAL
    assert rows["policy: update"].parts == {
        "libraries": memory.LIBRARIES,
        "policy": weight,
        "policy: optimizer": 2 * weight,
        "policy: gradients": weight,
        "critic": weight,
        "critic: optimizer": 2 * weight,
        "reference": weight,
        "reward model": weight,
        # A minibatch of 64 episodes of 10 tokens; a block keeps 48 + 32 + 40 numbers of 4 bytes, the ends 4 hidden states.
        "activations": 640 * (2 * 4 * 120 + 4 * 4 * 8),
        "logits": 3 * 2**22 + 4 * 2400,
    }
    # 256 rows of 4 + 6 tokens, 2 x 2 x 8 numbers of 4 bytes, and 28 bytes for each of 300 words to draw one.
    assert rows["policy: sampling"].parts["engine: cache"] == 256 * (10 * 128 + 300 * 28)
    # 64 pairs are 128 sequences of 10 tokens.
    assert rows["reward"].parts["activations"] == 1280 * (2 * 4 * 120 + 4 * 4 * 8)
    # 64 sequences of a context of 256 tokens, whole logits three times.
    assert rows["start"].parts["logits"] == 3 * 4 * 64 * 256 * 300


def test_a_processor_samples_with_copies_in_bfloat16_where_it_learns_in_it(tmp_path: Path) -> None:
    copies, half = "engine: bf16 copies", "algorithm.precision=bfloat16"
    for further, expected in (
        ((), 2 * 2 * 512),
        (("algorithm.async_rollouts=true",), None),
        (("policy.lora.rank=2",), None),
    ):
        found = stages(sized(recipe(tmp_path, BOOTSTRAPPED, half, *further), Machine(0, None, 8 * GB)))
        assert {row.stage: row for row in found}["policy: sampling"].parts.get(copies) == expected


def test_groups_need_no_critic_and_an_average_is_one_more_copy(tmp_path: Path) -> None:
    machine = Machine(0, None, 8 * GB)
    plain, groups = (
        {row.stage: row for row in stages(sized(recipe(tmp_path, BOOTSTRAPPED, *more), machine))}[
            "policy: update"
        ].parts
        for more in ((), ("algorithm.advantage=rloo", "algorithm.ema=0.99"))
    )
    critic = {name for name in plain if name.startswith("critic")}
    assert len(critic) == 2 and groups.keys() == plain.keys() - critic | {"policy: average"}
    assert groups["policy: average"] == 4 * TOTAL


def test_workers_share_what_learns(tmp_path: Path) -> None:
    machine = Machine(0, None, 8 * GB)
    one, two = (
        {row.stage: row for row in stages(sized(recipe(tmp_path, BOOTSTRAPPED, *more), machine, prompt=4))}
        for more in ((), ("launch.workers=2",))
    )
    halved = [name for name in one["policy: update"].parts if name not in ("libraries", "logits")]
    for name in halved:
        assert two["policy: update"].parts[name] == one["policy: update"].parts[name] // 2
    assert two["policy: update"].parts["engine: weights"] == 4 * TOTAL, "each process samples with a whole copy"
    assert "engine: weights" not in one["policy: sampling"].parts, "the trainer's serve"
    assert two["reward"].parts["weights"] == one["reward"].parts["weights"], "TRL's are data-parallel on a CPU"
    assert sized(recipe(tmp_path, BOOTSTRAPPED, "launch.workers=2"), machine).capacity == 4 * GB


def test_adapters_need_no_reference_and_little_optimizer(tmp_path: Path) -> None:
    found = recipe(tmp_path, SEVEN_BILLION, "policy.lora.rank=16")
    rows = {row.stage: row for row in stages(sized(found, h100(1)))}
    parts = rows["policy: update"].parts
    adapter = 28 * 16 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    # 28 blocks of 2 x 3,584 x (3,584 + 512) + 3 x 3,584 x 18,944 numbers in their linear layers, in bfloat16.
    halved = 4 * 7_615_616_512 - 2 * 28 * 233_046_016
    assert "reference" not in parts and parts["policy"] == halved and "bf16 copies" not in parts
    assert parts["policy: in bfloat16"] == 2 * (7_615_616_512 - 28 * 233_046_016), "of what is still float32"
    assert rows["policy: loading"].parts["policy"] == 4 * 7_615_616_512
    assert (parts["policy: optimizer"], parts["policy: gradients"]) == (12 * adapter, 4 * adapter)
    started = with_setting(sized(found, h100(1)), Setting("algorithm.reference", "start"))
    assert {row.stage: row for row in stages(started)}["policy: update"].parts["reference"] == 2 * 7_615_616_512
    own = "engine={kind: python, python: 'own:Engine'}"
    for whole in ("algorithm.async_rollouts=true", "algorithm.precision=float32", own):
        as_loaded = sized(recipe(tmp_path, SEVEN_BILLION, "policy.lora.rank=16", whole), h100(1))
        assert {row.stage: row for row in stages(as_loaded)}["policy: update"].parts["policy"] == 4 * 7_615_616_512


def test_a_critic_of_adapters_shares_the_weights_that_score(tmp_path: Path) -> None:
    adapted = ("policy.lora.rank=16", "algorithm.precision=auto")
    shared, apart = (
        {row.stage: row.parts for row in stages(sized(recipe(tmp_path, SEVEN_BILLION, *adapted, *more), h100(1)))}[
            "policy: update"
        ]
        for more in ((), ("reward.ensemble=2",))
    )
    body = 7_615_616_512 - 152_064 * 3584
    assert "critic" not in shared and apart["critic"] == 4 * body - 2 * 28 * 233_046_016
    assert shared["critic: optimizer"] == apart["critic: optimizer"] == shared["policy: optimizer"]
    assert shared["reward model"] == 4 * body - 2 * 28 * 233_046_016 == apart["reward model"] // 2
    one = sized(recipe(tmp_path, SEVEN_BILLION, *adapted), h100(1))
    smaller = replace(one, backbone=replace(one.policy, layers=1, hidden=8, query=8, key=8))  # which scores in float32
    assert "critic" in {row.stage: row.parts for row in stages(smaller)}["policy: update"]


def test_precision_by_itself(tmp_path: Path) -> None:
    found = recipe(tmp_path, SEVEN_BILLION, "algorithm.precision=auto")
    machines = {
        "a GPU": h100(1),
        "old": Machine(0, None, 64 * GB),
        "new": Machine(0, None, 64 * GB, bfloat16=True),
    }
    chosen = {name: sized(found, machine) for name, machine in machines.items()}
    assert [sizes.precision.bf16 for sizes in chosen.values()] == [True, False, True]
    small = sized(recipe(tmp_path, BOOTSTRAPPED), machines["new"])
    assert not small.precision.bf16
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precision.json").write_text('{"products": "float32"}')
    assert not chosen["new"].precision.bf16, "the run has chosen"


def test_offloaded_moments_are_on_the_card_in_portions(tmp_path: Path) -> None:
    parts = {row.stage: row.parts for row in stages(sized(recipe(tmp_path, SEVEN_BILLION, OFFLOADED), h100(1)))}
    # A tensor is never cut: the embedding's 152,064 x 3,584 numbers are more than a portion of 2^26.
    assert parts["policy: update"]["policy: optimizer"] == 8 * 152_064 * 3584
    small = sized(recipe(tmp_path, SEVEN_BILLION, OFFLOADED, "policy.lora.rank=64"), h100(1))
    # Adapters are 28 x 64 x 90,112 numbers, each a small tensor: 2^26 of them at a time, and 4 bytes each of their own.
    parts = {row.stage: row.parts for row in stages(small)}
    assert parts["policy: update"]["policy: optimizer"] == 8 * 2**26 + 4 * 28 * 64 * 90_112
    shared = sized(recipe(tmp_path, SEVEN_BILLION, OFFLOADED, "launch.workers=8"), h100(8))
    parts = {row.stage: row.parts for row in stages(shared)}
    assert parts["policy: update"]["policy: optimizer"] == 152_064 * 3584
    machine = Machine(0, None, 640 * GB)
    parts = {row.stage: row.parts for row in stages(sized(recipe(tmp_path, SEVEN_BILLION, OFFLOADED), machine))}
    assert parts["policy: update"]["policy: optimizer"] == 8 * 7_615_616_512, "they are in the machine's memory"


def test_sleeping_gives_the_update_the_engines_share(tmp_path: Path) -> None:
    asleep, awake = (
        {
            row.stage: row.total
            for row in stages(sized(recipe(tmp_path, SEVEN_BILLION, f"engine.sleep={sleep}"), h100(8)))
        }
        for sleep in ("true", "false")
    )
    assert awake["policy: update"] - asleep["policy: update"] == pytest.approx(0.45 * 80e9, abs=2)
    assert awake["policy: sampling"] == asleep["policy: sampling"]


@pytest.mark.parametrize(
    ("text", "count", "gigabytes"),
    [("8xH100-80GB", 8, 80), ("h200", 1, 141), ("8x8xH100", 64, 80), ("2xA100-40GB", 2, 40), ("1 x RTX4090", 1, 24)],
)
def test_cards_by_name(text: str, count: int, gigabytes: int) -> None:
    machine = cards.named(text, 10)
    assert machine.card is not None and (machine.count, machine.card.memory) == (count, gigabytes * GB)


@pytest.mark.parametrize("text", ["8xH1000", "many", "x8H100", ""])
def test_cards_that_are_not_known(text: str) -> None:
    with pytest.raises(ConfigError, match="names no known card: write it as 8xH100-80GB"):
        cards.named(text, 10)


def test_cards_as_nvidia_smi_lists_them() -> None:
    machine = cards.of_listing(["NVIDIA H100 80GB HBM3, 81559", "NVIDIA H100 80GB HBM3, 81559"], 10)
    assert machine.card is not None and (machine.count, machine.card.name) == (2, "H100")
    assert machine.card.memory == 81559 * 2**20
    gaming = cards.of_listing(["NVIDIA GeForce RTX 4090, 24564"], 10).card
    assert gaming is not None and gaming.name == "RTX4090"
    assert cards.of_listing([], 10) == Machine(0, None, 10, cards.processor_has_bfloat16())


def test_an_ensemble_on_groups_of_completions(tmp_path: Path) -> None:
    changes = ["reward={ensemble: 3, loss: ranking, batch_size: 8}", "generate.completions=4"]
    rows = {
        row.stage: row
        for row in stages(sized(recipe(tmp_path, BOOTSTRAPPED, *changes), Machine(0, None, 8 * GB), prompt=4))
    }
    # 8 prompts with 4 completions of 10 tokens each; two trained members stay while the third learns.
    assert rows["reward"].parts["activations"] == 320 * (2 * 4 * 120 + 4 * 4 * 8)
    assert rows["reward"].parts["other members"] == 2 * 4 * BODY
    assert rows["policy: update"].parts["reward model"] == 3 * 4 * BODY


def test_disk_by_hand(tmp_path: Path) -> None:
    found = sized(recipe(tmp_path, BOOTSTRAPPED, "iterations=2", "reward.ensemble=3"), Machine(0, None, 8 * GB))
    # Three policies, two reward models of three members, 1,000 answers of 6 tokens; then two checkpoints of three float32
    # numbers for each that learns, in policy and critic.
    kept = 4 * (3 * TOTAL + 2 * 3 * BODY) + 1000 * 6 * 8
    assert disk(found, WORK) == {"kept": kept, "at most": kept + 2 * 12 * (TOTAL + BODY)}
    short = with_setting(found, Setting("algorithm.steps", 5))
    assert disk(short, WORK)["at most"] == kept + 12 * (TOTAL + BODY), "its one checkpoint is the last"
    given = sized(recipe(tmp_path, BOOTSTRAPPED, "iterations=2", "reward.data=some/pairs"), found.machine)
    assert disk(given, WORK)["kept"] == 4 * (3 * TOTAL + BODY) + 1000 * 6 * 8, "one reward model, which is kept"
    half = sized(recipe(tmp_path, DPO_OF_SEVEN, "iterations=1"), h100(1))
    assert disk(half, WORK) == dict.fromkeys(("kept", "at most"), 2 * 2 * 7_615_616_512 + 1000 * 256 * 8)


def test_hours_by_hand(tmp_path: Path) -> None:
    sizes = sized(recipe(tmp_path, SEVEN_BILLION, "launch.workers=8", "algorithm.steps=1"), h100(8))
    rates, shape = CardRates(KNOWN["H100"], sizes), sizes.policy
    # The blocks' 6.5256e9 weights x 1e6 tokens and the head's 0.5450e9 x 1e5: 2 operations at 0.4 of 989e12, or 6 at 0.35
    # and 2 more of the blocks.
    assert rates.forward(shape, 10**6) == pytest.approx(13.0512e15 / 395.6e12, rel=1e-4)
    assert rates.forward(shape, 10**6, head=10**5) == pytest.approx(13.1602e15 / 395.6e12, rel=1e-4)
    assert rates.training(shape, 10**6, recompute=False, head=10**5) == pytest.approx(39.4807e15 / 346.15e12, rel=1e-4)
    assert rates.training(shape, 10**6, recompute=True, head=10**5) == pytest.approx(52.5319e15 / 346.15e12, rel=1e-4)
    tied = replace(shape, tied=True)  # has no second embedding, and multiplies as often
    assert rates.forward(tied, 10**6, head=10**5) == rates.forward(shape, 10**6, head=10**5)
    work = Work(
        prompt=1024, answer=256, generated=0, pairs=0, judge_calls=0, episodes=1024, learned=1024, epochs=2, heldout=0
    )
    found = hours(sizes, work, rates)
    # The update: 6 operations, 2 epochs, 163,840 tokens a card by the blocks of policy and critic, 32,768 by the head, at
    # 0.35: 74.7 s. The estimate: 2 operations by twice the policy, critic and reward model at 0.4: 21.8 s. The rollout, 128 rows
    # an engine: 256 steps of 8 ms and (15.23 + 128 x 1,152 x 57,344 bytes = 8.46 GB) at 0.6 of 3.35 TB/s, and a prefill of
    # 4.3 s: 9.4 s.
    assert found["policy"] * 3600 == pytest.approx(74.7 + 21.8 + 9.4, rel=0.002)
    # Four answers to a prompt ask for it once.
    assert rates.decoding(shape, 128, 1024, 256, each=4) == pytest.approx(5.1 + 4.3 / 4, rel=0.02)


def test_hours_of_a_processor_by_hand(tmp_path: Path) -> None:
    """Two blocks; seconds of a block per token, of a head, of a decoding step and of a row in it, of an update."""
    seconds = {
        "forward of a block": 1.0,
        "forward of the head": 0.5,
        "training of a block": 3.0,
        "training of the head": 1.5,
        "update of a weight": 1e-3,
        "decoding step": 7.0,
        "decoding of a row": 0.25,
    }
    sizes = sized(recipe(tmp_path, BOOTSTRAPPED, "algorithm.steps=1"), Machine(0, None, 8 * GB))
    rates = ProcessorRates(sizes, seconds)
    # 300 answers are a batch of 256 and one of 44; six steps of each, and two blocks over 300 x 4 tokens of prompts.
    assert rates.decoding(sizes.policy, 300, 4, 6) == pytest.approx(6 * (7 + 64 + 7 + 11) + 2 * 1200)
    # Three answers to a prompt ask for it once.
    assert rates.decoding(sizes.policy, 300, 4, 6, each=3) == pytest.approx(6 * (7 + 64 + 7 + 11) + 2 * 400)
    work = Work(
        prompt=4, answer=6, generated=300, pairs=150, judge_calls=0, episodes=256, learned=256, epochs=2, heldout=32
    )
    found = {stage: amount * 3600 for stage, amount in hours(sizes, work, rates).items()}
    # 300 sequences of ten tokens, one epoch, and two updates of a batch of 64 pairs.
    epochs = sizes.recipe.reward.epochs
    updates = epochs * 150 // sizes.recipe.reward.batch_size
    assert found["reward"] == pytest.approx(epochs * 3000 * 6 + updates * BODY * 1e-3)
    # Logits are made of the six tokens of each answer alone.
    rollout, estimate = 6 * (7 + 64) + 2 * 1024, 2560 * (2 * 2 + 2 + 2) + 2 * 1536 * 0.5
    update = 2 * (2560 * (6 + 6) + 1536 * 1.5) + 2 * 4 * (TOTAL + BODY) * 1e-3
    assert found["policy"] == pytest.approx(rollout + estimate + update)
    assert found["evaluate"] == pytest.approx(6 * (7 + 8) + 2 * 128 + 320 * (2 * 2 + 2) + 2 * 192 * 0.5)
    assert found["label"] == 0
    rounds = "algorithm={kind: rejection, rounds: 2, prompts: 64, completions: 4, epochs: 2, batch_size: 16}"
    sizes = sized(recipe(tmp_path, BOOTSTRAPPED, rounds), Machine(0, None, 8 * GB))
    # All 256 answers are sampled and scored; one of each prompt at most is learned, 16 in a step, in two epochs.
    learning = 2 * (640 * 6 + 384 * 1.5) + 2 * 4 * TOTAL * 1e-3
    work = work_of(sizes.recipe, {"pairs": 0, "judge_calls": 0}, 4, 32)
    took = hours(sizes, work, ProcessorRates(sizes, seconds))["policy"] * 3600
    assert took == pytest.approx(2 * (6 * (7 + 64) + 2 * 1024 / 4 + 2560 * 2 + learning))


def test_hours_of_the_iterations_that_a_run_has_finished(tiny_run: Path) -> None:
    from selfplay.rundir import RunDirectory

    files = RunDirectory(tiny_run)
    found = measured_hours(files.recipe().model_copy(update={"output": str(tiny_run)}))
    took = [files.seconds(number)["policy"] for number in (1, 2)]
    assert found["policy"] == pytest.approx(sum(took) / 2 / 3600) and {"generate", "label", "reward"} <= set(found)


def test_a_model_without_a_config_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = recipe(tmp_path, SEVEN_BILLION, "policy.model=nobody/has-this")
    said = plan(found, [Prompt.plain("p", "x")], [Prompt.plain("q", "y")], WORK, "8xH100")
    assert said.lines() == [
        "memory and time: there is no config.json of 'nobody/has-this' at hand; download the model first"
    ]


def test_the_plan_as_text_and_as_json(tmp_path: Path) -> None:
    prompts = [Prompt.plain("p", "x" * 400), Prompt.plain("q", "x" * 40)]
    assert [tokens_of(prompt) for prompt in prompts] == [116, 26], "four bytes a token, and sixteen of a template"
    found: Plan = plan(recipe(tmp_path, SEVEN_BILLION), prompts[:1], prompts[1:], WORK, "1xH100-80GB")
    assert found.lines()[0] == "memory per process in GB, of 80.0 (1 x H100, 80 GB each):"
    update = next(line for line in found.lines() if "policy: update" in line)
    assert "TOO MUCH" in update and "policy: optimizer 60.92" in update
    assert found.json()["stages"]["policy: update"]["policy: optimizer"] == 8 * 7_615_616_512
    assert any(line.startswith("  policy ") and line.endswith("hours per iteration") for line in found.lines())


@pytest.mark.parametrize(
    ("name", "gpus", "peaks", "too_much"),
    [
        (
            "smollm2-135m-1gpu",
            "1xRTX4090-24GB",
            {"policy: sampling": 11.3, "policy: update": 19.5, "evaluate": 11.3},
            [],
        ),
        ("qwen2.5-7b-1gpu-lora", "1xH100-80GB", {"generate": 38.0, "policy": 59.7, "evaluate": 44.1}, []),
        (
            "qwen2.5-7b-8gpu",
            "8xH100-80GB",
            {"label": 50.0, "reward": 71.7, "policy: sampling": 49.9, "policy: update": 37.8, "evaluate": 33.6},
            [],
        ),
        (
            "llama-3.1-70b-8x8gpu",
            "8x8xH100-80GB",
            {"generate": 30.0, "reward": 72.3, "policy: sampling": 54.6, "policy: update": 41.1, "evaluate": 42.6},
            [],
        ),
    ],
)
def test_the_large_recipes(name: str, gpus: str, peaks: dict[str, float], too_much: list[str]) -> None:
    """Gigabytes per GPU, as docs/scaling.md states them."""
    found = load_recipe(RUNS / f"{name}.yaml")
    check_engines(found)
    planned = plan(found, *([Prompt.plain(one, "x" * 176)] for one in "pq"), WORK, gpus)
    totals = {row.stage: row.total / GB for row in planned.stages}
    assert {stage: totals[stage] for stage in peaks} == pytest.approx(peaks, abs=1.0)
    assert [row.stage for row in planned.stages if row.excess] == too_much
    assert planned.hours and all(amount < 24 for amount in planned.hours.values())


def test_a_processor_is_timed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = sized(recipe(tmp_path, BOOTSTRAPPED), Machine(0, None, 8 * GB))
    work = Work(prompt=4, answer=6, generated=16, pairs=0, judge_calls=0, episodes=16, learned=16, epochs=2, heldout=0)
    found = ProcessorRates.measured(sizes, work).seconds
    assert found["training of a block"] > found["forward of a block"] > 0 and found["decoding step"] > 0
    monkeypatch.setattr("subprocess.run", None)
    assert ProcessorRates.measured(sizes, work).seconds == found
