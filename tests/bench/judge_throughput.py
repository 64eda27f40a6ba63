"""What judging costs beside the bare engine: questions per second from pairs to verdicts, over those of the engine alone.

    .venv/bin/python tests/bench/judge_throughput.py                     # vLLM and the transformers engine
    .venv/bin/python tests/bench/judge_throughput.py --model runs/quickstart-llm-judge/iteration-000/judge --pairs 1000

"Judging" is all that labelling does: templates, a cache in a new file, the engine, parsing. "Bare" gets the rendered
messages: `LLM.generate` on their token ids for vLLM, with prefix caching on, and the engine itself for transformers. The
two take turns, first one first and then the other, each time on pairs of their own that are of one kind, so that neither
remembers what the other asked. Without --model a judge of random weights answers; it costs what a trained one costs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import publish
from transformers import LlamaForCausalLM

import judges
from judges.distill import RuleTeacher
from judges.modes.pairwise import PairwiseJudge
from selfplay.config import Architecture, Engine
from selfplay.engines.open import open_engine
from selfplay.models import encode_prompt, save
from selfplay.records import Pair, Prompt
from selfplay.stages.bootstrap import llama_config
from selfplay.stages.judge_model import lesson_tokenizer, pairs

FILES = ("stories-judge-logprob", "stories-judge")


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["vllm", "transformers"], choices=["vllm", "transformers"])
    parser.add_argument("--model", help="a judge's checkpoint; default random weights")
    parser.add_argument(
        "--pairs", type=int, default=1200, help="pairs per round and side; each is asked in both orders"
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.model or random_judge(Path(folder) / "judge")
        source = pairs("heldout", 11)
        rounds: list[dict[str, list[float]]] = []
        rows = [
            row
            for kind in given.engines
            for row in measure(kind, checkpoint, source, given.pairs, given.rounds, folder, rounds)
        ]
    publish("judge_throughput", rows, pairs=given.pairs, model=given.model or "random", rounds=rounds)


def random_judge(path: Path) -> str:
    """A checkpoint of the size that `judge.bootstrap` makes by default, untrained."""
    teacher = RuleTeacher(judges.load_spec("stories"), [judges.load_spec(name, "random") for name in FILES])
    tokenizer = lesson_tokenizer(list(islice(teacher.lessons(pairs("train", 0)), 2000)), teacher.criteria, 1280)
    model = LlamaForCausalLM(llama_config(Architecture(context=768), tokenizer))
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    save(model, tokenizer, path)
    return str(path)


def measure(
    kind: Any,
    checkpoint: str,
    source: Iterator[Pair],
    count: int,
    rounds: int,
    folder: str,
    kept: list[dict[str, list[float]]],
) -> Iterator[dict[str, Any]]:
    """One row per judge file: medians over the rounds, which go to `kept`. Rates are questions per second."""
    engine: Any = open_engine(Engine(kind=kind), checkpoint, "judge")
    for name in FILES:
        found: dict[str, list[float]] = {"judging": [], "bare": []}
        for number in range(-1, rounds):  # the first round warms up and is thrown away
            for side in ("judging", "bare") if number % 2 else ("bare", "judging"):
                fresh = list(islice(source, count))
                cache = Path(folder) / f"{kind}-{name}-{number}-{side}.sqlite"
                seconds = judging(engine, name, fresh, cache) if side == "judging" else bare(engine, kind, name, fresh)
                if number >= 0:
                    found[side].append(2 * count / seconds)
        ratios = [one / other for one, other in zip(found["judging"], found["bare"], strict=True)]
        kept.append(found)
        yield {
            "engine": kind,
            "judge": name,
            "judging, questions/s": statistics.median(found["judging"]),
            "bare, questions/s": statistics.median(found["bare"]),
            "judging over bare": statistics.median(ratios),
        }
    engine.close()


def judging(engine: Any, name: str, asked: Sequence[Pair], cache: Path) -> float:
    """Seconds from pairs to verdicts."""
    spec = judges.load_spec(name, "measured")
    forgiving = spec.model_copy(
        update={"on_error": spec.on_error.model_copy(update={"retries": 0, "max_failure_rate": 1.0})}
    )
    judge = judges.build(forgiving, engine, cache)
    began = time.perf_counter()
    verdicts = judge.judge(asked)
    seconds = time.perf_counter() - began
    assert len(verdicts) == 2 * len(asked)
    return seconds


def bare(engine: Any, kind: str, name: str, asked: Sequence[Pair]) -> float:
    """Seconds of the engine alone on the same questions, rendered beforehand."""
    spec: Any = judges.load_spec(name, "measured")
    asker: Any = None
    renderer = PairwiseJudge(spec, asker)
    prompts = [
        Prompt(id=f"{number}", messages=renderer.question(pair, order).messages)
        for number, pair in enumerate(asked)
        for order in renderer.orders(pair)
    ]
    logprob = spec.output.kind == "logprob"
    if kind == "transformers":
        began = time.perf_counter()
        engine.choice_logprobs(prompts, ["A", "B"]) if logprob else engine.generate(prompts, spec.sampling)
        return time.perf_counter() - began
    from vllm import SamplingParams

    began = time.perf_counter()
    ids = [{"prompt_token_ids": encode_prompt(engine.tokenizer, prompt)} for prompt in prompts]
    labels = [engine.tokenizer.convert_tokens_to_ids(label) for label in ("A", "B")]
    parameters = (
        SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=labels, detokenize=False)
        if logprob
        else SamplingParams(
            temperature=0,
            max_tokens=spec.sampling.max_tokens,
            detokenize=False,
            stop_token_ids=engine.stop_ids,
            ignore_eos=True,
        )
    )
    engine.llm.generate(ids, parameters, use_tqdm=False)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
