"""Alarms and the choice of the best iteration, on runs written to raise each of them and runs that raise none."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from making_runs import Plan, make_run

from selfplay.config import Guard
from selfplay.errors import ConfigError
from selfplay.guard.alarms import alarms_of, reward_accuracy, reward_gain, win_rate_change
from selfplay.guard.selection import assess, assess_run, conclude
from selfplay.report.html import write_report
from selfplay.results.load import read_run
from selfplay.results.run import Iteration, Match, RunData

START, ONE, TWO = (f"iteration-00{number}" for number in range(3))


def bare_run(matches: list[Match], iterations: tuple[Iteration, ...] = (), **config) -> RunData:
    """A run of so little that every number can be checked by hand."""
    return RunData(
        path=Path("runs/r"),
        config_text="",
        config=config,
        provenance={},
        metrics=(),
        matches=tuple(matches),
        iterations=iterations or (Iteration(0), Iteration(1)),
    )


def match(prompt: int, preference: float | None, a: str = ONE, b: str = START, **more) -> Match:
    texts = {"a_text": f"word {prompt}", "b_text": f"word {prompt}"}
    return Match(prompt_id=str(prompt), prompt="q", a=a, b=b, preference=preference, **{**texts, **more})


def sentences(run: RunData, number: int = 1, **settings) -> list[str]:
    iteration = next(one for one in run.iterations if one.number == number)
    return [
        f"{'severe' if alarm.severe else 'warning'} {alarm.kind}: {alarm.sentence}"
        for alarm in alarms_of(run, iteration, Guard(**settings))
    ]


def evaluated(number: int, **values) -> Iteration:
    return Iteration(number, evaluation={"mean_reward": 0.0, **values})


def test_a_sound_run_raises_no_alarm_and_keeps_its_best(finished_run):
    found = assess(finished_run)
    assert found.alarms == () and found.best_iteration == 2 and not found.stop and not found.audited
    rate = json.loads((finished_run / "iteration-002/evaluate/evaluation.json").read_text())["win_rate_vs_start"]
    shown = f"{100 * rate['win_rate']:.0f}% [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}]"
    assert found.reason.startswith(
        "iteration 2 has the highest win rate against the start by the judge that also gave "
        f"the labels: {shown}; iteration 1 "
    )


def test_a_hacked_run_is_named_for_what_it_is_and_its_last_iteration_is_not_kept(tmp_path):
    found = assess(make_run(tmp_path / "r", Plan(hacked=True, audited=True)))
    said = {(alarm.kind, alarm.iteration, alarm.severe): alarm.sentence for alarm in found.alarms}
    assert "the policy exploits the reward model" in said["over-optimisation", 2, True]
    assert "and the labelling judge preferred the longer answer in 98% of the pairs" in said["length", 2, True]
    assert said["truncation", 2, True].startswith("99.6% of iteration 2's answers are cut off")
    assert "not clearly better than a coin" in said["reward model", 1, False]
    assert found.audited and found.best_iteration != 2


def test_without_an_audit_severe_alarms_disqualify(tmp_path):
    run = make_run(tmp_path / "r", Plan())
    health = run / ONE.replace("1", "2") / "label/judge_health.json"
    health.write_text(json.dumps({**json.loads(health.read_text()), "longer_share": 0.95}))
    evaluation = run / TWO / "evaluate/matches.parquet"
    assert assess(run).best_iteration == 2  # a taste for length alone is no exploitation while lengths stay
    lengthen(evaluation)
    found = assess(run)
    assert found.best_iteration == 1 and found.reason.endswith("iteration 2 raised a severe alarm")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["evaluate"]["judge"] = "another"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert assess(run).best_iteration == 2  # another judge, who gave no labels, vouches for it
    evaluation = run / TWO / "evaluate/evaluation.json"
    told = json.loads(evaluation.read_text())
    told["win_rate_vs_start"] |= {"win_rate": 0.99, "low": 0.5}
    evaluation.write_text(json.dumps(told))
    found = assess(run)
    assert found.best_iteration == 1  # an audit that is not sure does not
    assert found.reason.endswith("iteration 2 raised a severe alarm")


def lengthen(path: Path) -> None:
    from selfplay.storage.files import read_rows, write_rows

    write_rows(path, [{**row, "a_tokens": 2 * row["a_tokens"]} for row in read_rows(path)])


@pytest.mark.parametrize(("action", "best", "stop"), [("warn", 2, False), ("keep-best", 0, False), ("stop", 0, True)])
def test_the_recipe_says_what_an_alarm_does(tmp_path, action, best, stop):
    run = make_run(tmp_path / "r", Plan(hacked=True, audited=True, prompts=128))
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "guard": {"action": action}}))
    found = assess(run)
    assert bool(found.stop) == stop and found.best_iteration == best


def rates_of(number: int, low: float | None) -> Iteration:
    """An iteration whose win rate over the one before has a lower bound, or none where nothing could be scored."""
    rates = dict.fromkeys(("win_rate", "low", "high")) | {"n": 0, "ties": 0, "unscored": 99}
    if low is not None:
        rates = {"win_rate": low + 0.05, "low": low, "high": low + 0.1, "n": 99, "ties": 0, "unscored": 0}
    names = [f"iteration-00{number}", f"iteration-00{number - 1}"]
    return evaluated(number, win_rate_vs_previous=dict(zip("ab", names, strict=True)) | rates)


ON = ": raise guard.patience or leave it out to go on"


@pytest.mark.parametrize(
    ("lows", "patience", "stop"),
    [
        ((0.6, 0.51), 1, ""),
        ((0.6, 0.5), None, ""),
        ((0.6, 0.5), 2, ""),  # one of the last two gained
        ((0.5,), 2, ""),  # there are no two yet
        ((0.6, None), 1, ""),  # nothing is known of the newest
        ((0.6, None, None), 2, ""),
        (
            (0.6, 0.5),
            1,
            f"iteration 2 does not clearly beat the one before (55% [50, 60]), and guard.patience is 1{ON}",
        ),
        (
            (0.6, 0.5, None),
            2,
            f"none of iterations 2 to 3 clearly beats the one before (55% [50, 60]), and guard.patience is 2{ON}",
        ),
        (
            (0.6, 0.48, 0.5),
            2,
            "none of iterations 2 to 3 clearly beats the one before (53% [48, 58], 55% [50, 60]), and guard.patience is "
            f"2{ON}",
        ),
    ],
)
def test_a_run_ends_where_iterations_stop_gaining(
    lows: tuple[float | None, ...], patience: int | None, stop: str
) -> None:
    iterations = [Iteration(0), *(rates_of(number, low) for number, low in enumerate(lows, 1))]
    found = assess_run(bare_run([], tuple(iterations), guard={"patience": patience}))
    assert found.stop == stop


def test_an_unknown_guard_setting_is_named(tmp_path):
    run = make_run(tmp_path / "r", Plan(prompts=8))
    with (run / "config.yaml").open("a") as file:
        file.write("guard: {actoin: stop}\n")
    with pytest.raises(ConfigError, match="did you mean 'action'"):
        assess(run)


def test_before_any_evaluation_the_start_is_best(tmp_path):
    run = make_run(tmp_path / "r", Plan(prompts=8))
    for one in (ONE, TWO):
        shutil.rmtree(run / one / "evaluate")
    found = assess(run)
    assert (found.best_iteration, found.reason) == (0, "no iteration has been evaluated yet")


def test_best_is_written_and_linked_and_can_move(tmp_path):
    run = make_run(tmp_path / "r", Plan())
    for number in (2, 1):
        written = conclude(run, stopped="out of time")
        outcome = json.loads((run / "outcome.json").read_text())
        assert outcome["best"] == number == written.best_iteration and outcome["stopped"] == "out of time"
        assert "Stopped early: out of time." in write_report(run).read_text()
        assert (run / "best").resolve() == (run / f"iteration-00{number}" / "policy").resolve()
        shutil.rmtree(run / TWO, ignore_errors=True)
    assert not (run / ".best").exists()


def test_win_rate_change_is_paired():
    rows = [match(x, p) for x, p in enumerate([1.0, 1.0, 0.0, 1.0])]
    rows += [match(x, p, a=TWO) for x, p in enumerate([1.0, 0.0, 0.0, 0.5])]
    run = bare_run(rows)
    change = win_rate_change(run, 2)
    assert change[0] == pytest.approx((0 - 1 + 0 - 0.5) / 4, abs=1e-12)
    first = win_rate_change(run, 1)
    assert first[0] == pytest.approx(0.75 - 0.5, abs=1e-12)
    assert win_rate_change(run, 3) is None


def test_reward_gain_starts_from_zero():
    run = bare_run([], (Iteration(0), evaluated(1, mean_reward=0.4), evaluated(2, mean_reward=1.0)))
    assert reward_gain(run, run.iterations[1]) == pytest.approx(0.4, abs=1e-12)
    assert reward_gain(run, run.iterations[2]) == pytest.approx(0.6, abs=1e-12)
    assert reward_gain(run, Iteration(3, evaluation={})) is None


def test_over_optimisation_needs_a_rising_reward():
    rows = [match(x, float(x < 60)) for x in range(200)]  # wins 30%
    rising = bare_run(rows, (Iteration(0), evaluated(1, mean_reward=0.8, kl_to_start=9.0)))
    (found,) = sentences(rising)
    assert found.startswith("severe over-optimisation: Over-optimisation: in iteration 1 the reward rose by 0.80")
    assert "the judge's win rate against the start fell by 20 points [" in found
    assert "(KL to the start 9.0 nats)" in found
    flat = bare_run(rows, (Iteration(0), evaluated(1, mean_reward=0.05)))
    (found,) = sentences(flat)
    assert found.startswith("warning over-optimisation: Iteration 1 is worse than the one before")
    even = bare_run([match(x, float(x % 2)) for x in range(200)], (Iteration(0), evaluated(1, mean_reward=0.8)))
    (found,) = sentences(even)
    assert "shows no gain (0 points [" in found


def test_length_exploitation_by_a_rate_that_length_explains():
    # All wins come with longer answers; of the equally long, half win.
    rows = [match(x, 1.0, a_tokens=30, b_tokens=10) for x in range(100)]
    rows += [match(x, float(x % 2), a_tokens=10, b_tokens=10) for x in range(100, 200)]
    (found,) = sentences(bare_run(rows))
    assert found.startswith("severe length: Length exploitation: iteration 1's answers are 2.0 times as long as the ")
    assert "at equal length it no longer beats the start" in found
    assert sentences(bare_run([match(x, float(x % 4 > 0), a_tokens=10, b_tokens=10) for x in range(200)])) == []


def test_growth_alone_is_a_warning():
    rows = [match(x, float(x % 2), a_tokens=16, b_tokens=10) for x in range(200)]
    (found,) = sentences(bare_run(rows))
    assert found == (
        "warning length: Iteration 1's answers are 1.6 times as long as the start's (16 against 10 tokens)."
    )


def test_lost_diversity():
    # The start writes 40 different responses, the policy one: 1/40 of them differ.
    rows = [
        match(x, 0.5, a_text="the same old words here", b_text=f"tale{x} of{x} things{x} told{x}") for x in range(40)
    ]
    found = sentences(bare_run(rows))
    assert len(found) == 2 and all(one.startswith("severe diversity") for one in found)
    assert "2% of the start's share of different responses (0.03 against 1.00)" in found[1]


def test_truncation_is_held_against_the_start():
    def cut(a: int, b: int) -> RunData:
        return bare_run([match(x, 0.5, a_truncated=x < a, b_truncated=x < b) for x in range(10)])

    (found,) = sentences(cut(4, 0))
    assert found == (
        "warning truncation: 40% of iteration 1's answers are cut off at the token limit, 0% of the start's."
    )
    assert sentences(cut(6, 0))[0].startswith("severe")
    assert sentences(cut(4, 4)) == []


def test_a_judge_that_contradicts_itself_or_cannot_be_read():
    health = {"pairs": 100, "unscored": 20, "swap_consistency": 0.5, "first_share": 0.9}
    found = sentences(bare_run([], (Iteration(0), Iteration(1, health=health))))
    assert found == [
        "warning judge: In iteration 1 the labelling judge agreed with itself in only 50% of the pairs when their order "
        "was swapped, choosing the first place in 90%.",
        "warning judge: In iteration 1 the labelling judge gave no readable verdict on 20% of the pairs.",
    ]


def test_reward_accuracy_counts_decided_pairs_with_both_rewards():
    rows = [
        match(0, 1.0, a_reward=2.0, b_reward=1.0),
        match(1, 0.0, a_reward=2.0, b_reward=1.0),
        match(2, 0.75, a_reward=0.5, b_reward=0.1),
        match(3, 0.5, a_reward=1.0, b_reward=0.0),
        match(4, None),
        match(5, 1.0, a_reward=1.0, b_reward=None),
    ]
    run = bare_run(rows)
    found = reward_accuracy(run, run.iterations[1])
    assert (found.win_rate, found.n) == (pytest.approx(2 / 3, abs=1e-12), 3)
    assert reward_accuracy(bare_run([match(0, 1.0)]), Iteration(1)) is None


def test_a_run_of_other_formats_is_still_read(tmp_path):
    """Columns that are not ours are passed over; counts of tokens may be missing."""
    run = make_run(tmp_path / "r", Plan(prompts=8, iterations=1, rewards=False))
    from selfplay.storage.files import read_rows, write_rows

    path = run / ONE / "evaluate/matches.parquet"
    odd = {"a_tokens": None, "b_tokens": None, "reason": None, "colour": "blue"}
    write_rows(path, [{**row, **odd} for row in read_rows(path)])
    found = read_run(run)
    assert found.profiles[ONE].mean_length == pytest.approx(
        sum(len(answer.text) for answer in found.answers[ONE].values()) / 8, abs=1e-9
    )
