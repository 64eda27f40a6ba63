"""Writes run directories with real files in the formats of the stages, in seconds, for the tests of report and guard.

Short stories follow more of their instruction in each iteration, so that texts, lengths and wins hang together as in
a run that learned; `hacked` makes answers grow without getting better, as a policy does whose judge likes length.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selfplay.stats.diversity import distinct_n, unique_share
from selfplay.stats.intervals import win_rate
from selfplay.storage.files import write_json, write_rows

HOSTILE = (
    '</pre></script><script>document.title = "owned"; throw new Error("owned")</script>'
    "<img src=x onerror=\"document.title='owned'\"><style>body{display:none}</style><!-- {{ 7*7 }} {% raw %} &amp; "
    '\x00\x07\x1b[31mred\x1b[0m \u202eright to left\u2066 \ud83d\ufffe]]> <a href="https://example.com/">link</a>'
)


ANIMALS, PLACES = ("fox", "owl", "pony", "otter", "duck", "cat"), ("lake", "cave", "farm", "market", "bridge", "castle")
THINGS = ("kite", "bell", "drum", "lamp", "book", "boat", "cake", "hat", "key", "rope", "coin", "map", "scarf", "wagon")
FILLERS = (
    "The sun was warm.",
    "It began to rain.",
    "Nobody was there.",
    "It ran up the hill.",
    "It sang a little song.",
    "It looked left and right.",
    "The sky was very blue.",
    "It was a long way home.",
)


@dataclass(frozen=True)
class Wish:
    """What one prompt asks for."""

    animal: str
    place: str
    thing: str
    other: str

    @property
    def key(self) -> str:
        return f"{self.animal}-{self.place}-{self.thing}-{self.other}"

    @property
    def instruction(self) -> str:
        return f"Tell a story about a {self.animal} at the {self.place}. Use the words {self.thing} and {self.other}."

    def story(self, generator: random.Random, quality: float) -> str:
        def kept(wish: str, others: tuple[str, ...]) -> str:
            return wish if generator.random() < quality else generator.choice(others)

        middle = [
            f"It found a {kept(self.thing, THINGS)} under a tree.",
            generator.choice(FILLERS),
            f"A friend gave it a {kept(self.other, THINGS)}.",
        ]
        ending = ["It was a good day.", "The end."] if generator.random() < quality else []
        return " ".join(
            [f"One day a {kept(self.animal, ANIMALS)} went to the {kept(self.place, PLACES)}.", *middle, *ending]
        )


def wishes(count: int, seed: int) -> list[Wish]:
    """So many different wishes."""
    generator = random.Random(seed)
    found: dict[str, Wish] = {}
    while len(found) < count:
        thing, other = generator.sample(THINGS, 2)
        one = Wish(generator.choice(ANIMALS), generator.choice(PLACES), thing, other)
        found[one.key] = one
    return list(found.values())


@dataclass(frozen=True)
class Plan:
    """What kind of run to write."""

    prompts: int = 256
    iterations: int = 2
    hacked: bool = False
    audited: bool = False
    hostile: bool = True
    swapped: bool = True
    rewards: bool = True
    filler: int = 0
    seed: int = 0


def make_run(path: Path, plan: Plan) -> Path:
    """A finished run in a new directory."""
    generator = random.Random(plan.seed)
    path.mkdir(parents=True)
    config = {
        "name": path.name,
        "description": "Short stories that follow more of the wishes in the instruction.",
        "seed": plan.seed,
        "iterations": plan.iterations,
        "policy": {"model": "models/start"},
        "judge": {"file": "longer" if plan.hacked else "stories", "model": None},
        "evaluate": {"judge": "stories" if plan.audited else None, "resamples": 2000},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_json(
        path / "provenance.json",
        {
            "command": ["selfplay", "run", f"runs/{path.name}.yaml"],
            "commit": "0123456789abcdef0123456789abcdef01234567",
            "python": "3.11.7",
            "platform": "Linux-6.1 <x86_64>",
            "cores": 2,
            "started": "2026-11-20T09:30:00+0000",
            "packages": {"torch": "2.13.0", "transformers": "5.17.0", "trl": "1.16.0"},
        },
    )
    names = [f"iteration-{number:03d}" for number in range(plan.iterations + 1)]
    heldout = wishes(plan.prompts, plan.seed)
    answers = {name: [_answer(one, number, plan, generator) for one in heldout] for number, name in enumerate(names)}
    if plan.hostile:
        answers[names[-1]][0] = HOSTILE.encode("utf-8", "replace").decode()
    (path / "iteration-000" / "policy").mkdir(parents=True)
    _manifest(path / "iteration-000" / "policy", 42.5)
    metrics: list[dict[str, Any]] = []
    for number in range(1, plan.iterations + 1):
        _iteration(path, number, names, heldout, answers, plan, generator, metrics)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return path


def _quality(number: int, plan: Plan) -> float:
    return 0.5 if plan.hacked and number < 2 else 0.25 if plan.hacked else min(0.95, 0.45 + 0.17 * number)


def _answer(one: Wish, number: int, plan: Plan, generator: random.Random) -> str:
    text = one.story(generator, _quality(number, plan))
    more = plan.filler + (number * 6 if plan.hacked else 0)
    return " ".join([text, *generator.choices(FILLERS, k=more)])


def _score(one: Wish, text: str) -> float:
    """Share of the wishes that the text meets: stands in for a judge."""
    asked = (one.animal, one.place, one.thing, one.other, "The end.")
    return sum(wish in text for wish in asked) / len(asked)


def _match(one: Wish, a: str, b: str, texts: tuple[str, str], plan: Plan, generator: random.Random) -> dict[str, Any]:
    scores = [_score(one, text) for text in texts]
    orders = [min(1.0, max(0.0, 0.5 + scores[0] - scores[1] + generator.choice((-0.1, 0, 0.1)))) for _ in range(2)]
    orders = [0.5 if abs(value - 0.5) < 0.06 else float(value > 0.5) for value in orders]
    unscored = generator.random() < 0.02
    forward, backward = (None if unscored else orders[0]), (orders[1] if plan.swapped else None)
    preference = None if unscored else sum(orders) / 2 if plan.swapped else orders[0]
    counts = [len(text.split()) + len(text) // 12 for text in texts]
    row = {
        "prompt_id": one.key,
        "prompt": one.instruction,
        "a": a,
        "b": b,
        "a_text": texts[0],
        "b_text": texts[1],
        "a_tokens": counts[0],
        "b_tokens": counts[1],
        "a_truncated": counts[0] > 90,
        "b_truncated": counts[1] > 90,
        "preference": preference,
        "forward": forward,
        "reversed": backward,
        "reason": f"score {scores[0]:.2f} against {scores[1]:.2f}: <things> & place",
        "judge": "stories",
        "error": "no verdict in the answer: 'I think B is a good response'" if unscored else "",
    }
    if plan.rewards:
        row |= {
            f"{side}_reward": (0.02 * count if plan.hacked else 2 * score) + generator.gauss(0, 0.3) - 1
            for side, score, count in zip("ab", scores, counts, strict=True)
        }
    return row


def _iteration(
    path: Path,
    number: int,
    names: list[str],
    heldout: list[Wish],
    answers: dict[str, list[str]],
    plan: Plan,
    generator: random.Random,
    metrics: list[dict[str, Any]],
) -> None:
    folder, name = path / names[number], names[number]
    for stage, seconds in (("generate", 24.0), ("label", 6.5), ("reward", 31.0), ("policy", 88.0), ("evaluate", 12.0)):
        (folder / stage).mkdir(parents=True)
        _manifest(folder / stage, seconds * generator.uniform(0.9, 1.2))
    _training_stages(folder, number, names[number - 1], plan, generator)
    rows = []
    for other in sorted({0, number - 1}):
        rows += [
            _match(one, name, names[other], (answers[name][i], answers[names[other]][i]), plan, generator)
            for i, one in enumerate(heldout)
        ]
    write_rows(folder / "evaluate" / "matches.parquet", rows)
    write_json(folder / "evaluate" / "evaluation.json", _evaluation(number, names, heldout, answers[name], rows))
    metrics += [_policy_step(number, step, generator) for step in range(1, 41)]


def _training_stages(folder: Path, number: int, policy: str, plan: Plan, generator: random.Random) -> None:
    """What generate, label and reward leave behind."""
    write_rows(
        folder / "generate" / "completions.parquet",
        [
            {
                "id": f"{one.key}/{k}",
                "prompt_id": one.key,
                "text": _answer(one, number - 1, plan, generator),
                "token_ids": [1, 2],
                "finish_reason": "stop",
                "policy": policy,
                "logprobs": None,
            }
            for one in wishes(40, plan.seed + number)
            for k in range(2)
        ],
    )
    pairs = [
        {
            "pair_id": f"{one.key}-pair",
            "prompt_id": one.key,
            "prompt": [{"role": "user", "content": one.instruction}],
            "chosen": [{"role": "assistant", "content": _answer(one, number, plan, generator)}],
            "rejected": [{"role": "assistant", "content": _answer(one, number - 1, plan, generator)}],
            "margin": 0.75,
            "confidence": 0.875,
        }
        for one in wishes(50, plan.seed + number)
    ]
    write_rows(folder / "label" / "preferences.parquet", pairs)
    verdict = {
        "judge": "stories",
        "order": "none",
        "preference": 1.0,
        "raw": "",
        "error": "",
        "reason": "more wishes met",
    }
    write_rows(folder / "label" / "verdicts.parquet", [{"pair_id": pair["pair_id"], **verdict} for pair in pairs])
    write_json(
        folder / "label" / "judge_health.json",
        {
            "pairs": 512,
            "decided": 430,
            "ties": 78,
            "unscored": 4,
            "swap_consistency": 0.91 if plan.swapped else None,
            "first_share": 0.52 if plan.swapped else None,
            "longer_share": 0.98 if plan.hacked else 0.56,
            "unscored_answers": 0.008,
            "identical": 3,
            "seconds": 6.1,
        },
    )
    write_json(
        folder / "reward" / "metrics.json",
        {"accuracy": {"value": 0.78, "low": 0.71, "high": 0.85, "n": 120}, "calibration_error": 0.04, "pairs": 430},
    )


def _evaluation(
    number: int, names: list[str], heldout: list[Wish], texts: list[str], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    name = names[number]
    against = {other: [row["preference"] for row in rows if row["b"] == names[other]] for other in (0, number - 1)}
    counts = sorted(row["a_tokens"] for row in rows if row["b"] == names[0])
    return {
        "iteration": number,
        "win_rate_vs_start": win_rate(name, names[0], against[0]).model_dump(),
        "win_rate_vs_previous": win_rate(name, names[number - 1], against[number - 1]).model_dump(),
        "mean_reward": 0.9 * number + 0.1,
        "mean_score": sum(map(_score, heldout, texts)) / len(texts),
        "kl_to_start": 4.0 * number**1.5,
        "mean_length": sum(counts) / len(counts),
        "p95_length": counts[int(0.95 * len(counts))],
        "truncated": sum(row["a_truncated"] for row in rows) / len(rows),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
        "unique": unique_share(texts),
        "seconds": 11.0,
    }


def _policy_step(number: int, step: int, generator: random.Random) -> dict[str, Any]:
    return {
        "iteration": number,
        "stage": "policy",
        "step": step,
        "time": 1e9 + step,
        "objective/kl": 0.15 * step,
        "objective/scores": -0.5 + 0.04 * step + generator.gauss(0, 0.1) + number,
        "objective/entropy": 60 - step / 2,
        "loss/policy_avg": generator.gauss(-0.01, 0.004),
        "loss/value_avg": 0.4 / step,
        "policy/clipfrac_avg": 0.08,
        "val/ratio": 1 + generator.gauss(0, 1e-3),
        "policy/approxkl_avg": 0.01,
        "text/sample": "not a number",
    }


def _manifest(folder: Path, seconds: float) -> None:
    write_json(folder / "manifest.json", {"fingerprint": "f", "seconds": round(seconds, 3), "outputs": {}})
