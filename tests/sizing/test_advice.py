"""What a dry run tells to change: settings that the loader takes and with which it fits, and where workers would lie."""

from pathlib import Path

import pytest
from recipes_to_size import BOOTSTRAPPED, DPO_OF_SEVEN, SEVEN_BILLION, h100, recipe, sized

from selfplay.errors import ConfigError
from selfplay.preflight import check_launch
from selfplay.sizing import cards
from selfplay.sizing.advice import advice, excess, fixes, placement, way_out, with_setting
from selfplay.sizing.cards import GB, KNOWN, Machine
from selfplay.sizing.stages import stages

ILQL_OF_SEVEN = "policy: {model: Qwen/Qwen2.5-7B-Instruct}\nalgorithm: {kind: ilql}\n"
REJECTION_OF_SEVEN = "policy: {model: Qwen/Qwen2.5-7B-Instruct}\nreward: {kind: judge}\nalgorithm: {kind: rejection}\n"
TUNED_SEVEN = DPO_OF_SEVEN.replace("Instruct}", "Instruct, sft: {}}")
CASES = {
    "ppo": (SEVEN_BILLION, ["launch.workers=8"], h100(8)),
    "ppo without cards": (SEVEN_BILLION, ["engine.kind=transformers"], Machine(0, None, 64 * GB)),
    "nlpo": (BOOTSTRAPPED, ["algorithm.nlpo={}"], Machine(0, None, GB // 100)),
    "dpo in odd batches": (DPO_OF_SEVEN, ["algorithm.batch_size=27"], h100(1)),
    "dpo on workers": (DPO_OF_SEVEN, ["algorithm.batch_size=30", "launch.workers=2"], h100(2)),
    "more workers than eight": (SEVEN_BILLION, ["launch.workers=12", "reward.batch_size=60"], h100(12)),
    "ilql": (ILQL_OF_SEVEN, ["algorithm.heads=mlp", "iterations=1"], h100(1)),
    "rejection": (REJECTION_OF_SEVEN, [], h100(1)),
    "fine-tuned first": (TUNED_SEVEN, [], h100(1)),
    "bootstrapped": (BOOTSTRAPPED.replace(", sft: null", ""), [], Machine(0, None, GB // 100)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_setting_that_may_be_told_is_one_that_the_loader_takes(tmp_path: Path, case: str) -> None:
    text, given, machine = CASES[case]
    sizes = sized(recipe(tmp_path, text, *given), machine)
    taken = 0
    for setting in fixes(sizes):
        try:
            changed = with_setting(sizes, setting)
        except ConfigError:
            with pytest.raises(ConfigError):
                check_launch(recipe(tmp_path, text, *given, str(setting)))
            continue
        told = sized(recipe(tmp_path, text, *given, str(setting)), machine)
        assert told.recipe.model_dump() == changed.recipe.model_dump(), f"the command line understands {setting}"
        assert stages(told) == stages(changed)
        taken += 1
    assert taken and excess(sizes), "there is something to tell"
    begin, _, rest = way_out(sizes).removeprefix("It fits with ").removeprefix("With ").partition(" it is ")
    told = begin.replace("lora={rank: 16}", "lora={rank:16}").split() if "=" in begin else []
    settings = [one.replace("{rank:16}", "{rank: 16}") for one in told]
    followed = sized(recipe(tmp_path, text, *given, *settings), machine)
    check_launch(followed.recipe)
    assert excess(followed) < excess(sizes) if settings else rest or begin.startswith("It is ")
    assert (excess(followed) == 0) == (not rest and not begin.startswith("It is "))


def test_a_micro_batch_divides_the_batch_and_is_shared_by_the_workers(tmp_path: Path) -> None:
    for given, sizes_told in (
        (["algorithm.batch_size=27"], [9, 3, 1]),
        (["algorithm.batch_size=30"], [15, 10, 6, 5, 3, 2, 1]),
    ):
        found = fixes(sized(recipe(tmp_path, DPO_OF_SEVEN, *given), h100(1)))
        assert [one.value for one in found if one.name == "algorithm.micro_batch"] == sizes_told
    shared = fixes(sized(recipe(tmp_path, DPO_OF_SEVEN, "algorithm.batch_size=30", "launch.workers=2"), h100(2)))
    assert [one.value for one in shared if one.name == "algorithm.micro_batch"] == [10, 6, 2]


def test_a_begun_run_is_told_only_what_may_change(tmp_path: Path) -> None:
    sizes = sized(recipe(tmp_path, SEVEN_BILLION), h100(1))
    assert "policy.lora" in way_out(sizes)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: r")
    assert "policy.lora" not in way_out(sizes) and "engine.sleep=true" in way_out(sizes)


def test_the_settings_that_make_it_fit(tmp_path: Path) -> None:
    given = ("launch.workers=8", "reward.backbone=Qwen/Qwen2.5-1.5B-Instruct", "algorithm.episodes=4096")
    eight = sized(recipe(tmp_path, SEVEN_BILLION, *given), h100(8))
    said = advice(eight, stages(eight))
    assert len(said) == 1 and said[0].startswith("does not fit: policy: update by ")
    settings = said[0].partition("It fits with ")[2].split()
    assert settings[0] == "engine.sleep=true" and "algorithm.gradient_checkpointing=true" in settings
    fixed = sized(recipe(tmp_path, SEVEN_BILLION, *given, *settings), h100(8))
    assert advice(fixed, stages(fixed)) == []
    alone = sized(recipe(tmp_path, SEVEN_BILLION, "reward.backbone=Qwen/Qwen2.5-0.5B-Instruct"), h100(1))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("name: r")
    assert way_out(alone).endswith("GB short: it takes more launch.workers (now 1) or larger cards")


def test_cards_that_stay_idle_and_shares_that_are_too_small(tmp_path: Path) -> None:
    idle = sized(recipe(tmp_path, SEVEN_BILLION, "launch.workers=4", "engine.gpu_memory=0.1"), h100(8))
    said = advice(idle, stages(idle))
    assert said[0] == (
        "the recipe has 1 x 4 worker(s), and there are 1 x 8 GPU(s) (nodes x each): GPUs would stay idle; set "
        "launch={workers: 8}"
    )
    # 15.23 GB of weights, 356 tokens of 57,344 bytes, 2 GB beside: 17.25 of 80 GB.
    assert (
        said[1].startswith("engine.gpu_memory 0.1 leaves vLLM no room")
        and "set engine.gpu_memory=0.22 or more" in said[1]
    )
    tiny = Machine(1, cards.named("1xL4-12GB", 0).card, 500 * GB)
    said = advice(found := sized(recipe(tmp_path, SEVEN_BILLION), tiny), stages(found))
    assert said[0] == (
        "one GPU has no room for vLLM's weights and one sequence, 1.4 times its memory: set engine.tensor_parallel, so that "
        "several share them"
    )


@pytest.mark.parametrize(
    ("launch", "machine", "told"),
    [
        ("{workers: 8}", "8xH100", ""),
        ("{nodes: 2, workers: 8, address: auto}", "2x8xH100", ""),
        ("{nodes: 2, workers: 8, address: auto}", "16xH100", ""),
        ("{workers: 16}", "2x8xH100", "launch={nodes: 2, workers: 8, address: auto}"),
        ("{nodes: 4, workers: 4, address: auto}", "2x8xH100", "launch={nodes: 2, workers: 8, address: auto}"),
        ("{workers: 16}", "8xH100", "launch={workers: 8}"),
    ],
)
def test_workers_lie_on_nodes(tmp_path: Path, launch: str, machine: str, told: str) -> None:
    sizes = sized(recipe(tmp_path, SEVEN_BILLION, f"launch={launch}"), cards.named(machine, 500 * GB))
    said = placement(sizes)
    assert said.partition("; set ")[2] == told and ("would not start" in said) == bool(told)
    if told:
        follows = sized(recipe(tmp_path, SEVEN_BILLION, told), sizes.machine)
        assert placement(follows) == ""


def test_cards_of_this_machine_stand_for_those_of_each_node() -> None:
    rows = ["NVIDIA H100 80GB HBM3, 81559"] * 8
    machine = cards.of_listing(rows, 10, nodes=4)
    assert (machine.count, machine.cards_of_node) == (32, 8) and machine.title == "4 nodes of 8 x H100, 86 GB each"
    mixed = cards.of_listing(["NVIDIA L4, 23034", "NVIDIA H100 80GB HBM3, 81559"], 10).card
    assert mixed is not None and mixed.name == "H100"


def test_what_more_workers_do_not_make_smaller(tmp_path: Path) -> None:
    """A reward model is whole on each worker."""
    given = ("launch.workers=8", "reward.backbone=Qwen/Qwen2.5-7B-Instruct", "engine.sleep=true")
    sizes = sized(recipe(tmp_path, SEVEN_BILLION, *given), h100(8))
    assert way_out(sizes).endswith("GB short: it takes larger cards or a smaller reward.backbone")


@pytest.mark.parametrize("machine", [Machine(0, None, 640 * GB), Machine(8, KNOWN["H100"], 500 * GB)])
def test_what_is_one_process_work_is_whole_in_it(tmp_path: Path, machine: Machine) -> None:
    alone, masked = (
        {row.stage: row for row in stages(sized(recipe(tmp_path, BOOTSTRAPPED, *more), machine, prompt=4))}
        for more in ((), ("algorithm.nlpo={}", "launch.workers=8"))
    )
    update = masked["policy: update"]
    copied = update.parts["policy of the mask"]
    assert copied == update.parts["policy"] == alone["policy: update"].parts["policy"]
    assert update.total - copied == alone["policy: update"].total
    assert update.room == alone["policy: update"].room and masked["evaluate"].room == (
        machine.memory // 8 if machine.card is None else 80 * GB
    )


def test_offline_learning_and_the_best_of_n_by_hand(tmp_path: Path) -> None:
    machine = Machine(0, None, 8 * GB)
    total, tokens = 2 * 512 + 2400 + 8, 100 * 10
    offline = sized(recipe(tmp_path, BOOTSTRAPPED, "algorithm={kind: ilql, batch_size: 100}"), machine, prompt=4)
    parts = {row.stage: row.parts for row in stages(offline)}["policy"]
    # Two heads of 300 words x 8 numbers learn with the policy, 16 bytes each, and have a copy of 4.
    assert sum(parts[name] for name in ("weights", "gradients", "optimizer")) == 16 * (total + 4800)
    assert parts["copies of the heads"] == 4 * 4800 and "reference" not in parts
    assert parts["activations"] == tokens * (2 * 4 * 120 + 4 * 4 * 8)
    pairs = sized(recipe(tmp_path, BOOTSTRAPPED, "algorithm={kind: dpo, batch_size: 16}"), machine, prompt=4)
    parts = {row.stage: row.parts for row in stages(pairs)}["policy"]
    assert "reference" not in parts and parts["logits"] == 3 * 4 * 2 * 160 * 300, "sixteen pairs"
    best = sized(recipe(tmp_path, BOOTSTRAPPED, "algorithm={kind: rejection, batch_size: 16}"), machine, prompt=4)
    rows = {row.stage: row.parts for row in stages(best)}
    assert rows["policy: sampling"]["reward model"] == rows["policy: sampling"]["policy: weights"] == 4 * total
    assert "reference" not in rows["policy: update"] and rows["policy: update"]["weights"] == 4 * total
    assert rows["policy: update"]["logits"] == 3 * 4 * 160 * 300, "sixteen answers with their prompts"
